"""Spaces and proxies of others: named as `module:name`, or brought by a package as entry points."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any


def find(name: str, known: Mapping[str, Any], group: str, what: str) -> Any:
    """What a name stands for.

    Args:
      name: a key of `known`, the name of an entry point, or `module:name`: the attribute of a
        module that Python finds, in the working directory too.
      known: our own.
      group: the group of the entry points, such as `nasi_jax.spaces`.
      what: a space or a proxy, in words.

    Raises:
      ValueError: if it stands for nothing, or cannot be imported; the message says what is known.
    """
    if name in known:
        return known[name]
    if ":" in name:
        if os.getcwd() not in sys.path:  # as for `python -m`, but not for an installed command
            sys.path.append(os.getcwd())
        return _loaded(EntryPoint(name, name, group))
    brought = {entry.name: entry for entry in entry_points(group=group)}
    if name in brought:
        return _loaded(brought[name])
    raise ValueError(
        f"unknown {what} {name!r}; known: {', '.join([*known, *brought])}, and module:name for one "
        f"of your own{did_you_mean(name, [*known, *brought])}"
    )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the known one that is nearest, if any is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def brought(group: str) -> list[Any]:
    """What the entry points of a group stand for, in the order of their names.

    Raises:
      ValueError: if one cannot be imported.
    """
    entries = sorted(entry_points(group=group), key=lambda entry: entry.name)
    return [_loaded(entry) for entry in entries]


def _loaded(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:  # whatever a module raises as it is imported
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot import {entry.name}: {' '.join(said.split())}") from error
