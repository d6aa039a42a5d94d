"""InTrain: the participation ratio of feature maps, and how even gradients are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.channels import covariance
from nasi_jax.kernels.outputs import tap_outputs
from nasi_jax.kernels.stacks import by_layer
from nasi_jax.kernels.trace import mean_loss
from nasi_jax.types import ApplyFn, Batch, Params

_SMALL = 1e-10


def participation_ratio(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
) -> jax.Array:
    """gamma = sum_l log((tr C_l)^2 / tr(C_l^2)), C_l the covariance of layer l; more is better.

    C_l `[C, C]` is that of the channels of layer l's output over examples and positions, plus 1e-10
    on its diagonal; the ratio is the number of directions that it spreads over. From "InTrain"
    (CVPR 2026, arXiv:2606.18676), of which there is no code: a part of `intrain`, by itself.
    Arguments, errors and what is our reading are those of `intrain`.
    """
    gamma, _, _ = _parts(key, apply_fn, params, batch)
    return gamma


def intrain(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """gamma (1 + o) / log(L + 1), gamma the `participation_ratio` of L layers; more is better.

    o = sum_g min(1, std(g) / (max |g| + 1e-10)) over the gradients of all arrays of parameters, of
    the cross-entropy on standard normal images with random labels. From "InTrain" (CVPR 2026,
    arXiv:2606.18676). There is no code, and the paper's text leaves open which layers, which
    initialization and which small number: here layers are convolutions that the outputs depend
    on, before normalization, and an array of parameters is one or a slice that a scan reads.

    Args:
      key: random key of the images and labels, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape is read.

    Returns:
      A scalar.

    Raises:
      ValueError: if there is no such layer.
      UnreadableProgram: see `tap_outputs`.
    """
    gamma, number, gradient = _parts(key, apply_fn, params, batch)
    layers = by_layer(apply_fn, params, batch.inputs, gradient)
    evenness = functools.reduce(jnp.add, (jnp.sum(_evenness(rows)) for rows in layers))
    return gamma * (1 + evenness.astype(gamma.dtype)) / jnp.log(number + 1)


def _parts(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
) -> tuple[jax.Array, jax.Array, Params]:
    """gamma, the number of layers, and the gradient in the parameters."""
    key_of_inputs, key_of_labels = jax.random.split(key)
    inputs = jax.random.normal(key_of_inputs, batch.inputs.shape, batch.inputs.dtype)
    dtype = np.promote_types(inputs.dtype, jnp.float32)

    def measure(outputs: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        if outputs.ndim < 3:
            return jnp.zeros((), dtype), jnp.zeros((), dtype)
        found = covariance(outputs.astype(dtype))
        found += _SMALL * jnp.eye(len(found), dtype=dtype)
        ratio = jnp.square(jnp.trace(found)) / jnp.sum(jnp.square(found))
        counts = jnp.any(cotangent != 0).astype(dtype)
        return counts * jnp.log(ratio), counts

    def loss_of(zero: tuple[jax.Array, jax.Array], params: Params) -> jax.Array:
        outputs = tap_outputs(measure, zero, apply_fn, params, inputs, "linear")
        labels = jax.random.randint(key_of_labels, outputs.shape[:1], 0, outputs.shape[1])
        return mean_loss(outputs, labels, "cross_entropy")

    zero = jnp.zeros((), dtype)
    (gamma, number), gradient = jax.grad(loss_of, argnums=(0, 1))((zero, zero), params)
    return gamma, number, gradient


def _evenness(rows: jax.Array) -> jax.Array:
    """min(1, std(g) / (max |g| + 1e-10)) of each row."""
    largest = jnp.max(jnp.abs(rows), axis=1)
    scale = jnp.where(largest > 0, largest, 1)
    variance = jnp.var(rows / scale[:, None], axis=1)
    deviation = scale * jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return jnp.minimum(1, deviation / (largest + _SMALL))
