"""Named data sets, and their mini-batches as a pure function of a key and a step.

`digits` and `gaussian` need no download, a path leads to the user's own images or to an archive
as it was downloaded, and any other name is a data set that tensorflow-datasets has prepared on
this machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from nasi_jax.config import LABELS
from nasi_jax.data import archives, folder, generated, npz, parquet, tfds
from nasi_jax.data.dataset import ACCEPTED, Dataset
from nasi_jax.data.image import decode, resize
from nasi_jax.storage.files import at

__all__ = ["SPLITS", "Dataset", "decode", "load", "of_seeds", "resize"]

SPLITS = ("all", "train", "test")
"""Which images of a data set: all that it gives for training; those, less the test images where
it has none apart; or the test images."""

_NPZ, _PARQUET = ".npz", ".parquet"
_TAR = (".tar.gz", ".tgz", ".tar")


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

    Images are resized bilinearly to squares, grayscale is repeated to 3 channels, and each
    channel is normalized by the mean and the standard deviation of the original training images,
    whatever the split: the usual constants for the archives of CIFAR and for `cifar10`, `cifar100`
    and `imagenet2012`, those of a fixed sample of at most 1,000 examples for folders, parquet
    files and other sets of tensorflow-datasets, and of all training images otherwise. The classes
    too are those of the training images.

    Args:
      name: `digits` or `gaussian`, a path, or a name in tensorflow-datasets. What ends in `.npz`,
        `.tar.gz`, `.tgz`, `.tar` or `.parquet`, or begins with a dot or a slash, is a path, and so
        is what has a slash and is there. What a file is, is told from its content:
        `digits`: the 1,797 digits of 8 x 8 pixels that come with scikit-learn;
        `gaussian`: 50,000 images of independent standard normal pixels, as they are, with
        uniformly random labels of 10 classes, a pure function of the seed and the index;
        an npz file: arrays `x_train` (`[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or
        floating) and `y_train` (`[N]` or `[N, 1]`, integers from 0), whose classes are 0 to the
        largest label, and for `test` `x_test` and `y_test` besides;
        an archive of CIFAR-10 or CIFAR-100 (with its 100 fine labels) as it is downloaded,
        `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz` and the same of CIFAR-100, read into
        memory without executing anything in it;
        a folder of images, `CLASS/*.png` (or `.jpg` and the like; folders in it are searched too),
        or `train/CLASS/*` and `test/CLASS/*` (or `val`, `validation`), whose classes are the sorted
        names of the folders, read image by image as they are asked for;
        a parquet file of Hugging Face's form, with a column `image` or `img` of encoded images and
        a column `label`, `labels` or `fine_label` of integers, whose classes are those that its
        description names, or 0 to the largest label; or a folder of such files, `train-*.parquet`
        and `test-*.parquet` (or `validation`, `val`), read a row group at a time;
        else a data set of tensorflow-datasets, prepared on disk as array_record files, and read
        example by example as they are asked for.
      split: `all`: all images that the data set gives for training, and all digits;
        `train`: the same, but of the digits the first 1,500;
        `test`: images that are in neither: of `digits` the last 297, of `gaussian` 10,000 further
        ones, of files and folders those that they keep apart, of tensorflow-datasets the split
        `test`, or `validation` where there is no `test` and for `imagenet2012`, whose `test` has no
        labels.
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
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    of_seed = of_seeds(name, split=split, labels=labels, image_size=image_size, data_dir=data_dir)
    return of_seed(seed)


def of_seeds(
    name: str,
    *,
    split: str = "all",
    labels: str = "true",
    image_size: int = 32,
    data_dir: str | None = None,
) -> Callable[[int], Dataset]:
    """Opens the images of a data set once, for runs of several seeds.

    Args:
      name: as for `load`, as are the others.
      split: which images.
      labels: `true`, or `random`.
      image_size: height and width of the images.
      data_dir: where tensorflow-datasets keeps its data sets.

    Returns:
      The function that gives the data set of a seed, as `load` does: of what it reads, only random
      labels and images are made anew.

    Raises:
      ValueError: as `load` does.
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
    opened = None if name == "gaussian" else _opened(name, split, image_size, data_dir)

    def of_seed(seed: int) -> Dataset:
        dataset = opened or generated.gaussian(split, image_size, seed)
        if labels == "true":
            return dataset
        chosen = generated.random_labels(split, seed, dataset.num_classes, dataset.num_examples)
        return dataclasses.replace(
            dataset, read=lambda indices: (dataset.read(indices)[0], chosen[indices])
        )

    return of_seed


def _opened(name: str, split: str, image_size: int, data_dir: str | None) -> Dataset:
    if name == "digits":
        return generated.digits(split, image_size)
    if _is_path(name):
        return _reader_of(name)(name, split, image_size)
    return tfds.load(name, split, image_size, data_dir)


def _is_path(name: str) -> bool:
    if name.startswith((".", "/")) or name.endswith((*_TAR, _NPZ, _PARQUET)):
        return True
    # Names in tensorflow-datasets may have a slash too; one without is never a folder, so that
    # `cifar10` is the same in whatever folder the command is given.
    return "/" in name and Path(name).exists()


def _reader_of(name: str) -> Callable[[str, str, int], Dataset]:
    """What reads a path: maps it, the split, and the size of the images."""
    path = Path(name)
    if not path.exists():
        raise ValueError(f"there is no file or folder {name}; {ACCEPTED}")
    if path.is_dir():
        return parquet.load if parquet.files_in(path) else folder.load
    with at(name), path.open("rb") as file:
        head = file.read(512)
    if name.endswith(_NPZ) or head.startswith(b"PK\x03\x04"):
        return npz.load
    if name.endswith(_PARQUET) or head.startswith(b"PAR1"):
        return parquet.load
    if name.endswith(_TAR) or head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return archives.load
    raise ValueError(f"{name} is not a file that can be read; {ACCEPTED}")
