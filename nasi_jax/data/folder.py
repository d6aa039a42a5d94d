"""A folder of images, one folder a class, read image by image as they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nasi_jax.data.dataset import Dataset, Read, measured_sample
from nasi_jax.data.image import CHANNELS, decode

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""What the names of image files end with, in lower or upper case."""

_TRAIN = "train"
_TEST = ("test", "val", "validation")

_LAYOUT = (
    "images lie in DIR/CLASS/*.png (or .jpg and the like), or in DIR/train/CLASS/* and "
    "DIR/test/CLASS/* (or val, validation)"
)


def load(name: str, split: str, image_size: int) -> Dataset:
    """Opens the images of a folder.

    Args:
      name: its path.
      split: which images; those of `test` are in a folder of their own.
      image_size: height and width that they are brought to.

    Raises:
      ValueError: if the images are not where they are looked for, or are of one class only.
    """
    root = Path(name)
    # A class may be called train: such a folder holds images, and no folders.
    splits = [part for part in (_TRAIN, *_TEST) if _folders(root / part)]
    if splits and _TRAIN not in splits:
        raise ValueError(f"{name} has {splits[0]} but no {_TRAIN} that holds classes; {_LAYOUT}")
    train = root / _TRAIN if splits else root
    class_names = _folders(train)
    if not class_names:
        raise ValueError(f"{train} holds no folder of images; {_LAYOUT}")
    files = _files(train, class_names)
    if empty := [each for each in class_names if not files[each]]:
        raise ValueError(f"{train / empty[0]} holds no image; {_LAYOUT}")
    if len(class_names) < 2:
        raise ValueError(
            f"{train} must hold at least 2 classes, got only {class_names[0]}; {_LAYOUT}"
        )
    read_train, num_examples = _reader(files, class_names)
    normalization = measured_sample(read_train, num_examples)
    read = read_train
    if split == "test":
        found = [part for part in _TEST if part in splits]
        if not found:
            raise ValueError(f"{name} has no test images; {_LAYOUT}")
        test = root / found[0]
        if unknown := [each for each in _folders(test) if each not in class_names]:
            raise ValueError(f"{test} has the class {unknown[0]}, which {train} has not; {_LAYOUT}")
        read, num_examples = _reader(_files(test, class_names), class_names)
        if not num_examples:
            raise ValueError(f"{test} holds no image; {_LAYOUT}")
    return Dataset(
        name=name,
        class_names=tuple(class_names),
        num_examples=num_examples,
        image_shape=(image_size, image_size, CHANNELS),
        **normalization._asdict(),
        read=read,
    )


def _folders(folder: Path) -> list[str]:
    """Names of subfolders, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(
        each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )


def _files(folder: Path, class_names: list[str]) -> dict[str, list[str]]:
    """The image files of each class, in the order of their paths."""
    return {
        each: sorted(
            os.path.join(parent, file)
            for parent, _, files in os.walk(folder / each)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        for each in class_names
    }


def _reader(
    files: dict[str, list[str]], class_names: list[str]
) -> tuple[Callable[[np.ndarray], Read], int]:
    """The read function of a list of image files, and the number of images."""
    paths = [path for each in class_names for path in files[each]]
    labels = np.repeat(np.arange(len(class_names)), [len(files[each]) for each in class_names])

    def read(indices: np.ndarray) -> Read:
        images = [decode(Path(paths[index]), paths[index]) for index in indices]
        return images, labels[indices]

    return read, len(paths)
