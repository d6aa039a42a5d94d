"""The compact csv form of a table: read and write."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from nasi_jax.storage.files import at, csv_text, unpacked, write_bytes
from nasi_jax.tables.table import ACCEPTED, Table, benchmark_of, checked, is_fraction


def read(path: Path) -> Table:
    """Reads the file; see `nasi_jax.tables.load`."""
    with at(path):
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(content)) as stream:
                content = unpacked(stream, len(content)).read()
        text = content.decode("utf-8-sig", errors="replace")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        if "arch_str" in header:
            no_numbers = {"arch_str"}
        elif {"hash", "adjacency", "ops"} <= set(header):
            no_numbers = {"hash", "adjacency", "ops", "vertices"}
        else:
            got = ",".join(header)[:60]
            raise ValueError(f"begins with {got!r}, which is none of {ACCEPTED}")
        if len(set(header)) < len(header):
            raise ValueError(f"the header names a column twice: {','.join(header)}")
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} must have {len(header)} values as the header has, "
                    f"got {len(row)}"
                )
            rows.append(row)
        texts = {name: [row[place] for row in rows] for place, name in enumerate(header)}
        if "arch_str" in header:
            cells = [*map(str.strip, texts["arch_str"])]
            benchmark, hashes = benchmark_of(next(iter(cells), "")), None
        else:
            cells = [*map(" ".join, zip(texts["adjacency"], texts["ops"], strict=True))]
            benchmark, hashes = "nasbench101", texts["hash"]
        values = {
            name: _numbers(name, texts[name], is_fraction(benchmark, name))
            for name in texts
            if name not in no_numbers
        }
        return checked(benchmark, cells, values, hashes, "line", first=2)


def _numbers(name: str, texts: Sequence[str], fraction: bool) -> np.ndarray:
    read = _percent if fraction else float
    numbers = []
    for row, text in enumerate(texts):
        try:
            numbers.append(read(text) if text else math.nan)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"line {row + 2}: {name} must be a number, got {text!r}") from error
    return np.array(numbers)


# The point of a decimal is moved: a product would be rounded, and a table not read back equal.
def _percent(fraction: str) -> float:
    return float(Decimal(fraction).scaleb(2))


def _fraction(percent: float) -> str:
    return f"{Decimal(repr(percent)).scaleb(-2):f}"


def write_csv(table: Table, path: str | os.PathLike[str]) -> None:
    """Writes a table as a compact csv file, which `load` reads back equal.

    Args:
      table: the table.
      path: a name that ends in `.csv` or `.csv.gz`.

    Raises:
      ValueError: if the name ends otherwise.
      OSError: if the file can't be written; what it held before is then still there.
    """
    name = Path(path).name
    if not name.endswith((".csv", ".csv.gz")):
        raise ValueError(f"path must end in .csv or .csv.gz, got {path}")
    if table.benchmark == "nasbench101":
        bits, ops = zip(*(cell.split(" ") for cell in table.cells), strict=True)
        columns: dict[str, Iterable[str]] = {
            "hash": table.hashes,
            "adjacency": bits,
            "ops": ops,
        }
    else:
        columns = {"arch_str": table.cells}
    for column, numbers in table.values.items():
        write = _fraction if is_fraction(table.benchmark, column) else repr
        columns[column] = [
            "" if math.isnan(number) else write(number).removesuffix(".0")
            for number in numbers.tolist()
        ]
    content = csv_text(columns, zip(*columns.values(), strict=True)).encode()
    write_bytes(path, gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
