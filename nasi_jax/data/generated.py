"""Data sets that need no file: the digits of scikit-learn, noise, and random labels."""

from __future__ import annotations

import numpy as np

from nasi_jax.data.dataset import Dataset, in_memory, numbered
from nasi_jax.data.image import CHANNELS

_DIGITS_TRAIN = 1_500
_GAUSSIAN_EXAMPLES = {"all": 50_000, "train": 50_000, "test": 10_000}
_GAUSSIAN_CLASSES = 10

# Streams of random numbers of one seed. None is 0: numpy reads [seed, 0] as it reads [seed].
_LABEL_STREAM = {"all": 1, "train": 1, "test": 3}
_IMAGE_STREAM = {"all": 2, "train": 2, "test": 4}


def gaussian(split: str, image_size: int, seed: int) -> Dataset:
    """Images of independent standard normal pixels, with random labels."""
    shape = (image_size, image_size, CHANNELS)
    num_examples = _GAUSSIAN_EXAMPLES[split]
    labels = random_labels(split, seed, _GAUSSIAN_CLASSES, num_examples)

    def image(index: int) -> np.ndarray:
        generator = np.random.default_rng([seed, _IMAGE_STREAM[split], index])
        return generator.standard_normal(shape, dtype=np.float32)

    return Dataset(
        name="gaussian",
        class_names=numbered(_GAUSSIAN_CLASSES),
        num_examples=num_examples,
        image_shape=shape,
        mean=np.zeros(CHANNELS, np.float32),
        std=np.ones(CHANNELS, np.float32),
        scale=1.0,
        read=lambda indices: ([image(index) for index in indices], labels[indices]),
    )


def digits(split: str, image_size: int) -> Dataset:
    """The digits of scikit-learn; `all` has the statistics of all of them."""
    # Inside the function: scikit-learn takes about a second to import.
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = found.images[..., None].astype(np.float32), found.target
    every = images, labels
    train = images[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN]
    test = images[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:]
    opened = {"all": every, "train": train, "test": test}[split]
    return in_memory("digits", every if split == "all" else train, opened, image_size)


def random_labels(split: str, seed: int, num_classes: int, num_examples: int) -> np.ndarray:
    """Labels `[N]`, uniform over the classes."""
    generator = np.random.default_rng([seed, _LABEL_STREAM[split]])
    return generator.integers(num_classes, size=num_examples)
