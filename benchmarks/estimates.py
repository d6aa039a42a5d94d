"""Accuracies of cells by a table; of NAS-Bench-101 cells that a partial table lacks, estimated.

A cell is described by the paths of operations from its input to its output, which there are (the
path encoding of White et al., 2021) and how many of each, by its numbers of operations and
vertices, and by its longest and shortest path. A linear regression with a ridge maps that to the
accuracy. Each cell of the table is estimated without it too, so that the error is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import numpy as np
from samples import accuracies_of

from nasi_jax.cells.nasbench101 import NASBENCH101_OPS, Nasbench101Genotype
from nasi_jax.report.correlation import correlations
from nasi_jax.tables import Table
from nasi_jax.types import SearchSpace

NUM_CELLS = 423_624
"""Cells of NAS-Bench-101."""
RIDGE = 1.0
FOLDS = 5
FAILED = 75.0
"""Below that a training has failed, of one cell or of one among those that its mean is over."""
NUM_DRAWS = 3000
"""Random cells of a space by which the error is known."""

Path = tuple[str, ...]
"""The operations on the way from a cell's input to its output."""


class Reader:
    """Reads a column of a table, and estimates what a part of NAS-Bench-101 lacks.

    Attributes:
      columns: the column, and with `, gaps estimated` behind it the column without gaps.
    """

    def __init__(self, table: Table, column: str) -> None:
        """Fits the regression, if there are gaps to fill."""
        self._table, self._column = table, column
        self.columns = [column]
        if table.benchmark == "nasbench101" and len(table) < NUM_CELLS:
            self.columns.append(f"{column}, gaps estimated")
            self._fit()

    def __call__(self, genotypes: Sequence[Any]) -> dict[str, np.ndarray]:
        """Accuracies `[B]` for each of `columns`, NaN where the table has none."""
        found = accuracies_of(self._table, self._column, genotypes)
        if len(self.columns) == 1:
            return {self._column: found}
        estimated = self._regression(self._features(map(path_counts, genotypes)))
        filled = np.where(np.isfinite(found), found, estimated)
        return dict(zip(self.columns, (found, filled), strict=True))

    def error(self, space: SearchSpace) -> dict[str, Any] | None:
        """How the estimates of a space's cells compare with the table; None if it has no gaps.

        Of random cells those that the table has, each estimated from folds without it: how many,
        Spearman's coefficient, and the medians of the error and of its size, in percent.
        """
        if len(self.columns) == 1:
            return None
        values = self._table.column(self._column)
        drawn = map(space.sample, jax.random.split(jax.random.key(0), NUM_DRAWS))
        found = {row for cell in drawn if (row := self._table.find(cell)) is not None}
        rows = [row for row in sorted(found) if np.isfinite(values[row])]
        truth, held_out = values[rows], self._held_out[rows]
        return {
            "cells": len(rows),
            "spearman": correlations(held_out, truth, num_resamples=2)["spearman"].value,
            "median_error": float(np.median(held_out - truth)),
            "median_size": float(np.median(np.abs(held_out - truth))),
        }

    def _fit(self) -> None:
        values = self._table.column(self._column)
        # Failures are luck, which no feature of a cell tells of, and pull the regression far down.
        known = np.isfinite(values) & (values >= FAILED)
        genotypes = map(self._table.genotype, range(len(self._table)))
        cells = [path_counts(cast(Nasbench101Genotype, each)) for each in genotypes]
        found = sorted(set().union(*(paths for paths, _ in cells)))
        self._places = {path: place for place, path in enumerate(found)}
        features = self._features(cells)
        fold = np.random.default_rng(0).integers(FOLDS, size=len(cells))
        self._held_out = np.full(len(cells), np.nan)
        for each in range(FOLDS):
            rest, left_out = known & (fold != each), fold == each
            regression = _ridge_regression(features[rest], values[rest])
            self._held_out[left_out] = regression(features[left_out])
        self._regression = _ridge_regression(features[known], values[known])

    def _features(self, cells: Iterable[tuple[Counter[Path], list[int]]]) -> np.ndarray:
        """`[B, features]`; paths that no cell of the table has are left out."""
        rows = []
        for paths, numbers in cells:
            counts = np.zeros(len(self._places))
            for path in paths.keys() & self._places.keys():
                counts[self._places[path]] = paths[path]
            rows.append(np.concatenate([counts, counts > 0, numbers]))
        return np.stack(rows)


def print_error(error: dict[str, Any] | None) -> None:
    """Says what `Reader.error` found."""
    if error is not None:
        print(
            f"estimates of {error['cells']} cells that the table has, each without itself: "
            f"Spearman {error['spearman']:.2f}, median error {error['median_error']:+.2f} points, "
            f"of its size {error['median_size']:.2f}"
        )


def path_counts(genotype: Nasbench101Genotype) -> tuple[Counter[Path], list[int]]:
    """How many times each path leads through a cell, and its other numbers."""
    cell = genotype.prune()
    output = len(cell.ops) - 1
    found: list[Counter[Path]] = [Counter({(): 1})]
    for vertex in range(1, output + 1):
        here = () if vertex == output else (cell.ops[vertex],)
        found.append(Counter())
        for parent in cell.parents(vertex):
            for path, count in found[parent].items():
                found[vertex][path + here] += count
    lengths = [len(path) for path in found[output]]
    operations = [cell.ops.count(op) for op in NASBENCH101_OPS]
    return found[output], [*operations, output, max(lengths), min(lengths)]


def _ridge_regression(
    features: np.ndarray, values: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The linear map from features `[N, F]` to values `[N]` with a ridge."""
    center, mean = features.mean(axis=0), float(values.mean())
    centered = features - center
    normal = centered.T @ centered + RIDGE * np.eye(features.shape[1])
    weights = np.linalg.solve(normal, centered.T @ (values - mean))
    return lambda others: mean + (others - center) @ weights
