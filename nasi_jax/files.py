"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under another name, and gives it its own once it is on the disk.

    Raises:
      OSError: if that fails; what the file held before is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_absent(path: Path, *, overwrite: bool) -> None:
    """Refuses a file that is there already, unless `overwrite` is set.

    Raises:
      ValueError: if it is refused.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: replace it with --overwrite")


def write(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Writes a file that is not there yet.

    Raises:
      ValueError: if the file is there and `overwrite` is not set, or it cannot be written.
    """
    check_absent(path, overwrite=overwrite)
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def json_text(content: Any) -> str:
    """An object as the text of a JSON file."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
