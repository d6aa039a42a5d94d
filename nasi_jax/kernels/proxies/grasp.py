"""GraSP: how the gradient norm changes as the weights are scaled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def grasp(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """-theta^T H g, with g and H gradient and Hessian of the mean loss in all parameters theta.

    From Wang et al. (ICLR 2020, arXiv:2002.07376), who prune the weights whose term of this sum
    is highest; as a score of architectures, from Abdelfattah et al. (ICLR 2021,
    arXiv:2101.08134), who compute it with batch statistics. Sign and direction are those of the
    latter's code, where more is better; its comments say that the sign was turned because of the
    correlation with accuracy. It sums over the weights of convolutional and dense layers, here
    all of `params` counts. Neither the temperature of the former nor its sampling of as many
    examples of every class is here.

    It is half the speed at which ||g||^2 falls as all parameters grow: -1/2 d/ds ||g(e^s theta)||^2
    at s = 0. The term of a layer whose scale the normalization after it takes away is exactly
    its own ||g_l||^2, up to the epsilon of the normalization.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, differentiable in forward
        over reverse mode.
      params: parameters theta.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.

    Returns:
      A scalar of either sign.
    """
    del key

    def gradient_of(params: Params) -> Params:
        return loss_gradient(apply_fn, params, batch, loss)

    # H is symmetric, so that theta^T H g = g^T H theta: one pass has both g and H theta.
    gradient, product = jax.jvp(gradient_of, (params,), (params,))
    terms = jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, product))
    return -functools.reduce(jnp.add, terms)
