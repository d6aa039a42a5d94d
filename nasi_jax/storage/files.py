"""Atomic writes, JSON and csv text, and errors about files in one line."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import math
import os
import textwrap
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nasi_jax.devices import hosts

_LEAST_UNPACKED, _RATIO = 1 << 28, 100


def most_unpacked(packed: int) -> int:
    """Bytes that a compressed file of so many may unpack to: no table and no images reach it."""
    return max(_LEAST_UNPACKED, _RATIO * packed)


class _Unpacked(io.RawIOBase):
    def __init__(self, stream: Any, packed: int):
        self._read, self._most = stream.readinto, most_unpacked(packed)
        self._left = self._most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._read(memoryview(buffer)[: self._left + 1])
        self._left -= count
        if self._left < 0:
            raise ValueError(f"unpacks to more than {self._most:,} bytes, for so small a file")
        return count


def unpacked(stream: Any, packed: int) -> io.BufferedReader:
    """A stream that ends in an error where it would fill the memory.

    Args:
      stream: what unpacks a file, or a part of it, with `readinto`.
      packed: the size of the file in bytes.

    Returns:
      The stream, from which reading raises a `ValueError` beyond `most_unpacked(packed)` bytes.
    """
    return io.BufferedReader(_Unpacked(stream, packed))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file atomically: to a temporary name, synced, then renamed.

    Of several processes that run together the first alone writes; see `nasi_jax.devices.hosts`.

    Raises:
      OSError: if that fails; what the file held before is then still there.
    """
    if not hosts.is_writer():
        return
    path = Path(path)
    temporary = path.with_name(_TEMPORARY.format(path.name[:_NAMED], uuid.uuid4().hex))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_TEMPORARY, _NAMED = ".{}.{}.tmp", 50
"""The name of a file that is being written, with the first characters of its own in it."""


def unfinished(path: Path) -> Iterator[Path]:
    """What processes have left of a file that were killed as they wrote it."""
    return path.parent.glob(_TEMPORARY.format(glob.escape(path.name[:_NAMED]), 32 * "?"))


def check_absent(path: Path, *, overwrite: bool) -> None:
    """Raises if a file exists, unless `overwrite` is set.

    Raises:
      ValueError: if it is refused.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: replace it with --overwrite")


def write(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Writes a new file atomically.

    Raises:
      ValueError: if the file is there and `overwrite` is not set, or it cannot be written.
    """
    check_absent(path, overwrite=overwrite)
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def finite(value: float) -> float | None:
    """The number for JSON, which has no NaN and no infinity: None in place of these."""
    return value if math.isfinite(value) else None


def json_text(content: Any) -> str:
    """Serializes an object as JSON text."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Serializes a table as csv text, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


@contextlib.contextmanager
def at(place: object) -> Iterator[None]:
    """Converts any error of reading a file into a one-line ValueError that names the file."""
    try:
        yield
    except Exception as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: {' '.join(said.split())}") from error


def one_line(value: object) -> str:
    """The first line of an error message, shortened."""
    return textwrap.shorten(str(value).strip().partition("\n")[0], 160, placeholder=" ...")
