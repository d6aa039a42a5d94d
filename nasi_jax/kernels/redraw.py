"""Parameters at other initial values than those that a network was initialized with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasi_jax.kernels.stacks import layer_axes
from nasi_jax.types import ApplyFn, Params


def kernels_of(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> list[bool]:
    """For each leaf of the parameters, whether layers have two axes or more of it.

    So has the kernel of a dense or convolutional layer; biases, scales and shifts have one.
    """
    axes = layer_axes(apply_fn, params, inputs)
    return [leaf.ndim - axis > 1 for leaf, axis in zip(jax.tree.leaves(params), axes, strict=True)]


def with_normal_kernels(
    key: jax.Array, apply_fn: ApplyFn, params: Params, inputs: jax.Array
) -> Params:
    """The parameters with kernels of independent standard normal entries.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, of which biases, scales and shifts stay as they are.
      inputs: `[B, ...]`.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    are_kernels = kernels_of(apply_fn, params, inputs)
    drawn = [
        jax.random.normal(key, leaf.shape, leaf.dtype) if is_kernel else leaf
        for key, leaf, is_kernel in zip(keys, leaves, are_kernels, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def with_constant_kernels(
    apply_fn: ApplyFn, params: Params, inputs: jax.Array, value: float
) -> Params:
    """The parameters with kernels and scales of one value, and all else 0.

    Scales are what bears the name `scale`, as in flax's layers.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    constants = []
    for (path, leaf), is_kernel in zip(paths, kernels_of(apply_fn, params, inputs), strict=True):
        is_scale = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
        constants.append(jnp.full_like(leaf, value if is_kernel or is_scale else 0))
    return jax.tree.unflatten(structure, constants)
