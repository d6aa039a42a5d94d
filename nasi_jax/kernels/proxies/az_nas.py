"""The proxies of AZ-NAS, of the outputs of a network's stem and cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.blocks import block_outputs
from nasi_jax.kernels.channels import covariance, eigenvalues, entropy
from nasi_jax.kernels.proxies.proxy import one_of
from nasi_jax.types import ApplyFn, Batch, Params


def az_nas(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """`expressivity`, `progressivity` and `trainability` by name, of the same blocks.

    Arguments and errors are those of each.
    """
    key_of_inputs, key_of_signs = jax.random.split(key)
    inputs = jax.random.normal(key_of_inputs, batch.inputs.shape, batch.inputs.dtype)

    def outputs_of(given: list[jax.Array] | None = None) -> list[jax.Array]:
        return block_outputs(apply_fn, params, inputs, given)

    # Once more with the outputs in their own place, so that each depends on those that it reads.
    outputs = outputs_of()
    _, pull = jax.vjp(outputs_of, outputs)
    entropies = jnp.stack(
        [entropy(eigenvalues(covariance(output)), shift=1e-8) for output in outputs]
    )
    keys = jax.random.split(key_of_signs, len(outputs))
    signs = [
        jax.random.rademacher(key, output.shape, output.dtype)
        for key, output in zip(keys, outputs, strict=True)
    ]
    # A block may read the one before the last as well: even and odd ones are pulled back apart.
    pulled = []
    for parity in (0, 1):
        chosen = [
            sign if number % 2 == parity else jnp.zeros_like(sign)
            for number, sign in enumerate(signs)
        ]
        (gradients,) = pull(chosen)
        pulled.append(gradients)
    gains = [
        _gain(pulled[number % 2][number - 1], signs[number]) for number in range(1, len(signs))
    ]
    return {
        "expressivity": _or_lowest(jnp.sum(entropies)),
        "progressivity": _or_lowest(jnp.min(jnp.diff(entropies))),
        "trainability": jnp.mean(jnp.stack(gains)),
    }


def _or_lowest(score: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(score), -jnp.inf, score)


@one_of(az_nas)
def expressivity(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """sum_i E_i, E_i the entropy of the spectrum of block i's channels; more is better.

    E_i = -sum_c p_c log(p_c + 1e-8), p the eigenvalues of the covariance `[C, C]` of the channels
    of the block's output, over examples and positions, divided by their sum. Blocks are the stem
    and the cells; see `block_outputs`. From Lee and Ham, "AZ-NAS" (CVPR 2024, arXiv:2403.19232),
    whose code has batch statistics, weights by He et al. and 64 standard normal images in place of
    the batch's. Such images are drawn here too, as many as there are in the batch.

    Args:
      key: random key of the images, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape is read.

    Returns:
      A scalar; -inf where a block's output is constant.

    Raises:
      ValueError: see `block_outputs`.
    """
    return az_nas(key, apply_fn, params, batch)["expressivity"]


@one_of(az_nas)
def progressivity(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """min_i (E_{i+1} - E_i), with E_i as in `expressivity`; more is better.

    From AZ-NAS, as `expressivity` is. Arguments, errors and the result are those of `expressivity`.
    """
    return az_nas(key, apply_fn, params, batch)["progressivity"]


@one_of(az_nas)
def trainability(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """mean_i (2 - s_i - 1 / (s_i + 1e-6)), s_i the gain of gradients through block i; at most 0.

    With a cotangent g_i of independent signs at the output of block i and its pullback h_i to the
    output of the block before, s_i is the largest singular value of h_i^T g_i / (B H W), summed
    over examples and positions, `[C_{i-1}, C_i]`. Where a block halves the image, the four
    positions that become one are channels of h_i (space to depth). A block that pulls g_i back
    unchanged, an identity, counts as -inf. From AZ-NAS, whose blocks read one block each. Where
    others are read too, as in DARTS, h_i is what comes from block i alone.

    Args:
      key: random key of the images and of the g_i, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape is read.

    Returns:
      A scalar; -inf if a block is an identity.

    Raises:
      ValueError: see `block_outputs`; or if a block enlarges the image.
    """
    return az_nas(key, apply_fn, params, batch)["trainability"]


def _gain(into: jax.Array, out_of: jax.Array) -> jax.Array:
    """2 - s - 1 / (s + 1e-6) of a block with these cotangents at its input and output."""
    is_identity = jnp.array(False)
    if into.shape == out_of.shape:
        is_identity = jnp.all(into == out_of)
    else:
        into = _space_to_depth(into, out_of.shape)
    rows, columns = (array.reshape(-1, array.shape[-1]) for array in (into, out_of))
    largest = jnp.linalg.norm(rows.T @ columns / len(rows), ord=2)
    return jnp.where(is_identity, -jnp.inf, 2 - largest - 1 / (largest + 1e-6))


def _space_to_depth(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[B, H, W, C]` with the size of an image `[B, h, w, ...]`, and more channels for that."""
    strides = np.divide(array.shape[1:-1], shape[1:-1])
    if np.any(strides < 1) or np.any(strides % 1):
        raise ValueError(
            f"a block must keep or divide the size of images, got {array.shape} to {shape}"
        )
    split = [
        part
        for extent, stride in zip(shape[1:-1], strides.astype(int), strict=True)
        for part in (extent, int(stride))
    ]
    parts = array.reshape(len(array), *split, array.shape[-1])
    positions, within = range(1, len(split), 2), range(2, len(split) + 1, 2)
    return jnp.transpose(parts, (0, *positions, *within, parts.ndim - 1)).reshape(*shape[:-1], -1)
