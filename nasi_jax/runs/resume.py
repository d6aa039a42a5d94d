"""`nasi resume`: tells what runs left behind, by their files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from nasi_jax.runs import compare, rank, score, search
from nasi_jax.storage.directory import RunDirectory

ACCEPTED = (
    "the directory of a search, a selection, a training, a comparison or a ranking, or the .csv "
    "file of scores"
)
"""Where runs are, in words."""


def verb_of(path: Path) -> str:
    """Finds out which command left a run: search, select, train, score, compare or rank.

    Args:
      path: a directory, or the file of scores, which need not be there yet where the record of its
        settings is.

    Raises:
      ValueError: if there is no run, there are several, or it cannot be told which.
    """
    if path.suffix == ".csv":
        found = ["score"] if _begun(score.run_directory(path)) else []
    else:
        found = [verb for verb, is_there in _DIRECTORIES.items() if is_there(path)]
    if not found:
        raise ValueError(f"there is no run at {path}: name {ACCEPTED}")
    if len(found) > 1:
        commands = " or ".join(f"nasi {verb}" for verb in found)
        raise ValueError(f"{path} holds several runs: choose one with {commands}, and --resume")
    return found[0]


def _begun(directory: RunDirectory) -> bool:
    return (directory.folder / directory.record).is_file()


def _is_of(verb: str, path: Path) -> bool:
    """Whether settings are those of a training, which names a genotype, a selection or a search."""
    if not _begun(search.run_directory(path)):
        return False
    settings = RunDirectory(path, "search, selection or training", ()).settings()
    found = "train" if "genotype" in settings else "select" if "budget" in settings else "search"
    return found == verb


def _holds_ranking(path: Path) -> bool:
    """Scores that are called `scores.csv` may be there without a ranking, which has a table."""
    directory = rank.run_directory(path)
    return _begun(directory) and "table" in directory.settings()


_DIRECTORIES: dict[str, Callable[[Path], bool]] = {
    **{verb: functools.partial(_is_of, verb) for verb in ("search", "select", "train")},
    "compare": lambda path: _begun(compare.run_directory(path)),
    "rank": _holds_ranking,
}
"""Whether a directory holds a run of a command."""
