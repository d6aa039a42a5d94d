"""NASWOT: how different the linear regions are that a batch falls into."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasi_jax.kernels.relu import code_differences
from nasi_jax.types import ApplyFn, Batch, Params


def naswot(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """log |det K|, K_ij the number of ReLUs in which examples i and j agree; more is better.

    Agree: both active or both not. From Mellor et al., "Neural Architecture Search without
    Training" (ICML 2021, arXiv:2006.04647), who compute it with batch statistics. As in their
    code, only ReLUs count that a backward pass from the outputs reaches, so that those of an
    operation that a supernet's one-hot weights leave out do not. See `tap_relus` for which ReLUs
    are found. Scores of different batch sizes do not compare.

    Args:
      key: random key, consumed. It decides nothing but which ReLUs count, and that almost surely
        in one way.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`; the labels are not read.

    Returns:
      A scalar; -inf, or by rounding very low, if two examples agree everywhere.

    Raises:
      ValueError: see `tap_relus`.
    """
    differences, units = code_differences(key, apply_fn, params, batch.inputs)
    _, log_determinant = jnp.linalg.slogdet(units - differences)
    return log_determinant
