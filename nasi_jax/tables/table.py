"""The table of a benchmark, and the checks that every file's content goes through."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nasi_jax.cells import Nasbench101Genotype, Nasbench201Genotype, Transnas101Genotype
from nasi_jax.storage.files import at
from nasi_jax.types import Genotype

ACCEPTED = (
    "a compact csv or csv.gz with the column arch_str (NAS-Bench-201, TransNAS-Bench-101) or the "
    "columns hash, adjacency and ops (NAS-Bench-101), NATS-tss-v1_0-*-simple.tar or its directory, "
    "NAS-Bench-201-v1_*.pth, NATS-tss-v1_0-*.pickle.pbz2, nasbench_*.tfrecord"
)
"""The files that `load` reads, in words."""

_KINDS: dict[str, type[Genotype]] = {
    kind.family: kind for kind in (Nasbench101Genotype, Nasbench201Genotype, Transnas101Genotype)
}
_ACCURACY = re.compile(r"(?:^|_)(?:val|test)_\d+$")


@dataclass(frozen=True, eq=False)
class Table:
    """Results of a benchmark, one row a cell.

    A cell is looked up as it is written, and else by an isomorphic one: the first row of the same
    `isomorphism_key`. That of NAS-Bench-101 belongs to the pruned cell, so that cells of
    NAS-Bench-1Shot1 are found too.

    Attributes:
      benchmark: `nasbench201`, `nasbench101` or `transnas101`, the family of the genotypes.
      values: the numbers `[N]` of every column, NaN where there is none.
      cells: the cells as text: their text form, or of NAS-Bench-101 the adjacency bits, a space,
        and the ops.
      hashes: the `module_hash` of every NAS-Bench-101 cell, as the file has it.
    """

    benchmark: str
    values: dict[str, np.ndarray]
    cells: tuple[str, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False, default=())

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.values)

    def __len__(self) -> int:
        return len(self.cells)

    def __contains__(self, genotype: Genotype) -> bool:
        return self.find(genotype) is not None

    def genotype(self, row: int) -> Genotype:
        """The cell of a row."""
        return _genotype(self.benchmark, self.cells[row])

    def index(self, genotype: Genotype) -> int:
        """The row of a cell.

        Raises:
          LookupError: if the table has neither the cell nor an isomorphic one.
          ValueError: if the genotype isn't one of this benchmark.
        """
        row = self.find(genotype)
        if row is None:
            raise LookupError(
                f"neither this cell nor an isomorphic one is among the {len(self)} cells of the "
                f"{self.benchmark} table: {genotype.to_text()}"
            )
        return row

    def indices(self, genotypes: Iterable[Genotype]) -> np.ndarray:
        """The rows `[B]` of many cells.

        Raises:
          LookupError: as `index` does.
          ValueError: as `index` does.
        """
        return np.fromiter(map(self.index, genotypes), np.int64)

    def look_up(self, genotype: Genotype, column: str) -> float:
        """The number in a cell's row and in a column, NaN if it's missing.

        Raises:
          LookupError: if the table has neither the cell nor an isomorphic one.
          ValueError: if there is no such column, or the genotype isn't one of this benchmark.
        """
        return float(self.column(column)[self.index(genotype)])

    def column(self, name: str) -> np.ndarray:
        """The numbers `[N]` of a column, NaN where one is missing.

        Raises:
          ValueError: if there is no such column.
        """
        if name not in self.values:
            raise ValueError(f"column must be one of {', '.join(self.columns)}, got {name!r}")
        return self.values[name]

    def find(self, genotype: Genotype) -> int | None:
        """The row of a cell, or of an isomorphic one; None if there is neither.

        Raises:
          ValueError: if the genotype isn't one of this benchmark.
        """
        if genotype.family != self.benchmark:
            raise ValueError(
                f"the table holds {self.benchmark} genotypes, got a {type(genotype).__name__}"
            )
        row = self._rows.get(_text(genotype))
        if row is not None:
            return row
        try:
            return self._isomorphic_rows.get(genotype.isomorphism_key())
        except ValueError:  # no path leads from the input to the output
            return None

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {cell: row for row, cell in enumerate(self.cells)}

    @property
    def keys(self) -> tuple[str, ...]:
        """What tells the rows apart: the hashes of NAS-Bench-101, else the cells as text."""
        return self.hashes or self.cells

    # Only when a cell isn't found as it is written: the keys of 15,625 cells take 0.2 s.
    @functools.cached_property
    def _isomorphic_rows(self) -> dict[str, int]:
        keys = self.hashes or [self.genotype(row).isomorphism_key() for row in range(len(self))]
        rows: dict[str, int] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, row)
        return rows


def _text(genotype: Genotype) -> str:
    if isinstance(genotype, Nasbench101Genotype):
        bits = "".join(str(bit) for row in genotype.matrix for bit in row)
        return f"{bits} {','.join(genotype.ops)}"
    return genotype.to_text()


def _genotype(benchmark: str, cell: str) -> Genotype:
    if benchmark != "nasbench101":
        return _KINDS[benchmark].from_text(cell)
    bits, _, text = cell.partition(" ")
    ops = text.split(",")
    size = len(ops)
    if len(bits) != size**2 or set(bits) > {"0", "1"}:
        raise ValueError(f"{size} ops take an adjacency of {size**2} bits, got {bits[:60]!r}")
    entries = [int(bit) for bit in bits]
    matrix = [entries[start : start + size] for start in range(0, size**2, size)]
    return Nasbench101Genotype(matrix=matrix, ops=ops)  # type: ignore[arg-type]


def benchmark_of(cell: str) -> str:
    """The benchmark in whose text form a cell is written; NAS-Bench-201 if it is in none."""
    known = (name for name, kind in _KINDS.items() if cell.startswith(kind.prefix))
    return next(known, "nasbench201")


def is_fraction(benchmark: str, column: str) -> bool:
    """Whether the files of a benchmark give a column as fractions, which a table has in percent."""
    return benchmark == "nasbench101" and _ACCURACY.search(column) is not None


def checked(
    benchmark: str,
    cells: list[str],
    values: dict[str, np.ndarray],
    hashes: Sequence[str] | None,
    unit: str,
    first: int = 0,
) -> Table:
    """Validates rows and builds the table; an error names the `unit`, a line or a file."""
    if not cells:
        raise ValueError("holds no cell")
    rows: dict[str, int] = {}
    for row, (cell, key) in enumerate(zip(cells, hashes or cells, strict=True)):
        with at(f"{unit} {row + first}"):
            _genotype(benchmark, cell)
            if rows.setdefault(key, row) != row:
                raise ValueError(f"holds the cell of {unit} {rows[key] + first} again: {cell}")
    for name, column in values.items():
        if _ACCURACY.search(name) and ((column < 0) | (column > 100)).any():
            row = int(np.flatnonzero((column < 0) | (column > 100))[0])
            scale, limit = (100, 1) if is_fraction(benchmark, name) else (1, 100)
            raise ValueError(
                f"{unit} {row + first}: {name} must be from 0 to {limit}, got {column[row] / scale}"
            )
    return Table(benchmark, values, tuple(cells), tuple(hashes or ()))


class Overlap(NamedTuple):
    """How the numbers of two tables differ in a column.

    Attributes:
      cells: how many cells have a number in both.
      median: median of the absolute difference.
      largest: the largest one.
    """

    cells: int
    median: float
    largest: float


def merge(tables: Sequence[Table]) -> Table:
    """One table of the cells and columns of several.

    Args:
      tables: of one benchmark. Where two have a number of a cell, that of the later one stands.

    Returns:
      The table of all cells; a number that none of them has is NaN.

    Raises:
      ValueError: if they are of different benchmarks.
    """
    benchmarks = {table.benchmark for table in tables}
    if len(benchmarks) != 1:
        raise ValueError(f"tables to merge must be of one benchmark, got {', '.join(benchmarks)}")
    cells: dict[str, str] = {}
    for table in tables:
        for key, cell in zip(table.keys, table.cells, strict=True):
            cells.setdefault(key, cell)
    rows = {key: row for row, key in enumerate(cells)}
    values: dict[str, np.ndarray] = {}
    for table in tables:
        places = [rows[key] for key in table.keys]
        for name, column in table.values.items():
            merged = values.setdefault(name, np.full(len(cells), np.nan))
            merged[places] = np.where(np.isfinite(column), column, merged[places])
    hashes = tuple(cells) if tables[0].hashes else ()
    return Table(benchmarks.pop(), values, tuple(cells.values()), hashes)


def overlaps(first: Table, second: Table) -> dict[str, Overlap]:
    """By column of both tables, how they differ; a column without a common cell is left out.

    Args:
      first: a table.
      second: another of the same benchmark.

    Returns:
      An `Overlap` for each such column, by name.
    """
    rows = {key: row for row, key in enumerate(first.keys)}
    common = [(rows[key], row) for row, key in enumerate(second.keys) if key in rows]
    places = np.array(common, int).reshape(-1, 2).T
    found = {}
    for name in first.values.keys() & second.values.keys():
        differences = np.abs(first.values[name][places[0]] - second.values[name][places[1]])
        known = differences[np.isfinite(differences)]
        if len(known):
            found[name] = Overlap(len(known), float(np.median(known)), float(np.max(known)))
    return dict(sorted(found.items()))
