"""The layers that an array of parameters holds: one, or one for each iteration of a scan."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from nasi_jax.kernels.interpreter import ENTERED, Operation, intercept
from nasi_jax.kernels.modules import scan_axes
from nasi_jax.types import ApplyFn, Params


def layer_axes(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> list[int]:
    """For each leaf of the parameters, how many of its leading axes are layers.

    A leading axis of a parameter that a scan reads slice by slice, such as the cells of a stage
    or the edges of a cell, is an axis of layers. Of flax modules such axes are known by what they
    read; of any other function from its program.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.

    Raises:
      UnreadableProgram: if it takes reading a program, and JAX writes it in an unknown form.
    """
    axes = scan_axes(apply_fn, params, inputs)
    return _axes_sliced_in_program(apply_fn, params, inputs) if axes is None else axes


def by_layer(apply_fn: ApplyFn, params: Params, inputs: jax.Array, tree: Any) -> list[jax.Array]:
    """Arrays like the parameters, each as the layers that it holds.

    The axes of layers, see `layer_axes`, are joined.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.
      tree: a tree like `params`, such as a gradient.

    Returns:
      For each leaf `[layers, entries of a layer]`.

    Raises:
      UnreadableProgram: if it takes reading a program, and JAX writes it in an unknown form.
    """
    axes = layer_axes(apply_fn, params, inputs)
    return [
        leaf.reshape(int(np.prod(leaf.shape[:depth])), -1)
        for leaf, depth in zip(jax.tree.leaves(tree), axes, strict=True)
    ]


def _axes_sliced_in_program(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> list[int]:
    """For each leaf, how many axes more it has than in the operations that read it."""
    leaves, structure = jax.tree.flatten(params)
    depths = [0] * len(leaves)

    def rule(operation: Operation) -> None:
        if operation.name not in ENTERED:
            for operand, label in zip(operation.inputs, operation.labels, strict=True):
                if label is not None:
                    depths[label] = max(depths[label], leaves[label].ndim - np.ndim(operand))

    def trace(leaves: list[jax.Array], inputs: jax.Array) -> Any:
        def of_leaves(leaves: list[jax.Array], inputs: jax.Array) -> jax.Array:
            return apply_fn(jax.tree.unflatten(structure, leaves), inputs)

        labels = [*range(len(leaves)), None]
        return intercept(of_leaves, rule, leaves, inputs, labels=labels)

    jax.eval_shape(trace, leaves, inputs)
    return depths
