"""Parquet files of the form in which Hugging Face keeps images, read a row group at a time.

pyarrow is imported here alone, inside the function.
"""

from __future__ import annotations

import functools
import io
import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nasi_jax.data.dataset import Dataset, Read, measured_sample, numbered
from nasi_jax.data.image import CHANNELS, decode
from nasi_jax.storage.files import at, most_unpacked, one_line

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_TEST = ("test", "validation", "val")
_BYTES_KEPT = 1 << 30

_FORM = (
    f"a column {' or '.join(_IMAGES)} (a struct of bytes and path) and a column "
    f"{', '.join(_LABELS[:-1])} or {_LABELS[-1]} (integers)"
)


def files_in(folder: Path) -> bool:
    """Whether a folder holds parquet files."""
    return any(folder.glob("*.parquet"))


def load(name: str, split: str, image_size: int) -> Dataset:
    """Opens the images of a parquet file, or of a folder of files `train-*.parquet` and such.

    Args:
      name: the path.
      split: which images; those of `test` are in files of their own.
      image_size: height and width that they are brought to.

    Raises:
      ValueError: if pyarrow is not installed, a file is missing or damaged, or its columns are not
        of that form.
    """
    path = Path(name)
    train_files = _parts(path, "train") if path.is_dir() else [path]
    train = opened = _open(train_files)
    with at(name):
        class_names = train.class_names or numbered(int(train.labels.max()) + 1)
    _check_labels(train_files, train.labels, len(class_names))
    if train.labels.min() == train.labels.max():
        raise ValueError(f"{name} must hold at least 2 classes, got only {train.labels[0]}")
    if split == "test":
        if not path.is_dir():
            raise ValueError(
                f"{name} is one file, without test images: name a folder that holds "
                "train-*.parquet and test-*.parquet"
            )
        test_files = _parts(path, *_TEST)
        opened = _open(test_files)
        _check_labels(test_files, opened.labels, len(class_names))
    return Dataset(
        name=name,
        class_names=class_names,
        num_examples=len(opened.labels),
        image_shape=(image_size, image_size, CHANNELS),
        **measured_sample(train.read, len(train.labels))._asdict(),
        read=opened.read,
    )


def _check_labels(paths: list[Path], labels: np.ndarray, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{paths[0]}: labels must be from 0 to {num_classes - 1}, the classes of the training "
            f"images, got {labels.min()} to {labels.max()}"
        )


def _parts(folder: Path, *choices: str) -> list[Path]:
    """The files of the first split that exists, in order."""
    for choice in choices:
        pattern = re.compile(rf"{choice}(-(\d+)-of-(\d+).*|-.*)?\.parquet")
        found = {each: pattern.fullmatch(each.name) for each in sorted(folder.glob("*.parquet"))}
        paths = [each for each, match in found.items() if match]
        if not paths:
            continue
        numbers = {(int(match[2]), int(match[3])) for match in found.values() if match and match[2]}
        for total in {total for _, total in numbers}:
            if missing := [part for part in range(total) if (part, total) not in numbers]:
                raise ValueError(
                    f"{folder} is incomplete: {choice}-{missing[0]:05}-of-{total:05}.parquet is "
                    "missing"
                )
        return paths
    wanted = " or ".join(f"{choice}-*.parquet" for choice in choices)
    raise ValueError(f"{folder} must hold files {wanted}, and holds none")


class _Group(NamedTuple):
    """A row group: the file, its number there, its first row there, the column of the images."""

    path: Path
    number: int
    first: int
    column: str


class _Opened(NamedTuple):
    """What is read at once: labels `[N]`, and names of the classes where the files have them."""

    read: Callable[[np.ndarray], Read]
    labels: np.ndarray
    class_names: tuple[str, ...]


def _open(paths: list[Path]) -> _Opened:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            f"{paths[0]} needs pyarrow to be read, which cannot be imported ({one_line(error)}): "
            "pip install 'nasi-jax[parquet]'"
        ) from error

    def columns(schema: Any) -> tuple[str, str]:
        """The names of the images' and of the labels' columns."""
        types = {field.name: field.type for field in schema}
        binary = (pa.binary(), pa.large_binary())
        images = [
            name
            for name in _IMAGES
            if pa.types.is_struct(types.get(name, pa.null()))
            and any(field.name == "bytes" and field.type in binary for field in types[name])
        ]
        labels = [name for name in _LABELS if pa.types.is_integer(types.get(name, pa.null()))]
        if not images or not labels:
            found = ", ".join(f"{name}: {one_line(kind)}" for name, kind in types.items())
            raise ValueError(f"must have {_FORM}, got {found or 'no column'}")
        return images[0], labels[0]

    groups: list[_Group] = []
    starts, labels, largest = [0], [], 1
    class_names: tuple[str, ...] = ()
    for path in paths:
        with at(path), pq.ParquetFile(path) as file:
            image, label = columns(file.schema_arrow)
            size = path.stat().st_size
            if file.metadata.num_rows > size:  # a page of equal labels has no end
                raise ValueError(f"has {file.metadata.num_rows:,} rows in {size:,} bytes")
            column = file.read([label]).column(label)
            if column.null_count:
                raise ValueError(f"{label} must be there in every row, got {column.null_count} not")
            if len(column) != file.metadata.num_rows:
                raise ValueError(f"{label} has {len(column)} rows of {file.metadata.num_rows}")
            labels.append(column.to_numpy().astype(np.int64))
            class_names = class_names or _class_names(file.schema_arrow.metadata or {}, label)
            first = starts[-1]
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if group.total_byte_size > (most := most_unpacked(size)):
                    raise ValueError(f"unpacks to more than {most:,} bytes, for so small a file")
                groups.append(_Group(path, number, starts[-1] - first, image))
                starts.append(starts[-1] + group.num_rows)
                largest = max(largest, group.total_byte_size)
    if not starts[-1]:
        raise ValueError(f"{paths[0]} holds no image")

    # All of CIFAR-10 stays in memory, and of ImageNet what was read last.
    @functools.lru_cache(maxsize=max(1, _BYTES_KEPT // largest))
    def encoded(number: int) -> Any:
        """The images of a row group, as they are in the file."""
        group = groups[number]
        with at(group.path), pq.ParquetFile(group.path) as file:
            rows = file.read_row_group(group.number, columns=[f"{group.column}.bytes"])
            if rows.num_rows != (told := starts[number + 1] - starts[number]):
                raise ValueError(f"{group.column} has {rows.num_rows} rows of {told}")
            return rows.column(group.column)

    lock = threading.Lock()

    def image_at(index: int) -> np.ndarray:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        with lock:  # for those who read in several threads: each group once
            found = encoded(number)
        group, row = groups[number], index - starts[number]
        content = (found[row].as_py() or {}).get("bytes")
        name = f"{group.path}: row {group.first + row}"
        if content is None:
            raise ValueError(f"{name} has no bytes in {group.column}")
        return decode(io.BytesIO(content), name)

    every = np.concatenate(labels)

    def read(indices: np.ndarray) -> Read:
        # In the order of the file, so that no group is read twice.
        distinct, places = np.unique(indices, return_inverse=True)
        images = [image_at(index) for index in distinct.tolist()]
        return [images[place] for place in places], every[indices]

    return _Opened(read, every, class_names)


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...]:
    """The names that Hugging Face's description of the columns gives the classes, if any."""
    if b"huggingface" not in metadata:
        return ()
    with at("the metadata of huggingface"):
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label].get("names", ())))
