"""`nasi rank`: proxies set against accuracies of trained networks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from nasi_jax import tables
from nasi_jax.cells.genotype import is_live
from nasi_jax.config import RankConfig, ScoreConfig
from nasi_jax.report.correlation import (
    COEFFICIENTS,
    OF_ACCURACY,
    Coefficient,
    Correlation,
    correlations,
)
from nasi_jax.report.curves import draw_scatter
from nasi_jax.report.figures import save
from nasi_jax.runs.score import (
    Scores,
    directory_of,
    genotypes_of,
    proxies_of,
    record_of,
    scored,
)
from nasi_jax.search.aggregate import AGGREGATES, log_rank
from nasi_jax.storage.directory import RunDirectory
from nasi_jax.storage.files import csv_text, finite, json_text
from nasi_jax.types import OnProgress, Progress

OWN = ("params", "flops")
"""Columns of a table that are set against the accuracies too, as `table_params` and `table_flops`:
the benchmark's own counts have operations in them that lead nowhere, which ours have not."""


def run_directory(out: Path) -> RunDirectory:
    """The run directory of a ranking."""
    results = [f"rank.{kind}" for kind in ("csv", "json", "png")]
    directory = directory_of(out / "scores.csv", out, "ranking", results)
    added = {**directory.added, "population": "all", "aggregate": []}
    return dataclasses.replace(directory, added=added)


def rank(
    config: RankConfig,
    out: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Ranks architectures by proxies, and says how well that agrees with their accuracies.

    The table's own counts of parameters and FLOPs, where it has them, stand beside ours, and
    aggregates beside the proxies: for each seed, over all architectures.

    Args:
      config: the configuration.
      out: the directory for scores.csv and scores.json (a line for each seed and architecture),
        rank.csv (a line for each proxy and aggregate), rank.json and rank.png.
      mesh: as for `nasi_jax.runs.score.score`.
      resume: whether to go on with the ranking in the directory, if there is one.
      overwrite: whether to replace what an earlier ranking left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `rank.json`.

    Raises:
      ValueError: for a wrong configuration, a table or data that cannot be used, or a directory
        that is in use, or holds a ranking already, or one of something else.
    """
    table, overlaps = tables.load_all(config.table, on_progress=on_progress)
    accuracy = table.column(config.column)

    def row_of(genotype: Any) -> Hashable:
        row = table.find(genotype)
        return row if row is not None and math.isfinite(accuracy[row]) else None

    def kept(genotype: Any) -> bool:
        return config.population == "all" or is_live(genotype)

    genotypes = genotypes_of(config, row_of, kept)
    rows = table.indices(genotypes)
    accuracies = accuracy[rows]
    own = {f"table_{name}": table.values[name][rows] for name in OWN if name in table.columns}
    texts = (genotype.to_text() for genotype in genotypes)
    named = tuple(dict.fromkeys(config.proxies))
    taken = {name: AGGREGATES.get(name, named) for name in config.aggregate}
    directory = run_directory(out)
    with scored(
        config,
        proxies_of(config, [*named, *itertools.chain(*taken.values())]),
        genotypes,
        directory,
        mesh=mesh,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        given={f"table_{config.column}": dict(zip(texts, map(float, accuracies), strict=True))},
    ) as scores:
        values = scores.values
        for name, proxies in taken.items():
            of_seeds = np.stack([values[proxy] for proxy in proxies], axis=1)
            values[name] = np.array([log_rank(each) for each in of_seeds])
        result, figure = agreement_of(
            config,
            scores,
            config.column,
            accuracies,
            {**own, **values},
            on_progress,
            OF_ACCURACY,
        )
        result["overlaps"] = {name: each._asdict() for name, each in overlaps.items()}
        save(figure, out / "rank.png")
        directory.write("rank.csv", _csv(result["correlations"]))
        # Last: where it stands, all stand.
        directory.write("rank.json", json_text(result))
    return result


def _csv(correlations: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A line for each proxy: of each coefficient its value, interval, and deviation."""
    lines = [
        {"proxy": proxy}
        | {f"{name}_{part}": x for name, found in each.items() for part, x in found.items()}
        for proxy, each in correlations.items()
    ]
    return csv_text(lines[0], (line.values() for line in lines))


def agreement_of(
    config: ScoreConfig,
    scores: Scores,
    reference: str,
    truth: np.ndarray,
    others: Mapping[str, np.ndarray],
    on_progress: OnProgress,
    coefficients: Mapping[str, Coefficient] = COEFFICIENTS,
) -> tuple[dict[str, Any], Figure]:
    """The correlations of scores with the true ones, and a picture of them."""
    found: dict[str, dict[str, Correlation]] = {}
    begin = time.perf_counter()
    for done, (proxy, values) in enumerate(others.items()):
        each_seconds = (time.perf_counter() - begin) / max(done, 1)
        on_progress(Progress("comparing", len(others), done, each_seconds))
        found[proxy] = correlations(truth, values, coefficients=coefficients, seed=config.seed)
    result = {
        "reference": reference,
        "correlations": {
            proxy: {
                each: {part: finite(figure) for part, figure in value._asdict().items()}
                for each, value in coefficients.items()
            }
            for proxy, coefficients in found.items()
        },
        **record_of(config, scores),
    }
    means = {proxy: np.mean(np.atleast_2d(values), axis=0) for proxy, values in others.items()}
    titles = {proxy: _title(coefficients) for proxy, coefficients in found.items()}
    shown = (reference.replace("_", " "), np.mean(np.atleast_2d(truth), axis=0))
    return result, draw_scatter(shown, means, titles)


def _title(coefficients: Mapping[str, Correlation]) -> str:
    r, rho, tau = (coefficients[name].value for name in ("pearson", "spearman", "kendall"))
    return rf"$r$ {r:.2f}   $\rho$ {rho:.2f}   $\tau$ {tau:.2f}"
