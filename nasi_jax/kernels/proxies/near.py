"""NEAR: the effective rank of what layers return."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.channels import entropy
from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.outputs import tap_outputs
from nasi_jax.types import ApplyFn, Batch, Params


def near(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """sum_l exp(H_l), H_l the entropy of the singular values of layer l's output; more is better.

    The singular values, divided by their sum, are those of as many rows as there are channels, a
    row an example and position of the output `[B, ..., C]`: the first ones here, in their code
    those from a random one on. exp(H_l) is the effective rank. Layers are dense and convolutional
    ones, normalization and ReLUs that the outputs depend on. From Husistein et al., "NEAR" (ICLR
    2025, arXiv:2408.08776), whose code takes PyTorch's own initialization, batch statistics, and
    the mean over some initializations.

    Args:
      key: random key, consumed. It decides nothing but which layers count.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`; the labels are not read.

    Returns:
      A scalar, at least 0.

    Raises:
      ValueError: if there is no such layer.
      UnreadableProgram: see `tap_outputs`.
    """
    dtype = np.promote_types(batch.inputs.dtype, jnp.float32)

    def measure(outputs: jax.Array, cotangent: jax.Array) -> jax.Array:
        channels = outputs.shape[-1]
        square = outputs.astype(dtype).reshape(-1, channels)[:channels]
        counts = jnp.any(cotangent != 0) & jnp.any(square != 0)
        safe = jnp.where(counts, square, jnp.ones_like(square))
        singular = jnp.linalg.svd(safe, compute_uv=False)
        return jnp.where(counts, jnp.exp(entropy(singular)), 0)

    def outputs_of(zero: jax.Array) -> jax.Array:
        return tap_outputs(
            measure, zero, apply_fn, params, batch.inputs, "linear", "normalized", "relu"
        )

    return random_gradient(key, outputs_of, jnp.zeros((), dtype))
