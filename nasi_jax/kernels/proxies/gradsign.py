"""GradSign: how many examples agree on the sign of each weight's gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.kernels.redraw import kernels_of
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def gradsign(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """sum_w |sum_b sign(dL_b / dw)|, L_b the loss of example b alone; more is better.

    Weights w are those of kernels. Under batch statistics each example is a batch of its own, as in
    the authors' code. From Zhang and Jia, "GradSign" (ICLR 2022, arXiv:2110.08616). Copies in other
    repositories take the mean over weights, which in a supernet those that an architecture does
    not have would lower.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the gradients are taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.

    Returns:
      A scalar, at least 0, and a whole number up to rounding.

    Raises:
      UnreadableProgram: see `kernels_of`.
    """
    del key

    def add(total: Params, example: Batch) -> tuple[Params, None]:
        alone = jax.tree.map(lambda array: array[None], example)
        gradient = loss_gradient(apply_fn, params, alone, loss)
        return jax.tree.map(lambda sums, slope: sums + jnp.sign(slope), total, gradient), None

    signs, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, params), batch)
    are_kernels = kernels_of(apply_fn, params, batch.inputs)
    sums = (
        jnp.sum(jnp.abs(leaf))
        for leaf, is_kernel in zip(jax.tree.leaves(signs), are_kernels, strict=True)
        if is_kernel
    )
    return functools.reduce(jnp.add, sums)
