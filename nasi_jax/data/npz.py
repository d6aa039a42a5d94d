"""Images as arrays in an npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from nasi_jax.data.dataset import MOST_CLASSES, Dataset, Examples, in_memory
from nasi_jax.data.image import CHANNELS
from nasi_jax.storage.files import most_unpacked, one_line


def load(name: str, split: str, image_size: int) -> Dataset:
    """Reads the training or the test examples of an npz file."""
    train = _read(name, "train")
    if split != "test":
        return in_memory(name, train, train, image_size)
    test = _read(name, "test")
    kinds = [f"{images.dtype} of {images.shape[3]} channels" for images, _ in (train, test)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{name}: x_test must be like x_train, {kinds[0]}, got {kinds[1]}")
    if test[1].max() > train[1].max():
        raise ValueError(
            f"{name}: y_test must be from 0 to {train[1].max()}, the largest label of y_train, "
            f"got {test[1].max()}"
        )
    return in_memory(name, train, test, image_size)


def _read(name: str, part: str) -> Examples:
    """Images `[N, H, W, 1 or 3]`, uint8 or float32, and integer labels `[N]` of an npz file.

    They are `x_train` and `y_train` where `part` is `train`, and accordingly for `test`.
    """
    x, y = f"x_{part}", f"y_{part}"
    path = Path(name)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{name} must be an npz archive as numpy.savez writes it, and is not")
    try:
        # Opened here: of a damaged archive numpy leaves the file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = archive.files
            wanted = [info for info in archive.zip.infolist() if info.filename[:-4] in (x, y)]
            most = most_unpacked(path.stat().st_size)
            if sum(info.file_size for info in wanted) > most:
                raise ValueError(f"they unpack to more than {most:,} bytes, for so small a file")
            arrays = [np.asarray(archive[key]) for key in (x, y) if key in keys]
    except Exception as error:  # a damaged or a pickled archive fails in many ways
        raise ValueError(
            f"{name} must hold {x} and {y} as plain arrays, without pickled objects: "
            f"{one_line(error)}"
        ) from error
    if len(arrays) < 2:
        raise ValueError(f"{name} must hold the keys {x} and {y}, got {sorted(keys)}")
    images, labels = arrays

    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, CHANNELS)):
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
    if classes[0] < 0 or classes[-1] >= MOST_CLASSES:
        raise ValueError(
            f"{name}: {y} must be integers from 0, below {MOST_CLASSES:,}, got {classes[0]} to "
            f"{classes[-1]}"
        )
    if len(classes) < 2:
        raise ValueError(f"{name}: {y} must hold at least 2 classes, got only {classes[0]}")
    return images.reshape(*images.shape[:3], -1), labels.reshape(-1)
