"""Zen-score: how much features change with the input, whatever normalization makes of them."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.blocks import features
from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.outputs import tap_outputs
from nasi_jax.kernels.redraw import with_normal_kernels
from nasi_jax.types import ApplyFn, Batch, Params


def zen(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    variance: Literal["running", "batch"] = "running",
) -> jax.Array:
    """log mean_b ||F(x_b) - F(x_b + e_b / 100)||_1 + sum_l log sqrt(mean_c v_lc); more is better.

    F are the feature maps before the mean over the image, x and e standard normal inputs, and the
    second sum is over normalization layers that the outputs depend on, which without it take away
    what the layer before has gained. Weights are drawn anew, standard normal. With `running`, v is
    PyTorch's running variance after the two batches x and y = x + e / 100, 0.81 + 0.09 var(x)
    + 0.1 var(y), as in the authors' code, here with var(y) = var(x), from which it is a
    ten-thousandth apart; with `batch` it is var(x). From Lin et al., "Zen-NAS" (ICCV 2021,
    arXiv:2102.01063), whose code has batch statistics and the mean over some repeats.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, of which only biases, scales and shifts are read.
      batch: inputs `[B, ...]`, of which only the shape is read.
      variance: which variance is v.

    Returns:
      A scalar; -inf where features do not depend on the input.

    Raises:
      ValueError: if there is no normalization; and see `features`.
      UnreadableProgram: see `tap_outputs`.
    """
    of_kernels, of_inputs, of_changes, of_cotangents = jax.random.split(key, 4)
    drawn = with_normal_kernels(of_kernels, apply_fn, params, batch.inputs)
    shape, dtype = batch.inputs.shape, batch.inputs.dtype
    inputs = jax.random.normal(of_inputs, shape, dtype)
    changed = inputs + 0.01 * jax.random.normal(of_changes, shape, dtype)
    difference = features(apply_fn, drawn, inputs) - features(apply_fn, drawn, changed)
    wide = np.promote_types(dtype, jnp.float32)

    def measure(unnormalized: jax.Array, cotangent: jax.Array) -> jax.Array:
        rows = unnormalized.astype(wide).reshape(-1, unnormalized.shape[-1])
        mean = jnp.mean(jnp.var(rows, axis=0))
        if variance == "running":
            mean = 0.81 + 0.19 * mean
        counts = jnp.any(cotangent != 0) & (mean > 0)
        return jnp.where(counts, jnp.log(jnp.where(counts, mean, 1)) / 2, 0)

    def outputs_of(zero: jax.Array) -> jax.Array:
        return tap_outputs(measure, zero, apply_fn, drawn, inputs, "unnormalized")

    scales = random_gradient(of_cotangents, outputs_of, jnp.zeros((), wide))
    return jnp.log(jnp.sum(jnp.abs(difference)) / shape[0]).astype(wide) + scales
