"""Normalisation by the statistics of a batch, with the source of the statistics named."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasi_jax.conv import widened
from nasi_jax.types import NormMode


class Norm(nn.Module):
    """Batch normalisation over `[B, H, W, C]`, epsilon 1e-5.

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
        if self.mode != "none":
            mean, variance = self._statistics(outputs)
            outputs = (outputs - mean) * jax.lax.rsqrt(variance + 1e-5)
        if self.affine:
            shape = (inputs.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
            shift = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            outputs = outputs * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
        return outputs.astype(inputs.dtype)

    def _statistics(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance as `[1, 1, 1, C]`."""
        frozen = self.mode == "frozen"
        if frozen and not self.is_mutable_collection("batch_stats"):
            return (
                self.get_variable("batch_stats", "mean"),
                self.get_variable("batch_stats", "variance"),
            )
        mean = jnp.mean(inputs, axis=(0, 1, 2), keepdims=True)
        variance = jnp.mean(jnp.square(inputs - mean), axis=(0, 1, 2), keepdims=True)
        if frozen:
            self.put_variable("batch_stats", "mean", mean)
            self.put_variable("batch_stats", "variance", variance)
        return mean, variance
