"""Pickles read without executing anything in them: only a few harmless names are admitted."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import IO, Any, ClassVar

import numpy as np


class Unpickler(pickle.Unpickler):
    """Refuses every name but those that a subclass admits.

    Attributes:
      admitted: what the names in a pickle stand for, by module and name.
    """

    admitted: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, file: IO[bytes], *, encoding: str = "ASCII") -> None:
        super().__init__(_Checked(file), encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for.

        Raises:
          pickle.UnpicklingError: if it is not admitted.
        """
        full_name = f"{module}.{name}"
        if full_name in self.admitted:
            return self.admitted[full_name]
        raise pickle.UnpicklingError(
            f"the pickle asks for {full_name}, which is refused; admitted are "
            f"{', '.join(self.admitted)}"
        )


class _Checked:
    """A file of pickles whose memo is no larger than what was read of it.

    CPython keeps the memo in an array, which is as long as the largest index that the file names:
    four bytes ask for gigabytes. Without `peek` it reads one operation after another, the code
    first, so that two calls in a row tell which it is. Of a frame it would read the operations at
    once, so a frame is read as an empty one with its operations behind it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.code, self.num_read = file, b"", 0

    def read(self, size: int) -> bytes:
        content, code = self.file.read(size), self.code
        self.num_read += len(content)
        self.code = content if size == 1 else b""
        if size == 4 and code == pickle.LONG_BINPUT:
            self._check(int.from_bytes(content, "little"))
        return bytes(8) if size == 8 and code == pickle.FRAME else content

    def readinto(self, buffer: memoryview) -> int:
        num_read = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self.num_read += num_read
        self.code = b""
        return num_read

    def readline(self) -> bytes:
        line, code = self.file.readline(), self.code
        self.num_read += len(line)
        self.code = b""
        if code == pickle.PUT:
            self._check(int(line))  # as CPython parses it
        return line

    def _check(self, index: int) -> None:
        if index > self.num_read:
            raise pickle.UnpicklingError(
                f"the pickle names {index} as a place in its memo within {self.num_read} bytes"
            )


class Array:
    """What a numpy array of numbers is read as.

    Attributes:
      values: the array.
    """

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, columns_first, content = state
        values = np.frombuffer(content, dtype.of_number())
        self.values = values.reshape(shape, order="F" if columns_first else "C")


class _Dtype:
    def __init__(self, name: str | bytes, *_: object):
        self.name = _text(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name = _text(state[1]) + self.name  # the byte order

    def of_number(self) -> str:
        if not re.fullmatch(r"[<>|][fiu][1248]", self.name):
            raise ValueError(
                f"a numpy scalar or array must be of numbers, got the dtype {self.name!r}"
            )
        return self.name


def _text(text: str | bytes) -> str:
    # Python 2's strings are bytes to who reads them with encoding="bytes".
    return text.decode("latin1") if isinstance(text, bytes) else text


def _scalar(dtype: _Dtype, content: bytes) -> float:
    return np.frombuffer(content, dtype.of_number()).item()


def _reconstruct(*_: object) -> Array:
    return Array()  # empty, until its state is set


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_DTYPE = {
    "_codecs.encode": _latin1,  # how protocol 2 of Python 3 writes bytes
    "numpy.dtype": _Dtype,
}

NUMBERS: Mapping[str, Any] = {
    **_DTYPE,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
"""To be admitted where numpy's numbers are expected; they become Python's."""

ARRAYS: Mapping[str, Any] = {
    **_DTYPE,
    "numpy.ndarray": Array,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
}
"""To be admitted where numpy's arrays are expected; they become an `Array`."""
