"""The number of parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from nasi_jax.kernels.gradient import live_layers
from nasi_jax.types import ApplyFn, Batch, Params


def num_params(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """The number of parameters in the layers that the outputs depend on; more is better.

    A layer is an array of `params`, or a slice of one that a scan reads slice by slice. It counts
    whole or not at all: not if every derivative of the outputs in it is 0, as in an operation
    that a supernet's one-hot weights leave out, or that leads nowhere. Counts in benchmark
    tables, such as NAS-Bench-201's, have operations that lead nowhere in them.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: the parameters counted.
      batch: inputs `[B, ...]` whose first 4 the dependence is seen at; the labels are not read.

    Returns:
      A float32 scalar, exact up to 2^24.
    """
    live = live_layers(key, apply_fn, params, batch.inputs)
    counts = (
        leaf.size // len(layers) * jnp.sum(layers, dtype=jnp.float32)
        for leaf, layers in zip(jax.tree.leaves(params), live, strict=True)
    )
    return functools.reduce(jnp.add, counts)
