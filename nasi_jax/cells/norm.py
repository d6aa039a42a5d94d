"""Normalisation by the statistics of a batch, with the source of the statistics named."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasi_jax.conv import widened
from nasi_jax.types import NormMode

EPSILON = 1e-5
"""Added to a variance."""


class Norm(nn.Module):
    """Batch normalisation over `[B, H, W, C]`.

    In mode `frozen` the statistics are the collection `batch_stats`. They are taken from the
    inputs whenever that collection is mutable (at `init`, and in `apply(..., mutable=
    ["batch_stats"])`, which is how a reference batch is named), and are constants otherwise.

    Attributes:
      mode: see `nasi_jax.types.NormMode`.
      affine: whether there is a scale (initially 1) and a shift (initially 0) per channel.
      param_dtype: dtype of scale and shift.
    """

    mode: NormMode
    affine: bool
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises `[B, H, W, C]`."""
        outputs = widened(inputs)
        if self.mode == "batch":
            outputs, _ = standardised(outputs)
        elif self.mode == "frozen":
            mean, variance = self._frozen_statistics(outputs)
            outputs = (outputs - mean) * jax.lax.rsqrt(variance + EPSILON)
        if self.affine:
            shape = (inputs.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
            shift = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            outputs = outputs * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
        return outputs.astype(inputs.dtype)

    def _frozen_statistics(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance as `[1, 1, 1, C]`."""
        if not self.is_mutable_collection("batch_stats"):
            return (
                self.get_variable("batch_stats", "mean"),
                self.get_variable("batch_stats", "variance"),
            )
        mean = _mean(inputs)
        variance = _mean(jnp.square(inputs - mean))
        self.put_variable("batch_stats", "mean", mean)
        self.put_variable("batch_stats", "variance", variance)
        return mean, variance


@jax.custom_jvp
def standardised(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """y = (x - mean) / sqrt(variance + epsilon) over a batch, and 1 / sqrt(variance + epsilon).

    With a derivative of its own: dy = (dx - mean(dx) - y mean(y dx)) / sqrt(variance + epsilon),
    whose transpose is the same again. That takes two means; the one that JAX finds takes more, and
    the more so the higher its order.

    Args:
      inputs: x, `[B, H, W, C]`.

    Returns:
      `[B, H, W, C]` and `[1, 1, 1, C]`.
    """
    mean = _mean(inputs)
    scale = jax.lax.rsqrt(_mean(jnp.square(inputs - mean)) + EPSILON)
    return (inputs - mean) * scale, scale


@standardised.defjvp
def _standardised_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    outputs, scale = standardised(*primals)
    (tangent,) = tangents
    slope = _mean(outputs * tangent)
    change = (tangent - _mean(tangent) - outputs * slope) * scale
    return (outputs, scale), (change, -jnp.square(scale) * slope)


def _mean(inputs: jax.Array) -> jax.Array:
    return jnp.mean(inputs, axis=(0, 1, 2), keepdims=True)
