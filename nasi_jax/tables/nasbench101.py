"""The official files of NAS-Bench-101 (Ying et al., 2019), read without TensorFlow."""

from __future__ import annotations

import base64
import json
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nasi_jax.storage.files import at
from nasi_jax.tables.table import Table, checked, is_fraction
from nasi_jax.types import OnProgress, Progress

# The fields of NAS-Bench-101's protobuf message EvaluationData.
_NASBENCH101_RESULTS = {"val": 4, "test": 5, "train_time": 2}


def read(path: Path, on_progress: OnProgress) -> Table:
    """Reads the file, the repeats of a cell averaged."""
    cells: dict[str, str] = {}  # by module hash, in the order of their first records
    rows: dict[str, int] = {}
    params: list[int] = []
    runs_row, runs_epochs = array("q"), array("q")
    runs = {name: array("d") for name in _NASBENCH101_RESULTS}
    for number, (record, done, total) in enumerate(_records(path)):
        with at(f"{path}: record {number}"):
            module_hash, epochs, adjacency, ops, encoded = json.loads(record)
            metrics = _protobuf(base64.b64decode(encoded))
            # Evaluated before training, halfway, and at the end.
            _, _, evaluation = (value for key, value in metrics if key == 1)
            final = dict(_protobuf(evaluation))
            if module_hash not in rows:
                rows[module_hash] = len(rows)
                cells[module_hash] = f"{adjacency} {ops}"
                params.append(dict(metrics)[2])
            runs_row.append(rows[module_hash])
            runs_epochs.append(epochs)
            for name, key in _NASBENCH101_RESULTS.items():
                runs[name].append(final[key])
        if number % 1000 == 0 or done == total:
            on_progress(Progress("reading the table", total, done))

    values = {"params": np.array(params, np.float64)}
    for epochs in sorted(set(runs_epochs)):
        chosen = np.asarray(runs_epochs) == epochs
        row = np.asarray(runs_row)[chosen]
        counts = np.bincount(row, minlength=len(rows))
        for name, run in runs.items():
            column = f"{name}_{epochs}"
            sums = np.bincount(row, np.asarray(run)[chosen], minlength=len(rows))
            unit = 100 if is_fraction("nasbench101", column) else 1
            with np.errstate(invalid="ignore"):  # 0 / 0: a cell without a run of these epochs
                values[column] = unit * sums / counts
    with at(path):
        return checked("nasbench101", list(cells.values()), values, tuple(cells), "cell")


def _records(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """The records of a TFRecord file, and the progress.

    Each is its length, a checksum of that, its content, and a checksum of this.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            start = file.tell()
            length = int.from_bytes(header[:8], "little")
            if len(header) < 12 or start + length + 4 > total:
                raise ValueError(f"{path}: cut off, or damaged, at byte {start - len(header)}")
            record = file.read(length)
            file.read(4)
            yield record, file.tell(), total


def _protobuf(message: bytes) -> list[tuple[int, Any]]:
    """The fields of a protobuf message and their values: integers, doubles, or bytes."""
    fields: list[tuple[int, Any]] = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while message[position] & 0x80:
            value |= (message[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
        position += 1
        return value | message[position - 1] << shift

    while position < len(message):
        key, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            fields.append((key, varint()))
        elif wire_type == 1:
            fields.append((key, struct.unpack_from("<d", message, position)[0]))
            position += 8
        elif wire_type == 2:
            length = varint()
            fields.append((key, message[position : position + length]))
            position += length
        else:
            raise ValueError(f"a field of wire type {wire_type}, which the metrics have not")
    if position > len(message):
        raise ValueError("the metrics are cut off")
    return fields
