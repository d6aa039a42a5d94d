"""ZiCo: how steady gradients are from one mini-batch to the next."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.kernels.stacks import by_layer
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def zico(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    num_batches: int = 2,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """sum_l log sum_w mean |g_w| / std g_w over mini-batches; more is better.

    The g_w are the derivatives of the mean loss of a mini-batch in the parameters w of layer l;
    the standard deviation is that of the sample, divided by the number of mini-batches. From Li
    et al., "ZiCo" (ICLR 2023, arXiv:2301.11300), who compute it with batch statistics. As in
    their code, a parameter that does not deviate, and a layer where none does, adds nothing. A
    layer is an array of `params` here, or a slice of one that a scan reads slice by slice. Theirs
    are the weights of convolutional and dense layers; they leave out biases, and scales and
    shifts of normalization.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the gradients are taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      num_batches: number of equal parts, in order, that the batch is split into.
      loss: see `mean_loss`.

    Returns:
      A scalar.

    Raises:
      ValueError: if `num_batches` is below 2, or does not divide B.
    """
    del key
    layers = gradients_of_parts(apply_fn, params, batch, num_batches, loss)
    return functools.reduce(jnp.add, (jnp.sum(_log_sums(each)) for each in layers))


def gradients_of_parts(
    apply_fn: ApplyFn, params: Params, batch: Batch, num_batches: int, loss: Loss
) -> list[jax.Array]:
    """The gradients of the mean loss of each part of a batch, by layer.

    Arguments and errors are those of `zico`.

    Returns:
      For each leaf of the parameters `[num_batches, layers, entries of a layer]`.
    """
    size = batch.inputs.shape[0]
    if num_batches < 2 or size % num_batches:
        raise ValueError(
            f"num_batches must be at least 2 and divide the {size} examples, got {num_batches}"
        )
    parts = jax.tree.map(lambda array: array.reshape(num_batches, -1, *array.shape[1:]), batch)
    gradients = lax.map(lambda part: loss_gradient(apply_fn, params, part, loss), parts)
    return jax.vmap(lambda tree: by_layer(apply_fn, params, batch.inputs, tree))(gradients)


def _log_sums(gradients: jax.Array) -> jax.Array:
    """log sum_w mean |g_w| / std g_w of every layer in `[num_batches, layers, entries]`."""
    scaled, _ = scaled_to_one(gradients)  # the ratio has no scale
    ratios = jnp.mean(jnp.abs(scaled), axis=0) * inverse_deviations(scaled)
    totals = jnp.sum(ratios, axis=1)
    return jnp.log(jnp.where(totals > 0, totals, 1))


def scaled_to_one(gradients: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[num_batches, layers, entries]` over the largest of each layer, and these `[layers]`.

    With the largest at 1, squares do not vanish.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(gradients), axis=(0, 2), keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    return gradients / scale, scale[0, :, 0]


def inverse_deviations(values: jax.Array) -> jax.Array:
    """1 / std over the first axis, and 0 where nothing deviates."""
    variances = jnp.var(values, axis=0)
    deviates = variances > 0
    return jnp.where(deviates, lax.rsqrt(jnp.where(deviates, variances, 1)), 0)
