"""L-SWAG: how steady gradients are, times how many activation patterns there are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from nasi_jax.kernels.proxies.swap import num_patterns
from nasi_jax.kernels.proxies.zico import gradients_of_parts, inverse_deviations, scaled_to_one
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def lswag(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    num_batches: int = 2,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """Psi sum_l log sum_w 1 / std |g_w|, Psi the number of `swap` patterns; more is better.

    The g_w are the derivatives of the mean loss of a mini-batch in the parameters w of layer l, and
    the deviation is that over mini-batches, as in `zico`, of whose score the mean of |g_w| is left
    out. From Casarin et al., "L-SWAG" (CVPR 2025, arXiv:2505.07300), of which there is no code. The
    paper takes the layers of some percentiles of depth, chosen by the gradients of 1,000 networks
    of the space, and the patterns of the layers up to there; here all layers count. The patterns
    are at `params`, those of the first 16 examples.

    Args:
      key: random key, consumed. It decides nothing but which ReLUs count.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the gradients are taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      num_batches: number of equal parts, in order, that the batch is split into.
      loss: see `mean_loss`.

    Returns:
      A scalar.

    Raises:
      ValueError: see `zico` and `tap_relus`.
    """
    layers = gradients_of_parts(apply_fn, params, batch, num_batches, loss)
    steadiness = functools.reduce(jnp.add, (jnp.sum(_log_sums(each)) for each in layers))
    patterns = num_patterns(key, apply_fn, params, batch.inputs)
    return steadiness.astype(patterns.dtype) * patterns


def _log_sums(gradients: jax.Array) -> jax.Array:
    """log sum_w 1 / std |g_w| of every layer in `[num_batches, layers, entries]`."""
    scaled, scale = scaled_to_one(jnp.abs(gradients))
    totals = jnp.sum(inverse_deviations(scaled), axis=1)
    return jnp.where(totals > 0, jnp.log(jnp.where(totals > 0, totals, 1)) - jnp.log(scale), 0)
