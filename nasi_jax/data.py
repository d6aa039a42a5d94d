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

SPLITS = ("all", "train", "test")
"""Which images of a data set: all that it gives for training; those, less the test images where
it has none apart; or the test images."""

_CHANNELS = 3
_DIGITS_TRAIN = 1_500
_GAUSSIAN_EXAMPLES = {"all": 50_000, "train": 50_000, "test": 10_000}
_GAUSSIAN_CLASSES = 10
_STATISTICS_EXAMPLES = 1_000

# Streams of random numbers of one seed. None is 0: numpy reads [seed, 0] as it reads [seed].
_LABEL_STREAM = {"all": 1, "train": 1, "test": 3}
_IMAGE_STREAM = {"all": 2, "train": 2, "test": 4}

# Mean and standard deviation of the training images on [0, 1], as everyone uses them.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

_OFFLINE = "digits, gaussian and a path to an .npz file need no download"

_Examples = tuple[np.ndarray, np.ndarray]
"""Images `[N, H, W, C]` and labels `[N]`."""

_Read = tuple[Sequence[np.ndarray], np.ndarray]
"""Images `[H, W, C]` of any size, and their labels `[B]`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, normalised when they are fetched.

    Attributes:
      name: the name that it was loaded by.
      num_classes: number of classes.
      class_names: their names; numbers where the data set has none.
      num_examples: number of examples.
      image_shape: `(H, W, C)` of the images that `fetch` returns.
      mean: per-channel mean `[C]` or `[1]` that `fetch` subtracts, in units of the raw images.
      std: per-channel standard deviation, like `mean`, that `fetch` divides by.
      scale: what raw images are divided by to lie on [0, 1]: 255 for uint8, the largest training
        value for floating ones (1 for `gaussian`, which doesn't lie there).
      read: maps indices `[B]` to `B` raw images `[H, W, C]` of any size, and labels `[B]`.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    num_examples: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    scale: float
    read: Callable[[np.ndarray], _Read] = dataclasses.field(repr=False)

    def fetch(self, indices: np.ndarray) -> Batch:
        """The examples at `indices`: the same ones whenever they are asked for.

        Args:
          indices: integers `[B]` from 0 to `num_examples - 1`.

        Returns:
          Normalised float32 inputs `[B, H, W, C]` and int32 labels `[B]`.

        Raises:
          ValueError: if `indices` is empty, not integers `[B]`, or out of range.
        """
        images, labels = self.images(indices)
        return Batch(jnp.asarray((images - self.mean) / self.std), jnp.asarray(labels))

    def images(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at `indices` before they are normalised, for who augments them first.

        Args:
          indices: integers `[B]` from 0 to `num_examples - 1`.

        Returns:
          Raw images `[B, H, W, C]`, in uint8 if the data set is and none had to be resized, else
          in float32, and int32 labels `[B]`.

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
        read, labels = self.read(indices)
        images = np.stack([resize(image, self.image_shape[0]) for image in read])
        if images.dtype != np.uint8:
            images = images.astype(np.float32, copy=False)
        images = np.broadcast_to(images, (len(indices), *self.image_shape))
        return images, np.asarray(labels, np.int32)

    def batch(self, key: jax.Array, step: int, batch_size: int) -> Batch:
        """The mini-batch of a step: a pure function of `(key, step)`, so that a run can resume.

        Args:
          key: random key, the same one at every step.
          step: the step, from 0.
          batch_size: number of examples `B`.

        Returns:
          Normalised float32 inputs `[B, H, W, C]` and int32 labels `[B]` of the examples that
          `indices` names.

        Raises:
          ValueError: if `batch_size` is below 1 or above `num_examples`, or `step` below 0.
        """
        return self.fetch(self.indices(key, step, batch_size))

    def indices(self, key: jax.Array, step: int, batch_size: int) -> np.ndarray:
        """Which examples are the mini-batch of a step: a pure function of `(key, step)`.

        Every epoch goes through the examples in a new order, each at most once: what doesn't
        fill a last batch is left out of that epoch.

        Args:
          key: random key, the same one at every step.
          step: the step, from 0.
          batch_size: number of examples `B`.

        Returns:
          Integers `[B]`.

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
        # A copy, because the order is kept.
        return order[position * batch_size : (position + 1) * batch_size].copy()


def load(
    name: str,
    *,
    split: str = "all",
    labels: str = "true",
    image_size: int = 32,
    seed: int = 0,
    data_dir: str | None = None,
) -> Dataset:
    """Opens the training images or the test images of a data set.

    Images are resized bilinearly to squares, greyscale is repeated to 3 channels, and each
    channel is normalised by the mean and the standard deviation of the original training images,
    whatever the split: the usual constants for `cifar10`, `cifar100` and `imagenet2012`, those of
    a fixed sample of at most 1,000 examples for other sets of tensorflow-datasets, and of all
    training images otherwise. The classes too are those of the training images.

    Args:
      name: one of
        `digits`: the 1,797 digits of 8 x 8 pixels that come with scikit-learn;
        `gaussian`: 50,000 images of independent standard normal pixels, as they are, with
        uniformly random labels of 10 classes, a pure function of the seed and the index;
        a path that ends in `.npz`: arrays `x_train` (`[N, H, W]`, `[N, H, W, 1]` or
        `[N, H, W, 3]`, uint8 or floating) and `y_train` (`[N]` or `[N, 1]`, integers from 0),
        whose classes are 0 to the largest label, and for `test` `x_test` and `y_test` besides;
        else a data set of tensorflow-datasets, prepared on disk as array_record files, and read
        example by example as they are asked for.
      split: `all`: all images that the data set gives for training, and all digits;
        `train`: the same, but of the digits the first 1,500;
        `test`: images that are in neither: of `digits` the last 297, of `gaussian` 10,000 further
        ones, of tensorflow-datasets the split `test`, or `validation` where there is no `test`
        and for `imagenet2012`, whose `test` has no labels.
      labels: `true`, or `random`: uniform over the classes, from the seed, the split (where `all`
        and `train` are the same) and the index alone.
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
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
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
        dataset = _gaussian(split, image_size, seed)
    elif name == "digits":
        dataset = _in_memory(name, *_digits(split), image_size)
    elif name.endswith(".npz"):
        dataset = _in_memory(name, *_npz(name, split), image_size)
    else:
        dataset = _tensorflow_datasets(name, split, image_size, data_dir)

    if labels == "true":
        return dataset
    random_labels = _random_labels(split, seed, dataset.num_classes, dataset.num_examples)
    return dataclasses.replace(
        dataset, read=lambda indices: (dataset.read(indices)[0], random_labels[indices])
    )


def _gaussian(split: str, image_size: int, seed: int) -> Dataset:
    shape = (image_size, image_size, _CHANNELS)
    num_examples = _GAUSSIAN_EXAMPLES[split]
    labels = _random_labels(split, seed, _GAUSSIAN_CLASSES, num_examples)

    def image(index: int) -> np.ndarray:
        generator = np.random.default_rng([seed, _IMAGE_STREAM[split], index])
        return generator.standard_normal(shape, dtype=np.float32)

    return Dataset(
        name="gaussian",
        num_classes=_GAUSSIAN_CLASSES,
        class_names=_numbered(_GAUSSIAN_CLASSES),
        num_examples=num_examples,
        image_shape=shape,
        mean=np.zeros(_CHANNELS, np.float32),
        std=np.ones(_CHANNELS, np.float32),
        scale=1.0,
        read=lambda indices: ([image(index) for index in indices], labels[indices]),
    )


def _in_memory(name: str, train: _Examples, opened: _Examples, image_size: int) -> Dataset:
    """The examples `opened`, with the classes and the statistics of the training examples."""
    train_images, train_labels = train
    images, labels = opened
    num_classes = int(train_labels.max()) + 1
    # In blocks: float64 deviations of all of CIFAR-10 at once are 1.2 GB.
    blocks = [train_images[start : start + 100] for start in range(0, len(train_images), 100)]
    mean, std = _moments(blocks)
    return Dataset(
        name=name,
        num_classes=num_classes,
        class_names=_numbered(num_classes),
        num_examples=len(images),
        image_shape=(image_size, image_size, _CHANNELS),
        mean=mean,
        std=std,
        scale=_scale([train_images]),
        read=lambda indices: (images[indices], labels[indices]),
    )


def _digits(split: str) -> tuple[_Examples, _Examples]:
    """The examples that the statistics are taken from, and those of the split."""
    # Inside the function: scikit-learn takes about a second to import.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images[..., None].astype(np.float32), digits.target
    if split == "all":
        return (images, labels), (images, labels)
    train = images[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN]
    test = images[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:]
    return train, test if split == "test" else train


def _npz(name: str, split: str) -> tuple[_Examples, _Examples]:
    """The training examples of an npz file, and those of the split."""
    train = _read_npz(name, "train")
    if split != "test":
        return train, train
    test = _read_npz(name, "test")
    kinds = [f"{images.dtype} of {images.shape[3]} channels" for images, _ in (train, test)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{name}: x_test must be like x_train, {kinds[0]}, got {kinds[1]}")
    if test[1].max() > train[1].max():
        raise ValueError(
            f"{name}: y_test must be from 0 to {train[1].max()}, the largest label of y_train, "
            f"got {test[1].max()}"
        )
    return train, test


def _read_npz(name: str, part: str) -> _Examples:
    """Images `[N, H, W, 1 or 3]`, uint8 or float32, and integer labels `[N]` of an npz file.

    They are `x_train` and `y_train` where `part` is `train`, and accordingly for `test`.
    """
    x, y = f"x_{part}", f"y_{part}"
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no file {name}; data sets without a file: digits, gaussian")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{name} must be an npz archive as numpy.savez writes it, and is not")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            arrays = [np.asarray(archive[key]) for key in (x, y) if key in keys]
    except Exception as error:  # a damaged or a pickled archive fails in many ways
        raise ValueError(
            f"{name} must hold {x} and {y} as plain arrays, without pickled objects: "
            f"{_one_line(error)}"
        ) from error
    if len(arrays) < 2:
        raise ValueError(f"{name} must hold the keys {x} and {y}, got {sorted(keys)}")
    images, labels = arrays

    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, _CHANNELS)):
        raise ValueError(
            f"{name}: {x} must be [N, H, W], [N, H, W, 1] or [N, H, W, 3], got {list(images.shape)}"
        )
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != 1):
        raise ValueError(f"{name}: {y} must be [N] or [N, 1], got {list(labels.shape)}")
    if len(images) != len(labels):
        raise ValueError(
            f"{name}: {x} and {y} must be equally long, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    if images.size == 0:
        raise ValueError(f"{name}: {x} must not be empty, got {list(images.shape)}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"{name}: {x} must be uint8 or floating, got {images.dtype}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: {y} must be integers, got {labels.dtype}")

    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for float32 is infinite: refused below
            images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise ValueError(f"{name}: {x} must be finite in float32, got NaN or infinity")
    classes = np.unique(labels)
    if classes[0] < 0 or classes[-1] >= np.iinfo(np.int32).max:
        raise ValueError(
            f"{name}: {y} must be integers from 0, in int32, got {classes[0]} to {classes[-1]}"
        )
    if len(classes) < 2:
        raise ValueError(f"{name}: {y} must hold at least 2 classes, got only {classes[0]}")
    return images.reshape(*images.shape[:3], -1), labels.reshape(-1)


def _tensorflow_datasets(name: str, split: str, image_size: int, data_dir: str | None) -> Dataset:
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

    def reader(*choices: str) -> tuple[Callable[[np.ndarray], _Read], int]:
        """The function that reads the first split of `choices` that exists, and its length."""
        found = [choice for choice in choices if choice in builder.info.splits]
        if not found:
            raise ValueError(
                f"data set {name!r} must have a split {' or '.join(map(repr, choices))}, "
                f"got {sorted(builder.info.splits)}"
            )
        try:
            source = builder.as_data_source(split=found[0])
        except Exception as error:  # mostly another file format
            raise ValueError(
                f"data set {name!r} in {builder.data_dir} cannot be read as array_record files "
                f"({_one_line(error)}); remove it or choose another data_dir, and {recipe}"
            ) from error
        files = builder.info.splits[found[0]].filepaths
        missing = [path for path in files if not path.exists()]
        if missing:
            raise ValueError(
                f"data set {name!r} is incomplete: {len(missing)} files such as {missing[0]} are "
                f"missing; remove it, and {recipe}"
            )

        def read(indices: np.ndarray) -> _Read:
            examples = source.__getitems__(indices.tolist())
            return [example["image"] for example in examples], np.array(
                [example["label"] for example in examples]
            )

        return read, len(source)

    test = ("validation",) if builder.name == "imagenet2012" else ("test", "validation")
    read, num_examples = reader(*(test if split == "test" else ("train",)))
    if builder.name in _STATISTICS:
        mean, std = np.float32(255) * np.array(_STATISTICS[builder.name], np.float32)
        scale = 255.0
    else:
        read_train, num_train = reader("train")
        sample = np.linspace(0, num_train - 1, min(num_train, _STATISTICS_EXAMPLES))
        images, _ = read_train(sample.astype(int))
        mean, std = _moments(images)
        scale = _scale(images)
    return Dataset(
        name=name,
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        num_examples=num_examples,
        image_shape=(image_size, image_size, _CHANNELS),
        mean=mean,
        std=std,
        scale=scale,
        read=read,
    )


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


def _random_labels(split: str, seed: int, num_classes: int, num_examples: int) -> np.ndarray:
    generator = np.random.default_rng([seed, _LABEL_STREAM[split]])
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


def _scale(blocks: Sequence[np.ndarray]) -> float:
    """255 for uint8, else the largest value of all blocks, or 1 if none is above 0."""
    if blocks[0].dtype == np.uint8:
        return 255.0
    largest = max(float(block.max()) for block in blocks)
    return largest if largest > 0 else 1.0


def resize(image: np.ndarray, size: int) -> np.ndarray:
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
