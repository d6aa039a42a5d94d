"""APD: the stable rank of feature maps, times how dense weights are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.channels import eigenvalues
from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.outputs import tap_outputs
from nasi_jax.kernels.redraw import kernels_of
from nasi_jax.kernels.stacks import by_layer
from nasi_jax.types import ApplyFn, Batch, Params


def apd(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """sum_l ||M_l||_F^2 / ||M_l||_2^2 times sum_l ||W_l||_1 / ||W_l||_2; more is better.

    M_l is what normalization layer l returns, a row an example and position and a column a
    channel, and W_l a kernel, whose norms are those of its entries. Layers count that the outputs
    depend on. The formula was found by a language model that improves the rank correlation with
    accuracies of NAS-Bench-201 (APD, table 1), so that scores there are no evidence of their own;
    which rows M_l has is our reading.

    Args:
      key: random key, consumed. It decides nothing but which layers count.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`; the labels are not read.

    Returns:
      A scalar, at least 0.

    Raises:
      ValueError: if there is no normalization.
      UnreadableProgram: see `tap_outputs`.
    """
    dtype = np.promote_types(batch.inputs.dtype, jnp.float32)

    def measure(outputs: jax.Array, cotangent: jax.Array) -> jax.Array:
        rows = outputs.astype(dtype).reshape(-1, outputs.shape[-1])
        spectrum = eigenvalues(rows.T @ rows / len(rows))
        counts = jnp.any(cotangent != 0) & (spectrum[0] > 0)
        return jnp.where(counts, jnp.sum(spectrum) / jnp.where(counts, spectrum[0], 1), 0)

    def outputs_of(arguments: tuple[jax.Array, Params]) -> jax.Array:
        zero, params = arguments
        return tap_outputs(measure, zero, apply_fn, params, batch.inputs, "normalized")

    ranks, gradient = random_gradient(key, outputs_of, (jnp.zeros((), dtype), params))
    kernels, slopes = (
        by_layer(apply_fn, params, batch.inputs, tree) for tree in (params, gradient)
    )
    densities = (
        jnp.sum(jnp.where(jnp.any(slope != 0, axis=1), _density(kernel), 0))
        for kernel, slope, is_kernel in zip(
            kernels, slopes, kernels_of(apply_fn, params, batch.inputs), strict=True
        )
        if is_kernel
    )
    return ranks * functools.reduce(jnp.add, densities).astype(dtype)


def _density(rows: jax.Array) -> jax.Array:
    """||w||_1 / ||w||_2 of each row."""
    norms = jnp.linalg.norm(rows, axis=1)
    return jnp.sum(jnp.abs(rows), axis=1) / jnp.where(norms > 0, norms, 1)
