"""The two gradients that proxies are made of: of the loss, and of random sums of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

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
