"""Mixed operations, and a supernet's cell as one compiled body for all of its edges."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasi_jax.cells.layers.conv import widened

ApplyOp = Callable[[str, jax.Array], jax.Array]
"""Applies the operation of that name, inside a compact method of a module."""


class Scope(nn.Module):
    """Layers that a function makes, under one name."""

    layers: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the function."""
        return self.layers(inputs)


def mixed_op(
    module: Any, ops: Sequence[str], weights: jax.Array, inputs: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """The weighted sum of all operations, of which `none` adds nothing.

    Args:
      module: the module that has the operations' layers; its method `apply_op` applies one.
      ops: their names.
      weights: `[len(ops)]`.
      inputs: `[B, H, W, C]`.
      shape: shape of the output.
    """
    del shape
    outputs = [
        weights[column] * widened(module.apply_op(op, inputs))
        for column, op in enumerate(ops)
        if op != "none"
    ]
    return functools.reduce(jnp.add, outputs).astype(inputs.dtype)


def chosen_op(
    module: Any, ops: Sequence[str], weights: jax.Array, inputs: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """`mixed_op` of weights that are 1 for at most one operation, and 0 else: computes only that.

    The derivative in the weights is 0. Arguments are those of `mixed_op`.
    """
    if module.is_initializing():
        return mixed_op(module, ops, weights, inputs, shape)
    columns = [column for column, op in enumerate(ops) if op != "none"]

    def nothing(module: Any, inputs: jax.Array) -> jax.Array:
        return jnp.zeros(shape, inputs.dtype)

    def branch(op: str) -> Callable[[Any, jax.Array], jax.Array]:
        return lambda module, inputs: module.apply_op(op, inputs).astype(inputs.dtype)

    branches = [nothing, *(branch(ops[column]) for column in columns)]
    chosen = weights[jnp.array(columns)] != 0
    index = jnp.sum(jnp.where(chosen, jnp.arange(1, len(branches)), 0))
    output: jax.Array = nn.switch(index, branches, module, inputs)
    return output


class _MixedEdge(nn.Module):
    """Adds one edge's mixed operation to the node that it leads to: one step of a scan."""

    ops: tuple[str, ...]
    apply_op: ApplyOp
    remat: bool
    one_hot: bool

    @nn.compact
    def __call__(
        self, states: jax.Array, inputs: jax.Array | None, edge: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, None]:
        source, node, weights = edge
        read = (states if inputs is None else inputs)[source]

        def mixed(edge: _MixedEdge, weights: jax.Array, read: jax.Array) -> jax.Array:
            mix = chosen_op if edge.one_hot else mixed_op
            return mix(edge, edge.ops, weights, read, states.shape[1:])

        # The states are read outside of it: kept is the one that was read, not all of them.
        output = (nn.remat(mixed, prevent_cse=False) if self.remat else mixed)(self, weights, read)
        return states.at[node].add(output), None


def add_mixed_edges(
    states: jax.Array,
    edges: Sequence[tuple[int, int]],
    weights: jax.Array,
    *,
    ops: tuple[str, ...],
    apply_op: ApplyOp,
    name: str,
    inputs: jax.Array | None = None,
    remat: bool = False,
    one_hot: bool = False,
) -> jax.Array:
    """Adds the mixed operations of edges of one shape to the nodes, as a scan over the edges.

    One body compiles for all edges: the compilation of an unrolled cell takes several times as
    long. Parameters are stacked along a first axis, an entry an edge.

    Args:
      states: `[nodes, B, H, W, C]`.
      edges: `(node read, node)`, those into a node before those that leave it.
      weights: `[len(edges), len(ops)]`.
      ops: the operations' names.
      apply_op: applies one of them.
      name: name of the stacked parameters.
      inputs: `[.., B, H', W', C]`, what the edges read in place of `states`.
      remat: whether to keep only what an edge reads for the derivatives, and compute the rest
        anew.
      one_hot: whether the weights are one-hot or 0 in each row; see `chosen_op`.

    Returns:
      The states.
    """
    scan = nn.scan(
        _MixedEdge,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=len(edges),
    )
    sources, nodes = jnp.array(edges).T
    states, _ = scan(ops, apply_op, remat, one_hot, name=name)(
        states, inputs, (sources, nodes, weights)
    )
    return states


def unstacked(variables: Any, names: Mapping[str, Sequence[str]], axis: int = 0) -> Any:
    """Variables with an entry for each slice of a stack in place of the stack.

    Args:
      variables: the variables of a cell.
      names: for each stack the names of its slices, in order; what has no name is passed on.
      axis: the axis that the stacks run along.
    """
    flat = {name: values for name, values in variables.items() if name not in names}
    for name, slices in names.items():
        for position, label in enumerate(slices):
            flat[label] = jax.tree.map(
                lambda leaf, position=position: jnp.take(leaf, position, axis),
                variables.get(name, {}),
            )
    return flat
