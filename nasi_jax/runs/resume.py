"""`nasi resume`: tells what runs left behind, by their files."""

from __future__ import annotations

from pathlib import Path

from nasi_jax.runs import compare, rank, score, search, train
from nasi_jax.storage.directory import RunDirectory

ACCEPTED = (
    "the directory of a search, a training, a comparison or a ranking, or the .csv file of scores"
)
"""What can be resumed, in words."""


def verb_of(path: Path) -> str:
    """Finds out which command left the run at a path: search, train, score, compare or rank.

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
        raise ValueError(f"there is no run to resume at {path}: name {ACCEPTED}")
    if len(found) > 1:
        commands = " or ".join(f"nasi {verb}" for verb in found)
        raise ValueError(f"{path} holds several runs: choose one with {commands}, and --resume")
    return found[0]


def _begun(directory: RunDirectory) -> bool:
    return (directory.folder / directory.record).is_file()


def _is_training(path: Path) -> bool:
    """Whether settings name a genotype to train."""
    return "genotype" in RunDirectory(path, "search or training", ()).settings()


def _holds_ranking(path: Path) -> bool:
    """Scores that are called `scores.csv` may be there without a ranking, which has a table."""
    directory = rank.run_directory(path)
    return _begun(directory) and "table" in directory.settings()


_DIRECTORIES = {
    "search": lambda path: _begun(search.run_directory(path)) and not _is_training(path),
    "train": lambda path: _begun(train.run_directory(path)) and _is_training(path),
    "compare": lambda path: _begun(compare.run_directory(path)),
    "rank": _holds_ranking,
}
"""Whether a directory holds a run of a command."""
