"""The archives of CIFAR-10 and CIFAR-100 as they are downloaded, in Python's or the binary form.

Nothing in them is executed, nor unpacked to the disk.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, NamedTuple, cast

import numpy as np

from nasi_jax.data.dataset import Dataset, Examples, known
from nasi_jax.data.image import CHANNELS
from nasi_jax.storage import pickles
from nasi_jax.storage.files import at, unpacked

_SIDE = 32
_PIXELS = CHANNELS * _SIDE**2


class _Layout(NamedTuple):
    """One of the archives.

    Attributes:
      data_set: what it is an archive of.
      train: the files of the training images.
      test: the file of the test images.
      meta: the file that names the classes.
      names_key: in Python's form, what the meta file calls the names.
      labels_key: in Python's form, what the others call the labels.
      label_bytes: in the binary form, how many bytes before each image are labels, of which the
        last is the finest.
    """

    data_set: str
    train: tuple[str, ...]
    test: str
    meta: str
    names_key: bytes = b""
    labels_key: bytes = b""
    label_bytes: int = 0

    def names(self, content: bytes) -> list[str]:
        """The names of the classes."""
        if self.label_bytes:
            names = content.decode().split()
        else:
            names = [name.decode() for name in _unpickled(content)[self.names_key]]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"must name at least 2 different classes, got {names}")
        return names

    def examples(self, content: bytes) -> Examples:
        """Images `[N, 3, 32, 32]` and labels `[N]`, neither of which is a copy."""
        if self.label_bytes:
            rows = np.frombuffer(content, np.uint8).reshape(-1, self.label_bytes + _PIXELS)
            images, labels = rows[:, self.label_bytes :], rows[:, self.label_bytes - 1]
        else:
            batch = _unpickled(content)
            images, labels = batch[b"data"].values, np.array(batch[self.labels_key])
        wrong_images = images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,) or not images.size
        if wrong_images or labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"must hold images [N, {_PIXELS}] in uint8 and integer labels [N], got "
                f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
            )
        return images.reshape(-1, CHANNELS, _SIDE, _SIDE), labels


_LAYOUTS = (
    _Layout(
        "cifar10",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        names_key=b"label_names",
        labels_key=b"labels",
    ),
    _Layout(
        "cifar10",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        label_bytes=1,
    ),
    _Layout(
        "cifar100",
        ("train",),
        "test",
        "meta",
        names_key=b"fine_label_names",
        labels_key=b"fine_labels",
    ),
    _Layout("cifar100", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def load(name: str, split: str, image_size: int) -> Dataset:
    """Reads the images of an archive into memory.

    Args:
      name: its path.
      split: which images.
      image_size: height and width that they are brought to.

    Raises:
      ValueError: if it is none of the four archives, or is damaged.
    """
    with at(name):
        layout, contents = _contents(Path(name), split)
        with at(layout.meta):
            class_names = layout.names(contents.pop(layout.meta))
        parts = []
        for member in tuple(contents):
            with at(member):
                images, labels = layout.examples(contents.pop(member))
                lowest, highest = labels.min(), labels.max()
                if lowest < 0 or highest >= len(class_names):
                    raise ValueError(
                        f"labels must be from 0 to {len(class_names) - 1}, as {layout.meta} names "
                        f"them, got {lowest} to {highest}"
                    )
            parts.append((images.transpose(0, 2, 3, 1), labels))
    labels = np.concatenate([labels for _, labels in parts])
    images = np.empty((len(labels), _SIDE, _SIDE, CHANNELS), np.uint8)
    np.concatenate([images for images, _ in parts], out=images)
    return Dataset(
        name=name,
        class_names=tuple(class_names),
        num_examples=len(images),
        image_shape=(image_size, image_size, CHANNELS),
        **known(layout.data_set)._asdict(),
        read=lambda indices: (images[indices], labels[indices]),
    )


def _contents(path: Path, split: str) -> tuple[_Layout, dict[str, bytes]]:
    """The layout of an archive, and the contents of the files of a split, in order."""
    needed = {
        layout: (layout.meta, *((layout.test,) if split == "test" else layout.train))
        for layout in _LAYOUTS
    }
    wanted = {member for members in needed.values() for member in members}
    found: dict[str, bytes] = {}
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        size = path.stat().st_size
        stream = (
            unpacked(cast(IO[bytes], gzip.GzipFile(fileobj=file)), size) if compressed else file
        )
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                base = PurePosixPath(member.name).name
                content = archive.extractfile(member) if base in wanted else None
                if content:
                    # Of a sparse one the archive holds less than is read.
                    found[base] = unpacked(content, size).read()
        while stream.read(1 << 20):  # to its end, where its checksum is
            pass
    layout = max(_LAYOUTS, key=lambda layout: len(found.keys() & needed[layout]))
    missing = [member for member in needed[layout] if member not in found]
    if len(missing) == len(needed[layout]):
        raise ValueError("it holds none of the files of CIFAR-10 or CIFAR-100")
    if missing:
        raise ValueError(f"it is incomplete: {', '.join(missing)} missing, of {layout.data_set}")
    return layout, {member: found[member] for member in needed[layout]}


class _Unpickler(pickles.Unpickler):
    admitted: ClassVar = pickles.ARRAYS


def _unpickled(content: bytes) -> dict[bytes, Any]:
    # As Python 2 wrote them, whose strings are bytes.
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()
