"""Named data sets, and their mini-batches as a pure function of a key and a step.

`digits` and `gaussian` need no download, a path to an `.npz` file reads the user's own images,
and any other name is a data set that tensorflow-datasets has prepared on this machine.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.config import LABELS
from nasi_jax.types import Batch

_CHANNELS = 3
_GAUSSIAN_EXAMPLES = 50_000
_GAUSSIAN_CLASSES = 10
_STATISTICS_EXAMPLES = 1_000

# Streams of random numbers of one seed. None is 0: numpy reads [seed, 0] as it reads [seed].
_LABEL_STREAM = 1
_IMAGE_STREAM = 2

# Mean and standard deviation of the training images on [0, 1], as everyone uses them.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

_OFFLINE = "digits, gaussian and a path to an .npz file need no download"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, normalised when they are fetched.

    Attributes:
      name: the name that it was loaded by.
      num_classes: number of classes.
      num_examples: number of examples.
      image_shape: `(H, W, C)` of the images that `fetch` returns.
      mean: per-channel mean `[C]` or `[1]` that `fetch` subtracts, in units of the raw images.
      std: per-channel standard deviation, like `mean`, that `fetch` divides by.
      read: maps indices `[B]` to `B` raw images `[H, W, C]` of any size, and labels `[B]`.
    """

    name: str
    num_classes: int
    num_examples: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    read: Callable[[np.ndarray], tuple[Sequence[np.ndarray], np.ndarray]] = dataclasses.field(
        repr=False
    )

    def fetch(self, indices: np.ndarray) -> Batch:
        """The examples at `indices`: the same ones whenever they are asked for.

        Args:
          indices: integers `[B]` from 0 to `num_examples - 1`.

        Returns:
          Normalised float32 inputs `[B, H, W, C]` and int32 labels `[B]`.

        Raises:
          ValueError: if `indices` is empty, not integers `[B]`, or out of range.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or indices.size == 0:
            raise ValueError(
                "indices must be a non-empty integer array [B], "
                f"got {indices.dtype} {list(indices.shape)}"
            )
        if indices.min() < 0 or indices.max() >= self.num_examples:
            raise ValueError(
                f"indices must be from 0 to {self.num_examples - 1}, "
                f"got {indices.min()} to {indices.max()}"
            )
        images, labels = self.read(indices)
        inputs = np.stack([_resize(image, self.image_shape[0]) for image in images])
        inputs = (inputs - self.mean) / self.std
        inputs = np.broadcast_to(inputs, (len(indices), *self.image_shape))
        return Batch(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32))

    def batch(self, key: jax.Array, step: int, batch_size: int) -> Batch:
        """The mini-batch of a step: a pure function of `(key, step)`, so that a run can resume.

        Every epoch goes through the examples in a new order, each at most once: what doesn't
        fill a last batch is left out of that epoch.

        Args:
          key: random key, the same one at every step.
          step: the step, from 0.
          batch_size: number of examples `B`.

        Returns:
          Normalised float32 inputs `[B, H, W, C]` and int32 labels `[B]`.

        Raises:
          ValueError: if `batch_size` is below 1 or above `num_examples`, or `step` below 0.
        """
        if not 1 <= batch_size <= self.num_examples:
            raise ValueError(
                f"batch_size must be from 1 to {self.num_examples}, the examples of {self.name}, "
                f"got {batch_size}"
            )
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        epoch, position = divmod(step, self.num_examples // batch_size)
        words = jax.random.key_data(jax.random.fold_in(key, epoch))
        order = _permutation(tuple(words.tolist()), self.num_examples)
        return self.fetch(order[position * batch_size : (position + 1) * batch_size])


def load(
    name: str,
    *,
    labels: str = "true",
    image_size: int = 32,
    seed: int = 0,
    data_dir: str | None = None,
) -> Dataset:
    """Opens the training images of a data set.

    Images are resized bilinearly to squares, greyscale is repeated to 3 channels, and each
    channel is normalised by the mean and the standard deviation of the original images: the
    usual constants for `cifar10`, `cifar100` and `imagenet2012`, those of a fixed sample of at
    most 1,000 examples for other sets of tensorflow-datasets, and of all images otherwise.

    Args:
      name: one of
        `digits`: the 1,797 digits of 8 x 8 pixels that come with scikit-learn;
        `gaussian`: 50,000 images of independent standard normal pixels, as they are, with
        uniformly random labels of 10 classes, a pure function of the seed and the index;
        a path that ends in `.npz`: arrays `x_train` (`[N, H, W]`, `[N, H, W, 1]` or
        `[N, H, W, 3]`, uint8 or floating) and `y_train` (`[N]` or `[N, 1]`, integers from 0),
        whose classes are 0 to the largest label;
        else the `train` split of a tensorflow-datasets data set, prepared on disk as
        array_record files, and read example by example as they are asked for.
      labels: `true`, or `random`: uniform over the classes, from the seed and the index alone.
      image_size: height and width of the images, at least 8 and a multiple of 4, because the
        networks halve them twice.
      seed: of random labels and images, at least 0.
      data_dir: where tensorflow-datasets keeps its data sets; its own default if None.

    Returns:
      The data set.

    Raises:
      ValueError: if an argument is out of range, a file isn't as described, or a data set isn't
        on this machine.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    if image_size < 8 or image_size % 4:
        raise ValueError(
            f"image_size must be at least 8 and a multiple of 4, because the networks halve "
            f"images twice, got {image_size}"
        )
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")

    if name == "gaussian":
        dataset = _gaussian(image_size, seed)
    elif name == "digits":
        dataset = _in_memory(name, *_read_digits(), image_size)
    elif name.endswith(".npz"):
        dataset = _in_memory(name, *_read_npz(name), image_size)
    else:
        dataset = _tensorflow_datasets(name, image_size, data_dir)

    if labels == "true":
        return dataset
    random_labels = _random_labels(seed, dataset.num_classes, dataset.num_examples)
    return dataclasses.replace(
        dataset, read=lambda indices: (dataset.read(indices)[0], random_labels[indices])
    )


def _gaussian(image_size: int, seed: int) -> Dataset:
    shape = (image_size, image_size, _CHANNELS)
    labels = _random_labels(seed, _GAUSSIAN_CLASSES, _GAUSSIAN_EXAMPLES)

    def image(index: int) -> np.ndarray:
        generator = np.random.default_rng([seed, _IMAGE_STREAM, index])
        return generator.standard_normal(shape, dtype=np.float32)

    return Dataset(
        name="gaussian",
        num_classes=_GAUSSIAN_CLASSES,
        num_examples=_GAUSSIAN_EXAMPLES,
        image_shape=shape,
        mean=np.zeros(_CHANNELS, np.float32),
        std=np.ones(_CHANNELS, np.float32),
        read=lambda indices: ([image(index) for index in indices], labels[indices]),
    )


def _in_memory(name: str, images: np.ndarray, labels: np.ndarray, image_size: int) -> Dataset:
    # In blocks: float64 deviations of all of CIFAR-10 at once are 1.2 GB.
    mean, std = _moments([images[start : start + 100] for start in range(0, len(images), 100)])
    return Dataset(
        name=name,
        num_classes=int(labels.max()) + 1,
        num_examples=len(images),
        image_shape=(image_size, image_size, _CHANNELS),
        mean=mean,
        std=std,
        read=lambda indices: (images[indices], labels[indices]),
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    # Inside the function: scikit-learn takes about a second to import.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images[..., None].astype(np.float32), digits.target


def _read_npz(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, H, W, 1 or 3]`, uint8 or float32, and integer labels `[N]` of an npz file."""
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no file {name}; data sets without a file: digits, gaussian")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{name} must be an npz archive as numpy.savez writes it, and is not")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            arrays = [np.asarray(archive[key]) for key in ("x_train", "y_train") if key in keys]
    except Exception as error:  # a damaged or a pickled archive fails in many ways
        raise ValueError(
            f"{name} must hold x_train and y_train as plain arrays, without pickled objects: "
            f"{_one_line(error)}"
        ) from error
    if len(arrays) < 2:
        raise ValueError(f"{name} must hold the keys x_train and y_train, got {sorted(keys)}")
    images, labels = arrays

    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, _CHANNELS)):
        raise ValueError(
            f"{name}: x_train must be [N, H, W], [N, H, W, 1] or [N, H, W, 3], "
            f"got {list(images.shape)}"
        )
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise ValueError(f"{name}: y_train must be [N] or [N, 1], got {list(labels.shape)}")
    if len(images) != len(labels):
        raise ValueError(
            f"{name}: x_train and y_train must be equally long, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    if images.size == 0:
        raise ValueError(f"{name}: x_train must not be empty, got {list(images.shape)}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"{name}: x_train must be uint8 or floating, got {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: y_train must be integers, got {labels.dtype}")

    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for float32 is infinite: refused below
            images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ValueError(f"{name}: x_train must be finite in float32, got NaN or infinity")
    classes = np.unique(labels)
    if classes[0] < 0 or classes[-1] >= np.iinfo(np.int32).max:
        raise ValueError(
            f"{name}: y_train must be integers from 0, in int32, got {classes[0]} to {classes[-1]}"
        )
    if len(classes) < 2:
        raise ValueError(f"{name}: y_train must hold at least 2 classes, got only {classes[0]}")
    return images.reshape(*images.shape[:3], -1), labels.reshape(-1)


def _tensorflow_datasets(name: str, image_size: int, data_dir: str | None) -> Dataset:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"data set {name!r} was looked for in tensorflow-datasets, which cannot be imported "
            f"({_one_line(error)}): pip install 'nasi-jax[data]'; {_OFFLINE}"
        ) from error

    # Other names that tensorflow-datasets takes, such as huggingface:x, go to the network.
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", name):
        raise ValueError(
            f"data set {name!r} is no name in tensorflow-datasets (name, name/config or "
            f"name:1.2.3); {_OFFLINE}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        features = dict(builder.info.features.items())
    except Exception as error:  # each builder fails in its own way
        raise ValueError(
            f"tensorflow-datasets cannot open {name!r}: {_one_line(error)}; {_OFFLINE}"
        ) from error
    image, label = features.get("image"), features.get("label")
    if (
        not isinstance(image, tfds.features.Image)
        or image.shape[-1] not in (1, _CHANNELS)
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise ValueError(
            f"data set {name!r} must have an 'image' of 1 or 3 channels and a class 'label', "
            f"got {_one_line(image)} and {_one_line(label)} among {sorted(features)}"
        )

    # The files before anything else: what is missing, tensorflow-datasets looks for on the
    # network, for minutes. Its command `tfds build` fails on a plain installation.
    recipe = (
        "to prepare it, pip install tensorflow and run in Python: import tensorflow_datasets as "
        f"tfds; tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
        f".download_and_prepare(); {_OFFLINE}"
    )
    if not builder.is_prepared():
        raise ValueError(f"data set {name!r} is not prepared in {builder.data_dir}; {recipe}")
    if "train" not in builder.info.splits:
        raise ValueError(
            f"data set {name!r} must have a split 'train', got {sorted(builder.info.splits)}"
        )
    try:
        source = builder.as_data_source(split="train")
    except Exception as error:  # mostly another file format
        raise ValueError(
            f"data set {name!r} in {builder.data_dir} cannot be read as array_record files "
            f"({_one_line(error)}); remove it or choose another data_dir, and {recipe}"
        ) from error
    missing = [path for path in builder.info.splits["train"].filepaths if not path.exists()]
    if missing:
        raise ValueError(
            f"data set {name!r} is incomplete: {len(missing)} files such as {missing[0]} are "
            f"missing; remove it, and {recipe}"
        )

    def read(indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        examples = source.__getitems__(indices.tolist())
        return [example["image"] for example in examples], np.array(
            [example["label"] for example in examples]
        )

    if builder.name in _STATISTICS:
        mean, std = np.float32(255) * np.array(_STATISTICS[builder.name], np.float32)
    else:
        sample = np.linspace(0, len(source) - 1, min(len(source), _STATISTICS_EXAMPLES))
        mean, std = _moments(read(sample.astype(int))[0])
    return Dataset(
        name=name,
        num_classes=label.num_classes,
        num_examples=len(source),
        image_shape=(image_size, image_size, _CHANNELS),
        mean=mean,
        std=std,
        read=read,
    )


def _random_labels(seed: int, num_classes: int, num_examples: int) -> np.ndarray:
    generator = np.random.default_rng([seed, _LABEL_STREAM])
    return generator.integers(num_classes, size=num_examples)


# Only the current epoch of a few data sets: an order of ImageNet is 10 MB.
@functools.lru_cache(maxsize=4)
def _permutation(words: tuple[int, ...], num_examples: int) -> np.ndarray:
    return np.random.default_rng(words).permutation(num_examples)


def _moments(blocks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[C]` over all pixels of blocks `[..., C]`."""
    pixels = [block.reshape(-1, block.shape[-1]) for block in blocks]
    count = sum(map(len, pixels))
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in pixels) / count
    variance = sum(np.square(block - mean).sum(axis=0) for block in pixels) / count
    # Rounding in the mean of a constant channel leaves a deviation of about 1e-16 of it.
    std = np.where(variance > np.square(1e-12 * mean), np.sqrt(variance), 1.0)
    return mean.astype(np.float32), std.astype(np.float32)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize `[H, W, C] -> [size, size, C]`, antialiased, as `jax.image.resize`.

    In numpy, because JAX would compile once for every size that ImageNet's images have.
    """
    height, width, channels = image.shape
    if height == width == size:
        return image
    rows = _interpolation(height, size) @ image.reshape(height, -1)
    return _interpolation(width, size) @ rows.reshape(size, width, channels)


@functools.lru_cache(maxsize=1024)  # 64 digits in 2.9 ms instead of 5.5
def _interpolation(old: int, new: int) -> np.ndarray:
    """Weights `[new, old]` of old pixels in new ones: triangles as wide as the larger pixel."""
    centers = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) - centers) / max(old / new, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _one_line(value: object) -> str:
    # The first one: tensorflow-datasets goes on to list all the names that it knows.
    return textwrap.shorten(str(value).strip().partition("\n")[0], 160, placeholder=" ...")
