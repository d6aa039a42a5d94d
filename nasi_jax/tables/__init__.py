"""Accuracy tables of benchmarks: one interface over the files they come in.

Accuracies are percentages in every table, whatever the file's unit. Nothing in a file is
executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nasi_jax.tables import compact, nasbench101, nasbench201
from nasi_jax.tables.compact import write_csv
from nasi_jax.tables.table import ACCEPTED, Overlap, Table, merge, overlaps
from nasi_jax.types import OnProgress

__all__ = ["Overlap", "Table", "load", "load_all", "merge", "overlaps", "write_csv"]


def load(path: str | os.PathLike[str], *, on_progress: OnProgress = lambda progress: None) -> Table:
    """Reads the table of a benchmark, in any of the forms in which it is given away.

    What a file is, is told from its content:
      a csv or csv.gz file, as `write_csv` writes it: `arch_str` and any columns of numbers for
      NAS-Bench-201 and TransNAS-Bench-101; `hash`, `adjacency` (row-major bits), `ops` and any
      columns of numbers for NAS-Bench-101, whose accuracies (`val_108`, ...) are fractions in the
      file;
      `NATS-tss-v1_0-*-simple.tar` or the directory in it: read one cell at a time, in some
      minutes;
      `NAS-Bench-201-v1_*.pth`, or the one file `NATS-tss-v1_0-*.pickle.pbz2`: a single pickle,
      which takes about 6 times its unpacked size in memory (30 GB for v1_1); without progress;
      `nasbench_only108.tfrecord` or `nasbench_full.tfrecord`; checksums are not verified.

    The official files of NAS-Bench-201 give the accuracies `c10_test_200`, `c10valid_val_200`,
    `c10valid_test_200`, `c100_val_200`, `c100_test_200`, `in16_val_200`, `in16_test_200` after
    200 epochs, the same after 12, each the mean over the seeds, and on CIFAR-10 `params` and
    `flops` as counts; columns without any number are left out. Those of NAS-Bench-101 give
    `params` and, for every number of epochs, the mean over the repeats of `val_108`, `test_108`
    and `train_time_108` (seconds).

    Args:
      path: the file or directory.
      on_progress: called now and then as an official file is read, with the bytes of it that are
        done, or of a directory the files.

    Returns:
      The table.

    Raises:
      ValueError: if there is no such file, it is none of these or is damaged, a cell occurs
        twice, or a number is none or is an accuracy out of range.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file {path}; accepted are {ACCEPTED}")
    if path.is_dir():
        return nasbench201.read_files(path, on_progress)
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        return nasbench201.read_files(path, on_progress)
    if head.startswith(nasbench201.PICKLES):
        return nasbench201.read_pickle(path)
    if head[12:14] == b'["':
        return nasbench101.read(path, on_progress)
    return compact.read(path)


def load_all(
    paths: Sequence[str | os.PathLike[str]],
    *,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[Table, dict[str, Overlap]]:
    """Reads the tables of several files as one; see `load` and `merge`.

    Args:
      paths: the files, at least one. Where two have a number of a cell, the later file's stands.
      on_progress: as for `load`.

    Returns:
      The table, and by column how the last file and those before it differ.

    Raises:
      ValueError: as `load` and `merge` do.
    """
    if not paths:
        raise ValueError(f"there must be a table; accepted are {ACCEPTED}")
    *earlier, last = [load(path, on_progress=on_progress) for path in paths]
    if not earlier:
        return last, {}
    before = merge(earlier)
    return merge([before, last]), overlaps(before, last)
