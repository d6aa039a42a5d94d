"""Normalization by the statistics of a batch, with the source of the statistics named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.layers.conv import widened
from nasi_jax.types import NORMALIZED, UNNORMALIZED, NormMode

EPSILON = 1e-5
"""Added to a variance."""


class Norm(nn.Module):
    """Batch normalization over `[B, H, W, C]`.

    In mode `frozen` the statistics are the collection `batch_stats`. They are taken from the
    inputs whenever that collection is mutable (at `init`, and in `apply(..., mutable=
    ["batch_stats"])`, which is how a reference batch is named), and are constants otherwise.
    In mode `running` they are kept likewise, while the outputs are those of mode `batch`.

    Attributes:
      mode: see `nasi_jax.types.NormMode`.
      affine: whether there is a scale (initially 1) and a shift (initially 0) per channel.
      param_dtype: dtype of scale and shift.
      group: how many examples, one after another in the batch, share statistics; all if None. What
        is kept of several groups is the mean over them. With as many examples as one device holds
        it is what data parallel training usually does.
    """

    mode: NormMode
    affine: bool
    param_dtype: Any = jnp.float32
    group: int | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalizes `[B, H, W, C]`."""
        outputs = checkpoint_name(widened(inputs), UNNORMALIZED)
        trains = self.mode == "running" and self.is_mutable_collection("batch_stats")
        if trains:
            self._keep_statistics(jax.lax.stop_gradient(outputs))
        if self.mode == "batch" or trains:
            outputs = self._by_groups(lambda group: standardized(group)[0], outputs)
        elif self.mode in ("frozen", "running"):
            mean, variance = self._frozen_statistics(outputs)
            outputs = (outputs - mean) * jax.lax.rsqrt(variance + EPSILON)
        if self.affine:
            shape = (inputs.shape[-1],)
            scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
            shift = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
            outputs = outputs * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
        return checkpoint_name(outputs.astype(inputs.dtype), NORMALIZED)

    def _frozen_statistics(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance as `[1, 1, 1, C]`."""
        if self.is_mutable_collection("batch_stats"):
            self._keep_statistics(inputs)
        return (
            self.get_variable("batch_stats", "mean"),
            self.get_variable("batch_stats", "variance"),
        )

    def _keep_statistics(self, inputs: jax.Array) -> None:
        def deviations(group: jax.Array) -> jax.Array:
            return group - _mean(group)

        variance = _mean(jnp.square(self._by_groups(deviations, inputs)))
        self.put_variable("batch_stats", "mean", _mean(inputs))
        self.put_variable("batch_stats", "variance", variance)

    def _by_groups(self, change: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> jax.Array:
        if self.group is None:
            return change(inputs)
        groups = inputs.reshape(-1, self.group, *inputs.shape[1:])
        return jax.vmap(change)(groups).reshape(inputs.shape)


@jax.custom_jvp
def standardized(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
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


@standardized.defjvp
def _standardized_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    outputs, scale = standardized(*primals)
    (tangent,) = tangents
    slope = _mean(outputs * tangent)
    change = (tangent - _mean(tangent) - outputs * slope) * scale
    return (outputs, scale), (change, -jnp.square(scale) * slope)


def _mean(inputs: jax.Array) -> jax.Array:
    return jnp.mean(inputs, axis=(0, 1, 2), keepdims=True)
