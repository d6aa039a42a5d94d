"""How a network is trained: a frozen dataclass, and published recipes by name."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from nasi_jax.config import Count, Images, Network, Share, Step, Weight, settings
from nasi_jax.types import Initializer, MatmulPrecision, Stem

Schedule = Literal["cosine", "linear"]
"""How the learning rate falls."""

Crop = Literal["none", "pad", "resized"]
"""A random window of each image: of its own size after padding by 4, or of any, resized."""

Recipe = Literal["quick", "nasbench201", "darts-cifar10", "darts-cifar100", "darts-imagenet"]
"""The keys of `RECIPES`."""

Rate = Annotated[float, Field(ge=0.0, le=1e6)]


@settings
class TrainConfig(Step, Network, Images):
    """What a training depends on, besides the genotype. The defaults are the recipe `quick`.

    Attributes:
      recipe: the name of what the settings began as. The command line begins with them; elsewhere
        they are `RECIPES[name]`.
      space: the space of the genotype, if it is none of ours: as for a search.
      data: digits (no download), the path of images, or the name of a data set that
        tensorflow-datasets has prepared, such as cifar10. A path is that of an .npz with x_train,
        y_train, x_test and y_test, of an archive such as cifar-10-python.tar.gz as it is
        downloaded, of a folder with train and test and in each a folder of images for each class,
        or of a folder of parquet files, train-*.parquet and test-*.parquet, as Hugging Face has
        them.
      epochs: how often the training goes through the images.
      batch_size: examples in a step.
      learning_rate: the highest one.
      final_learning_rate: the one at the end.
      schedule: how it falls from the highest to the final one.
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
      norm_group: how many examples share the statistics of normalization, as those of one device
        where a recipe is for several; the whole batch if not given.
      remat: whether to keep only what passes between cells, for the same result in less memory.
      init_channels: channels of the first cells; NAS-Bench-101's networks have their own size.
      num_cells: cells; in NAS-Bench-201, cells in each of the 3 stages. As few as there can be if
        not given: 3 in all, or 1 in each stage.
      stem: cifar, or imagenet (images are halved three times first), of darts.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    init: Initializer = "pytorch"
    matmul_precision: MatmulPrecision = "default"
    recipe: Recipe = "quick"
    space: str | None = None
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 15
    batch_size: Count = 64
    learning_rate: Rate = 0.1
    final_learning_rate: Rate = 0.0
    schedule: Schedule = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: Rate = 5e-4
    clip: Weight = 0.0
    label_smoothing: Share = 0.0
    auxiliary_weight: Rate = 0.0
    drop_path: Annotated[float, Field(ge=0.0, le=0.999)] = 0.0
    crop: Crop = "pad"
    flip: bool = True
    cutout: Annotated[int, Field(ge=0, le=2**15)] = 0
    jitter: tuple[Share, Share, Share, Share] = (0.0, 0.0, 0.0, 0.0)
    norm_group: Count | None = None
    remat: bool = False
    init_channels: int = 16
    num_cells: int | None = None
    stem: Stem = "cifar"

    def __post_init__(self) -> None:
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
