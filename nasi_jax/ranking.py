"""Proxies set against the exact trace of the NTK, and against accuracies of trained networks."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from nasi_jax import files, plot, tables
from nasi_jax.config import RankConfig, ScoreConfig
from nasi_jax.correlation import Correlation, correlations
from nasi_jax.files import json_text
from nasi_jax.kernels.neural_tangents import neural_tangents_ntk
from nasi_jax.population import (
    OnProgress,
    Scores,
    genotypes_of,
    proxies_of,
    record_of,
    scored,
)
from nasi_jax.types import ApplyFn, Batch, Params

REFERENCE = "neural_tangents_trace"
"""The exact trace by neural-tangents, the reference of a comparison where it is installed."""

COMPARED = ("ntk_trace", "batch_gradient", "per_example_gradient", "random_cotangent")
"""What a comparison has besides what is asked for: our exact trace, and its estimates."""

OWN = ("params", "flops")
"""Columns of a table that are set against the accuracies too, as `table_params` and `table_flops`:
the benchmark's own counts have operations in them that lead nowhere, which ours have not."""


def compare(
    config: ScoreConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, total, done, seconds: None,
) -> dict[str, Any]:
    """Compares proxies with the exact trace of the NTK over random architectures.

    The reference is the trace of the dense kernel by neural-tangents, where that is installed;
    ours stands beside it, and is the reference otherwise.

    Args:
      config: the configuration. The exact trace keeps a Jacobian of the whole batch in
        neural-tangents, so the batch should be small.
      out: the directory for compare.csv, compare.json and compare.png.
      resume: whether to go on with the comparison in the directory, if there is one.
      overwrite: whether to replace what an earlier comparison left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `compare.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, or a directory that holds
        a comparison already, or one of something else.
    """
    proxies = proxies_of(config, (*COMPARED, *config.proxies))
    installed = importlib.util.find_spec("neural_tangents") is not None
    if installed:
        proxies = {REFERENCE: _neural_tangents_trace, **proxies}
    scores = scored(
        config,
        proxies,
        genotypes_of(config),
        out / "compare.csv",
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        results=[out / "compare.png"],
    )
    reference = REFERENCE if installed else "ntk_trace"
    others = {name: values for name, values in scores.values.items() if name != reference}
    result, figure = _agreement(
        config, scores, reference, scores.values[reference], others, on_progress
    )
    plot.save(figure, out / "compare.png")
    files.write_bytes(out / "compare.json", json_text(result).encode())
    return result


def rank(
    config: RankConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, total, done, seconds: None,
) -> dict[str, Any]:
    """Ranks architectures by proxies, and says how well that agrees with their accuracies.

    The table's own counts of parameters and FLOPs, where it has them, stand beside ours.

    Args:
      config: the configuration.
      out: the directory for scores.csv and scores.json (a line for each seed and architecture),
        rank.csv (a line for each proxy), rank.json and rank.png.
      resume: whether to go on with the ranking in the directory, if there is one.
      overwrite: whether to replace what an earlier ranking left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `rank.json`.

    Raises:
      ValueError: for a wrong configuration, a table or data that cannot be used, or a directory
        that holds a ranking already, or one of something else.
    """
    table = tables.load(
        config.table,
        on_progress=lambda done, total: on_progress("reading the table", total, done, 0.0),
    )
    accuracy = table.column(config.column)

    def row_of(genotype: Any) -> Hashable:
        row = table.find(genotype)
        return row if row is not None and math.isfinite(accuracy[row]) else None

    genotypes = genotypes_of(config, row_of)
    rows = table.indices(genotypes)
    accuracies = accuracy[rows]
    own = {f"table_{name}": table.values[name][rows] for name in OWN if name in table.columns}
    texts = (genotype.to_text() for genotype in genotypes)
    scores = scored(
        config,
        proxies_of(config, config.proxies),
        genotypes,
        out / "scores.csv",
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
        given={f"table_{config.column}": dict(zip(texts, map(float, accuracies), strict=True))},
        results=[out / f"rank.{kind}" for kind in ("csv", "json", "png")],
    )
    result, figure = _agreement(
        config, scores, config.column, accuracies, {**own, **scores.values}, on_progress
    )
    plot.save(figure, out / "rank.png")
    files.write_bytes(out / "rank.csv", _csv(result["correlations"]).encode())
    # Last: where it stands, all stand.
    files.write_bytes(out / "rank.json", json_text(result).encode())
    return result


def _csv(correlations: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """A line for each proxy: of each coefficient its value, interval, and deviation."""
    text = io.StringIO()
    lines = [
        {"proxy": proxy}
        | {f"{name}_{part}": x for name, found in each.items() for part, x in found.items()}
        for proxy, each in correlations.items()
    ]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _agreement(
    config: ScoreConfig,
    scores: Scores,
    reference: str,
    truth: np.ndarray,
    others: Mapping[str, np.ndarray],
    on_progress: OnProgress,
) -> tuple[dict[str, Any], Figure]:
    """The correlations of scores with the true ones, and a picture of them."""
    found: dict[str, dict[str, Correlation]] = {}
    begin = time.perf_counter()
    for done, (proxy, values) in enumerate(others.items()):
        each_seconds = (time.perf_counter() - begin) / max(done, 1)
        on_progress("comparing", len(others), done, each_seconds)
        found[proxy] = correlations(truth, values, seed=config.seed)
    result = {
        "reference": reference,
        "correlations": {
            proxy: {each: _finite(value._asdict()) for each, value in coefficients.items()}
            for proxy, coefficients in found.items()
        },
        **record_of(config, scores),
    }
    means = {proxy: np.mean(np.atleast_2d(values), axis=0) for proxy, values in others.items()}
    titles = {proxy: _title(coefficients) for proxy, coefficients in found.items()}
    shown = (reference.replace("_", " "), np.mean(np.atleast_2d(truth), axis=0))
    return result, plot.draw_scatter(shown, means, titles)


def _title(coefficients: Mapping[str, Correlation]) -> str:
    r, rho, tau = (coefficients[name].value for name in ("pearson", "spearman", "kendall"))
    return rf"$r$ {r:.2f}   $\rho$ {rho:.2f}   $\tau$ {tau:.2f}"


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _neural_tangents_trace(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
) -> jax.Array:
    del key
    return jnp.einsum("bkbk->", neural_tangents_ntk(apply_fn, params, batch.inputs))
