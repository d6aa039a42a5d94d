"""MeCo: how independent the channels of feature maps are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nasi_jax.kernels.channels import eigenvalues
from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.outputs import tap_outputs
from nasi_jax.types import ApplyFn, Batch, Params


def meco(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    num_channels: int | None = None,
) -> jax.Array:
    """sum_l lambda_min(P_l), P_l the correlations of layer l's channels; more is better.

    P_l `[C, C]` are Pearson's correlations over positions of the output of layer l for one
    standard normal image. Layers are convolutions, normalization and ReLUs that the outputs depend
    on. From Jiang et al., "MeCo" (NeurIPS 2023), whose code hooks every module of PyTorch,
    containers too, so that it counts some outputs repeatedly, takes an image of 64x64 whatever the
    data, and batch statistics. As in their code correlations with a constant channel are 0.

    Args:
      key: random key of the image, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape of one is read.
      num_channels: how many channels of each layer to take, times C / num_channels; all if not
        given. Theirs are 8 random ones (MeCo_opt), without which wider networks have lower scores;
        here the first ones, which are as random, since channels are initialized alike.

    Returns:
      A scalar, at least 0.

    Raises:
      ValueError: if there is no such layer.
      UnreadableProgram: see `tap_outputs`.
    """
    key_of_inputs, key_of_cotangents = jax.random.split(key)
    image = jax.random.normal(key_of_inputs, (1, *batch.inputs.shape[1:]), batch.inputs.dtype)
    dtype = np.promote_types(image.dtype, jnp.float32)

    def measure(outputs: jax.Array, cotangent: jax.Array) -> jax.Array:
        maps, weight = outputs.astype(dtype).reshape(-1, outputs.shape[-1]).T, 1.0
        if num_channels is not None and num_channels < len(maps):
            weight = len(maps) / num_channels
            maps = maps[:num_channels]
        counts = jnp.any(cotangent != 0).astype(dtype)
        return counts * weight * eigenvalues(_correlations(maps))[-1]

    def outputs_of(zero: jax.Array) -> jax.Array:
        return tap_outputs(measure, zero, apply_fn, params, image, "linear", "normalized", "relu")

    return random_gradient(key_of_cotangents, outputs_of, jnp.zeros((), dtype))


def _correlations(rows: jax.Array) -> jax.Array:
    """Of rows `[C, N]`, 0 with a row that is constant."""
    rows -= jnp.mean(rows, axis=1, keepdims=True)
    squares = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
    rows *= jnp.where(squares > 0, lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
    return rows @ rows.T
