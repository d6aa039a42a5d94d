"""The official files of NAS-Bench-201 (Dong and Yang, 2020), and of NATS-Bench after it.

Nothing in them is executed: pickles are read by an unpickler that knows a handful of harmless
types.
"""

from __future__ import annotations

import bz2
import io
import math
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from nasi_jax.storage import pickles
from nasi_jax.storage.files import at, unpacked
from nasi_jax.tables.table import ACCEPTED, Table, checked
from nasi_jax.types import OnProgress, Progress

# Data set and split of the official results, by the name of the column without the epochs.
_NASBENCH201_RESULTS = {
    "c10_test": ("cifar10", "ori-test"),
    "c10valid_val": ("cifar10-valid", "x-valid"),
    "c10valid_test": ("cifar10-valid", "ori-test"),
    "c100_val": ("cifar100", "x-valid"),
    "c100_test": ("cifar100", "x-test"),
    "in16_val": ("ImageNet16-120", "x-valid"),
    "in16_test": ("ImageNet16-120", "x-test"),
}
_LEGACY_PTH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_ZIP = b"PK\x03\x04"
_BZ2 = b"BZh"
PICKLES = (_LEGACY_PTH, _ZIP, _BZ2)
"""What the files that `read_pickle` reads begin with."""


def read_files(path: Path, on_progress: OnProgress) -> Table:
    """Reads the files of a tar archive or a directory, one cell at a time."""
    rows = []
    for index, content, done, total in _nats_members(path):
        with at(f"{path}: architecture {index}"):
            with bz2.open(io.BytesIO(content)) as stream:
                by_epochs = _Unpickler(unpacked(stream, len(content))).load()
            rows.append(_nasbench201_row(index, by_epochs))
        on_progress(Progress("reading the table", total, done))
    if not rows:
        raise ValueError(
            f"{path} must hold files such as 000000.pickle.pbz2, got none; accepted are {ACCEPTED}"
        )
    with at(path):
        return _nasbench201_table(rows)


def _nats_members(path: Path) -> Iterator[tuple[int, bytes, int, int]]:
    """Index, content, and progress of the files of the architectures, one at a time."""
    member_name = re.compile(r"(\d+)\.pickle\.pbz2")
    if path.is_dir():
        matches = [match for file in path.iterdir() if (match := member_name.fullmatch(file.name))]
        for done, match in enumerate(matches, start=1):
            yield int(match[1]), (path / match[0]).read_bytes(), done, len(matches)
        return
    with at(path), path.open("rb") as file:
        total = file.seek(-512, os.SEEK_END) + 512
        if any(file.read()):
            raise ValueError("cut off: a tar archive ends with zeros")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                match = member_name.fullmatch(Path(member.name).name)
                content = archive.extractfile(member) if match else None
                if match and content:
                    # Of a sparse one the archive holds less than is read.
                    yield int(match[1]), unpacked(content, total).read(), file.tell(), total


def read_pickle(path: Path) -> Table:
    """Reads a single pickle of all cells."""
    with at(path), path.open("rb") as file:
        state = _unpickled(file, path.stat().st_size)
        if not isinstance(state, dict) or not isinstance(state.get("arch2infos"), dict):
            raise ValueError("must hold a dictionary with arch2infos, as NAS-Bench-201-v1_1 does")
        return _nasbench201_table(
            [_nasbench201_row(index, infos) for index, infos in state["arch2infos"].items()]
        )


def _unpickled(file: IO[bytes], size: int) -> Any:
    magic = file.read(4)
    file.seek(0)
    if magic == _ZIP:
        with zipfile.ZipFile(file) as archive:
            names = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(next(names, "data.pkl")) as content:
                return _Unpickler(unpacked(content, size)).load()
    if magic.startswith(_BZ2):
        with bz2.open(file) as content:
            return _Unpickler(unpacked(content, size)).load()
    for _ in range(3):  # torch's magic number, the version of its protocol, the system's sizes
        _Unpickler(file).load()
    return _Unpickler(file).load()


def _nothing(*_: object) -> None:
    return None


class _Unpickler(pickles.Unpickler):
    """Admits what the official files hold, in stand-ins; torch's tensors become None."""

    admitted: ClassVar = {
        "collections.OrderedDict": OrderedDict,
        "builtins.set": set,
        "__builtin__.set": set,
        **pickles.NUMBERS,
    }

    def find_class(self, module: str, name: str) -> Any:
        if re.fullmatch(
            r"torch\.(\w+Storage|_utils\._rebuild_(tensor|tensor_v2|parameter))", f"{module}.{name}"
        ):
            return _nothing
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> None:
        """The storage of a tensor, which is of no interest."""


def _nasbench201_row(index: int, by_epochs: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The `arch_str` and the numbers of one architecture, as the official API computes them."""
    # The names of NATS-Bench, and those of NAS-Bench-201 before it.
    results = {{"full": "200", "less": "12"}.get(key, key): by_epochs[key] for key in by_epochs}
    numbers: dict[str, float] = {"index": index}
    for epochs in ("200", "12"):
        for column, (dataset, split) in _NASBENCH201_RESULTS.items():
            trials = _trials(results.get(epochs), dataset)
            last = [
                trial["eval_acc1es"].get(f"{split}@{trial['epochs'] - 1}")
                for trial in trials.values()
            ]
            accuracies = [accuracy for accuracy in last if accuracy is not None]
            if accuracies:
                numbers[f"{column}_{epochs}"] = sum(accuracies) / len(accuracies)
    # CIFAR-10 only: the other data sets' networks have other heads.
    trials = _trials(results.get("200"), "cifar10") or _trials(results.get("12"), "cifar10-valid")
    if trials:
        # Where the seeds disagree, the official API trusts seed 888.
        trial = trials.get(888) or next(iter(trials.values()))
        numbers |= {"params": round(1e6 * trial["params"]), "flops": round(1e6 * trial["flop"])}
    return next(iter(results.values()))["arch_str"], numbers


def _trials(results: Mapping[str, Any] | None, dataset: str) -> dict[int, Mapping[str, Any]]:
    """The results by seed."""
    if results is None:
        return {}
    seeds = results["dataset_seed"].get(dataset, ())
    return {seed: results["all_results"][dataset, seed] for seed in seeds}


def _nasbench201_table(rows: list[tuple[str, dict[str, float]]]) -> Table:
    rows = sorted(rows, key=lambda row: row[1]["index"])
    names = [
        *("index", "params", "flops"),
        *(f"{column}_{epochs}" for epochs in (200, 12) for column in _NASBENCH201_RESULTS),
    ]
    values = {
        name: np.array([numbers.get(name, math.nan) for _, numbers in rows], np.float64)
        for name in names
        if any(name in numbers for _, numbers in rows)
    }
    return checked("nasbench201", [cell for cell, _ in rows], values, None, "architecture")
