"""A data set: labelled images, and their mini-batches as a pure function of a key and a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.data.image import CHANNELS, resize
from nasi_jax.types import Batch

_STATISTICS_EXAMPLES = 1_000
_PIXELS_AT_ONCE = 100_000
MOST_CLASSES = 1_000_000
"""Of a data set without names of them: more are a wrong label, and would fill the memory."""

# Mean and standard deviation of the training images on [0, 1], as everyone uses them.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

ACCEPTED = (
    "digits and gaussian need no download; a path may lead to an .npz file, an archive of CIFAR-10 "
    "or CIFAR-100 as it is downloaded (.tar.gz), a .parquet file, or a folder (with a slash: "
    "./NAME) of images by class or of .parquet files"
)
"""The data sets that need no tensorflow-datasets, in words."""

Examples = tuple[np.ndarray, np.ndarray]
"""Images `[N, H, W, C]` and labels `[N]`."""

Read = tuple[Sequence[np.ndarray], np.ndarray]
"""Images `[H, W, C]` of any size, and their labels `[B]`."""


class Normalization(NamedTuple):
    """Mean, standard deviation and scale of the images of a data set; see `Dataset`."""

    mean: np.ndarray
    std: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, normalized when they are fetched.

    Attributes:
      name: the name that it was loaded by.
      class_names: names of the classes; numbers where the data set has none.
      num_examples: number of examples.
      image_shape: `(H, W, C)` of the images that `fetch` returns.
      mean: per-channel mean `[C]` or `[1]` that `fetch` subtracts, in units of the raw images.
      std: per-channel standard deviation, like `mean`, that `fetch` divides by.
      scale: what raw images are divided by to lie on [0, 1]: 255 for uint8, the largest training
        value for floating ones (1 for `gaussian`, which doesn't lie there).
      read: maps indices `[B]` to `B` raw images `[H, W, C]` of any size, and labels `[B]`.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: int
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    scale: float
    read: Callable[[np.ndarray], Read] = dataclasses.field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def fetch(self, indices: np.ndarray) -> Batch:
        """Normalized examples at `indices`.

        Args:
          indices: integers `[B]` from 0 to `num_examples - 1`.

        Returns:
          Normalized float32 inputs `[B, H, W, C]` and int32 labels `[B]`.

        Raises:
          ValueError: if `indices` is empty, not integers `[B]`, or out of range.
        """
        images, labels = self.images(indices)
        return Batch(jnp.asarray((images - self.mean) / self.std), jnp.asarray(labels))

    def images(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw examples at `indices`, to be augmented and then normalized.

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
          Normalized float32 inputs `[B, H, W, C]` and int32 labels `[B]` of the examples that
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


def in_memory(name: str, train: Examples, opened: Examples, image_size: int) -> Dataset:
    """A data set of arrays in memory, with classes and statistics of the training examples."""
    train_images, train_labels = train
    images, labels = opened
    return Dataset(
        name=name,
        class_names=numbered(int(train_labels.max()) + 1),
        num_examples=len(images),
        image_shape=(image_size, image_size, CHANNELS),
        **measured([train_images])._asdict(),
        read=lambda indices: (images[indices], labels[indices]),
    )


def numbered(num_classes: int) -> tuple[str, ...]:
    """Numbers as class names.

    Raises:
      ValueError: if there are too many.
    """
    if num_classes > MOST_CLASSES:
        raise ValueError(f"labels must be below {MOST_CLASSES:,}, got {num_classes - 1}")
    return tuple(map(str, range(num_classes)))


def known(name: str) -> Normalization:
    """Published normalization constants of a data set of uint8 images, one of `STATISTICS`."""
    mean, std = np.float32(255) * np.array(STATISTICS[name], np.float32)
    return Normalization(mean, std, 255.0)


def measured_sample(read: Callable[[np.ndarray], Read], num_examples: int) -> Normalization:
    """Normalization constants of a fixed sample of at most 1,000 examples; see `measured`."""
    sample = np.linspace(0, num_examples - 1, min(num_examples, _STATISTICS_EXAMPLES))
    return measured(read(np.array([index]))[0][0] for index in sample.astype(int))


def measured(images: Iterable[np.ndarray]) -> Normalization:
    """Normalization constants over all pixels of images `[..., C]`: mean, deviation, scale.

    The scale is 255 for uint8, else the largest value of all, or 1 if none is above 0.
    """
    count, mean, squares, largest = 0, np.zeros(1), np.zeros(1), -np.inf
    for image in images:
        pixels = image.reshape(-1, image.shape[-1])
        # In parts: float64 deviations of all of CIFAR-10 at once are 1.2 GB.
        for start in range(0, len(pixels), _PIXELS_AT_ONCE):
            part = pixels[start : start + _PIXELS_AT_ONCE]
            part_mean = part.mean(axis=0, dtype=np.float64)
            difference, total = part_mean - mean, count + len(part)
            squares = squares + np.square(part - part_mean).sum(axis=0)
            squares = squares + np.square(difference) * (count * len(part) / total)
            mean = mean + difference * (len(part) / total)
            count = total
        largest = max(largest, 255.0 if image.dtype == np.uint8 else float(image.max()))
    variance = squares / count
    # Rounding in the mean of a constant channel leaves a deviation of about 1e-16 of it.
    std = np.where(variance > np.square(1e-12 * mean), np.sqrt(variance), 1.0)
    scale = largest if largest > 0 else 1.0
    return Normalization(mean.astype(np.float32), std.astype(np.float32), scale)


# Only the current epoch of a few data sets: an order of ImageNet is 10 MB.
@functools.lru_cache(maxsize=4)
def _permutation(words: tuple[int, ...], num_examples: int) -> np.ndarray:
    return np.random.default_rng(words).permutation(num_examples)
