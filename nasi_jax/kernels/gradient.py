"""The two gradients that proxies are made of: of the loss, and of random sums of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from nasi_jax.kernels.stacks import by_layer
from nasi_jax.kernels.trace import mean_loss
from nasi_jax.types import ApplyFn, Batch, Loss, Params

T = TypeVar("T")

A_FEW = 4
"""As many examples as it takes to see what the outputs depend on."""


def loss_gradient(apply_fn: ApplyFn, params: Params, batch: Batch, loss: Loss) -> Params:
    """The gradient of the mean loss of a batch in the parameters."""

    def loss_of(params: Params) -> jax.Array:
        return mean_loss(apply_fn(params, batch.inputs), batch.labels, loss)

    return jax.grad(loss_of)(params)


def live_layers(
    key: jax.Array, apply_fn: ApplyFn, params: Params, inputs: jax.Array
) -> list[jax.Array]:
    """For each leaf of the parameters, which of its layers `[layers]` the outputs depend on.

    By the first few inputs, and almost surely. See `by_layer` for what a layer is.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.
    """
    inputs = inputs[:A_FEW]
    gradient = random_gradient(key, lambda params: apply_fn(params, inputs), params)
    return [jnp.any(layers != 0, axis=1) for layers in by_layer(apply_fn, params, inputs, gradient)]


def random_gradient(key: jax.Array, function: Callable[[T], jax.Array], at: T) -> T:
    """The gradient of <v, function(at)> for a v of independent standard normal entries.

    Such a v is generic: no gradient is 0 because terms cancel, so what has gradient 0 is what the
    outputs do not depend on. In a supernet with one-hot weights that is what the architecture
    does not have.

    Args:
      key: random key, consumed.
      function: maps a pytree to an array.
      at: the pytree that the gradient is taken at.
    """
    outputs, pull = jax.vjp(function, at)
    (gradient,) = pull(jax.random.normal(key, outputs.shape, outputs.dtype))
    return gradient
