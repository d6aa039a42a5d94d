"""How a network is trained: a frozen dataclass, and published recipes by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nasi_jax.config import check
from nasi_jax.types import STEMS

SCHEDULES = ("cosine", "linear")
"""How the learning rate falls."""

CROPS = ("none", "pad", "resized")
"""A random window of each image: of its own size after padding by 4, or of any, resized."""

RECIPE_NAMES = ("quick", "nasbench201", "darts-cifar10", "darts-cifar100", "darts-imagenet")
"""The keys of `RECIPES`."""

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "learning_rate": (0, 1e6),
    "final_learning_rate": (0, 1e6),
    "warmup_epochs": (0, 100_000),
    "momentum": (0, 1),
    "weight_decay": (0, 1e6),
    "clip": (0, 1e30),
    "label_smoothing": (0, 1),
    "auxiliary_weight": (0, 1e6),
    "drop_path": (0, 0.999),
    "cutout": (0, 2**15),
    "norm_group": (1, 2**31 - 1),
}


@dataclass(frozen=True)
class TrainConfig:
    """What a training depends on, besides the genotype. The defaults are the recipe `quick`.

    Attributes:
      recipe: the name of what the settings began as: quick, nasbench201, darts-cifar10,
        darts-cifar100 or darts-imagenet. The command line begins with them;
        elsewhere they are `RECIPES[name]`.
      data: digits (no download), a path to an .npz with x_train, y_train, x_test and y_test, or the
        name of a tensorflow-datasets data set, such as cifar10.
      labels: true, or random (uniform over the classes).
      epochs: how often the training goes through the images.
      batch_size: examples in a step.
      learning_rate: the highest one.
      final_learning_rate: the one at the end.
      schedule: cosine or linear, from the highest to the final one.
      warmup_epochs: epochs, of all, in which the learning rate rises linearly from 0.
      momentum: of stochastic gradient descent.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: times the parameters, added to the gradient.
      clip: the largest norm of the gradient; 0 for any.
      label_smoothing: share of the label that is spread over all classes.
      auxiliary_weight: weight of the loss of a second head, of darts only.
      drop_path: rate at the end of the training, linear from 0, of darts only.
      crop: none, pad (by 4, and crop) or resized (a random part of the image, resized).
      flip: whether half of the images are mirrored.
      cutout: side of a square of each image that is blanked; 0 for none.
      jitter: strengths of random brightness, contrast, saturation and hue.
      norm_group: how many examples share the statistics of normalisation, as those of one device
        where a recipe is for several; the whole batch if not given.
      micro_batches: how many parts of a batch to go through one after another, for the same result
        in less memory. A part must hold whole groups of norm_group examples.
      remat: whether to keep only what passes between cells, for the same result in less memory.
      precision: float32 or bfloat16, for activations; parameters and sums stay float32.
      depthwise: shift or lax, two ways to compute depthwise convolutions; auto chooses by device.
      init: he_normal, he_uniform, xavier_normal, lecun_normal or pytorch.
      init_channels: channels of the first cells; NAS-Bench-101's networks have their own size.
      num_cells: cells; in NAS-Bench-201, cells in each of the 3 stages. As few as there can be if
        not given: 3 in all, or 1 in each stage.
      stem: cifar, or imagenet (images are halved three times first), of darts.
      image_size: height and width of the images that the network sees, a multiple of 4.
      data_dir: where tensorflow-datasets keeps its data sets.
      seed: seed of everything random.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    recipe: str = "quick"
    data: str = "digits"
    labels: str = "true"
    epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.1
    final_learning_rate: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 0.0
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.0
    drop_path: float = 0.0
    crop: str = "pad"
    flip: bool = True
    cutout: int = 0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    norm_group: int | None = None
    micro_batches: int = 1
    remat: bool = False
    precision: str = "float32"
    depthwise: str = "auto"
    init: str = "pytorch"
    init_channels: int = 16
    num_cells: int | None = None
    stem: str = "cifar"
    image_size: int = 32
    data_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "recipe": RECIPE_NAMES,
            "schedule": SCHEDULES,
            "crop": CROPS,
            "stem": STEMS,
        }
        check(self, choices, _RANGES)
        group = self.norm_group or self.batch_size
        if self.batch_size % group:
            raise ValueError(
                f"batch_size must be a multiple of norm_group, {group}, got {self.batch_size}"
            )
        if self.batch_size % (self.micro_batches * group):
            raise ValueError(
                f"micro_batches must leave whole groups of {group} examples that share statistics, "
                f"got {self.micro_batches} of a batch of {self.batch_size}: a smaller norm_group "
                "allows more, and remat saves memory with any"
            )
        if self.cutout % 2:
            raise ValueError(f"cutout must be even, got {self.cutout}")
        if self.jitter[3] > 0.5:
            raise ValueError(f"the hue of jitter must be at most 0.5, got {self.jitter[3]}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs, {self.epochs}, got {self.warmup_epochs}"
            )


_QUICK = TrainConfig()
_NASBENCH201 = dataclasses.replace(
    _QUICK, recipe="nasbench201", epochs=200, batch_size=256, num_cells=5
)
_DARTS_CIFAR10 = TrainConfig(
    recipe="darts-cifar10",
    epochs=600,
    batch_size=96,
    learning_rate=0.025,
    nesterov=False,
    weight_decay=3e-4,
    clip=5.0,
    auxiliary_weight=0.4,
    drop_path=0.2,
    cutout=16,
    init_channels=36,
    num_cells=20,
)
_DARTS_CIFAR100 = dataclasses.replace(
    _DARTS_CIFAR10,
    recipe="darts-cifar100",
    learning_rate=0.035,
    final_learning_rate=0.001,
    auxiliary_weight=0.6,
    drop_path=0.3,
)
_DARTS_IMAGENET = dataclasses.replace(
    _DARTS_CIFAR10,
    recipe="darts-imagenet",
    epochs=250,
    batch_size=1024,
    norm_group=128,
    learning_rate=0.5,
    schedule="linear",
    warmup_epochs=5,
    weight_decay=3e-5,
    label_smoothing=0.1,
    drop_path=0.0,
    crop="resized",
    cutout=0,
    jitter=(0.4, 0.4, 0.4, 0.2),
    init_channels=48,
    num_cells=14,
    stem="imagenet",
    image_size=224,
)

RECIPES: dict[str, TrainConfig] = {
    recipe.recipe: recipe
    for recipe in (_QUICK, _NASBENCH201, _DARTS_CIFAR10, _DARTS_CIFAR100, _DARTS_IMAGENET)
}
"""The recipes by name.

`nasbench201` is how the benchmark trained (Dong and Yang, 2020); `quick` is like it, with a smaller
network, fewer epochs and smaller batches. Those of DARTS are what the authors of NASI released with
HNAS, and very likely NASI's own; its 1,024 images of ImageNet on 8 devices have statistics over 128
each. Differently from all of them, learning rates change at every step rather than every epoch, a
last batch that the images do not fill is left out, the linear schedule falls on one slope, and
images of other shapes are squeezed to squares, for `darts-imagenet` of 256 pixels, before they are
cropped, in training and in tests.
"""
