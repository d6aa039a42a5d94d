"""epsinas: how much features change from one constant initialization to another."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasi_jax.kernels.blocks import features
from nasi_jax.kernels.redraw import with_constant_kernels
from nasi_jax.types import ApplyFn, Batch, Params


def epsinas(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    values: tuple[float, float] = (1e-7, 1.0),
) -> jax.Array:
    """mean |p_1 - p_2| / mean(p_1, p_2), p_w the features at weights all w; more is better.

    p_w are the means of the last feature maps over the image, of all examples, shifted and scaled
    to [0, 1]; entries that are 0 up to rounding do not count. Weights are all kernels, and scales
    of normalization; biases are 0. From Gracheva, "Trainless Model Performance Estimation for
    Neural Architecture Search" (Array 2021, arXiv:2103.08312), whose code has batch statistics,
    real images, and these values for NAS-Bench-201 (1e-4 and 10 for NAS-Bench-101).

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, of which only the shapes are read.
      batch: inputs `[B, ...]`, real images; the labels are not read.
      values: the two values w.

    Returns:
      A scalar; NaN where all features are equal, as in 41% of the cells that they looked at.

    Raises:
      ValueError: see `features`.
      UnreadableProgram: see `features`.
    """
    del key
    first, second = (_scaled(apply_fn, params, batch.inputs, value) for value in values)
    both = jnp.stack([first, second])
    # Channels of such a network are equal, but for rounding.
    counts = jnp.greater(both, 100 * jnp.finfo(both.dtype).eps)
    return _mean_where(counts[0] & counts[1], jnp.abs(first - second)) / _mean_where(counts, both)


def _mean_where(counts: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(counts, values, 0)) / jnp.sum(counts.astype(values.dtype))


def _scaled(apply_fn: ApplyFn, params: Params, inputs: jax.Array, value: float) -> jax.Array:
    """p_w `[B, C]`; what is not finite stays so."""
    constant = with_constant_kernels(apply_fn, params, inputs, value)
    means = jnp.mean(features(apply_fn, constant, inputs), axis=(1, 2))
    low, high = jnp.min(means), jnp.max(means)
    return (means - low) / (high - low)
