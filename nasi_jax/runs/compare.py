"""`nasi compare`: proxies set against the exact trace of the NTK."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nasi_jax.config import ScoreConfig
from nasi_jax.kernels.neural_tangents import neural_tangents_ntk
from nasi_jax.report.figures import save
from nasi_jax.runs.rank import agreement_of
from nasi_jax.runs.score import directory_of, genotypes_of, proxies_of, scored
from nasi_jax.storage.directory import RunDirectory
from nasi_jax.storage.files import json_text
from nasi_jax.types import ApplyFn, Batch, OnProgress, Params

REFERENCE = "neural_tangents_trace"
"""The exact trace by neural-tangents, the reference of a comparison where it is installed."""

COMPARED = ("ntk_trace", "batch_gradient", "per_example_gradient", "random_cotangent")
"""What a comparison has besides what is asked for: our exact trace, and its estimates."""


def run_directory(out: Path) -> RunDirectory:
    """The run directory of a comparison."""
    return directory_of(out / "compare.csv", out, "comparison", ["compare.png"])


def compare(
    config: ScoreConfig,
    out: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Compares proxies with the exact trace of the NTK over random architectures.

    The reference is the trace of the dense kernel by neural-tangents, where that is installed;
    ours stands beside it, and is the reference otherwise.

    Args:
      config: the configuration. The exact trace keeps a Jacobian of the whole batch in
        neural-tangents, so the batch should be small.
      out: the directory for compare.csv, compare.json and compare.png.
      mesh: as for `nasi_jax.runs.score.score`.
      resume: whether to go on with the comparison in the directory, if there is one.
      overwrite: whether to replace what an earlier comparison left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `compare.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, or a directory that is in
        use, or holds a comparison already, or one of something else.
    """
    proxies = proxies_of(config, (*COMPARED, *config.proxies))
    installed = importlib.util.find_spec("neural_tangents") is not None
    if installed:
        proxies = {REFERENCE: _neural_tangents_trace, **proxies}
    directory = run_directory(out)
    with scored(
        config,
        proxies,
        genotypes_of(config),
        directory,
        mesh=mesh,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    ) as scores:
        reference = REFERENCE if installed else "ntk_trace"
        others = {name: values for name, values in scores.values.items() if name != reference}
        result, figure = agreement_of(
            config, scores, reference, scores.values[reference], others, on_progress
        )
        save(figure, out / "compare.png")
        directory.write("compare.json", json_text(result))
    return result


def _neural_tangents_trace(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
) -> jax.Array:
    del key
    return jnp.einsum("bkbk->", neural_tangents_ntk(apply_fn, params, batch.inputs))
