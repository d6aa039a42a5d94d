"""SWAP: in how many ways a network's ReLUs tell the examples of a batch apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.proxies.num_params import num_params
from nasi_jax.kernels.redraw import with_normal_kernels
from nasi_jax.kernels.relu import tap_relus
from nasi_jax.types import ApplyFn, Batch, Params

NUM_EXAMPLES = 16
"""Examples that the patterns are over: their code's batch, with at most 2^16 patterns."""


def swap(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    center: float | None = None,
    width: float | None = None,
) -> jax.Array:
    """The number of distinct patterns in which units are active over a batch; more is better.

    The pattern of a unit, a ReLU of one channel and position, is for which of the first 16 examples
    it is active. Only ReLUs of images count, and those that the outputs depend on. Weights are
    drawn anew, standard normal. From Peng et al., "SWAP-NAS" (ICLR 2024, arXiv:2403.04161), whose
    code has batch statistics, and takes the mean over 32 initializations: score with several seeds
    for that. Their DARTS network has no stem; here the network is as it is.

    With `center` mu and `width` sigma it is the regularized score, times exp(-(P - mu)^2 / sigma),
    P the number of parameters in thousands. They choose mu = sigma by hand for the size of network
    that they want.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, of which only biases, scales and shifts are read.
      batch: inputs `[B, ...]`; the labels are not read.
      center: mu, in thousands of parameters.
      width: sigma, in millions of squared parameters.

    Returns:
      A scalar, a whole number if it is not regularized.

    Raises:
      ValueError: if one of mu and sigma is given without the other; and see `tap_relus`.
    """
    if (center is None) != (width is None):
        raise ValueError(f"center and width come together, got {center} and {width}")
    key_of_kernels, key_of_cotangents = jax.random.split(key)
    drawn = with_normal_kernels(key_of_kernels, apply_fn, params, batch.inputs)
    patterns = num_patterns(key_of_cotangents, apply_fn, drawn, batch.inputs)
    if center is None or width is None:
        return patterns
    size = num_params(key, apply_fn, params, batch).astype(patterns.dtype) / 1000
    return patterns * jnp.exp(-jnp.square(size - center) / width)


def num_patterns(key: jax.Array, apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> jax.Array:
    """The number of distinct patterns of `swap`, at these parameters.

    Args:
      key: random key, consumed. It decides nothing but which ReLUs count.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`, of which the first 16 are read.

    Raises:
      ValueError: see `tap_relus`.
    """
    inputs = inputs[:NUM_EXAMPLES]
    dtype = np.promote_types(inputs.dtype, jnp.float32)
    values = 2 ** np.arange(len(inputs), dtype=np.int32)[:, None]
    shape = (2 ** len(inputs),)

    def measure(active: jax.Array, cotangent: jax.Array) -> jax.Array:
        if active.ndim < 3:
            return jnp.zeros(shape, dtype)
        bits = (active > 0).astype(jnp.int32).reshape(len(inputs), -1)
        counts = jnp.any(cotangent != 0).astype(dtype)
        codes = jnp.sum(bits * values, axis=0, dtype=jnp.int32)
        return jnp.zeros(shape, dtype).at[codes].add(counts)

    def outputs_of(table: jax.Array) -> jax.Array:
        return tap_relus(measure, table, apply_fn, params, inputs)

    return jnp.sum(random_gradient(key, outputs_of, jnp.zeros(shape, dtype)) > 0).astype(dtype)
