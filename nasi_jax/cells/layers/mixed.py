"""Mixed operations, and a supernet's cell as one compiled body for all of its edges."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.cells.layers.conv import widened

ApplyOps = Callable[[Sequence[str], jax.Array], Iterable[jax.Array]]
"""The outputs of the operations of these names, inside a compact method of a module.

A generator where each is to be weighted before the next is computed: XLA:CPU rounds otherwise in
another order.
"""


class Scope(nn.Module):
    """Layers that a function makes, under one name."""

    layers: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the function."""
        return self.layers(inputs)


def _columns(ops: Sequence[str]) -> list[int]:
    """The columns of the operations that add something: all but `none`."""
    return [column for column, op in enumerate(ops) if op != "none"]


def _applied(module: Any, ops: Sequence[str], inputs: jax.Array) -> Iterable[jax.Array]:
    """The outputs of these operations, in the order of their columns."""
    outputs: Iterable[jax.Array] = module.apply_ops([ops[each] for each in _columns(ops)], inputs)
    return outputs


def mixed_op(
    module: Any, ops: Sequence[str], weights: jax.Array, inputs: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """The weighted sum of all operations, of which `none` adds nothing.

    Args:
      module: the module that has the operations' layers, and applies some by `apply_ops`.
      ops: their names.
      weights: `[len(ops)]`.
      inputs: `[B, H, W, C]`.
      shape: shape of the output.
    """
    del shape
    outputs = [
        weights[column] * widened(output)
        for column, output in zip(_columns(ops), _applied(module, ops, inputs), strict=True)
    ]
    return functools.reduce(jnp.add, outputs).astype(inputs.dtype)


def stacked_op(
    module: Any, ops: Sequence[str], weights: jax.Array, inputs: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """`mixed_op` as one sum over stacked outputs, whose gradient in the weights is one as well."""
    del shape
    outputs = widened(jnp.stack([*_applied(module, ops, inputs)]))
    shares = weights[np.array(_columns(ops))]
    return jnp.sum(shares.reshape(-1, 1, 1, 1, 1) * outputs, axis=0).astype(inputs.dtype)


def chosen_op(
    module: Any, ops: Sequence[str], weights: jax.Array, inputs: jax.Array, shape: Sequence[int]
) -> jax.Array:
    """`mixed_op` of weights that are 1 for at most one operation, and 0 else: computes only that.

    The derivative is exact in the weight of that operation, and 0 in all others. Only the inputs
    are kept for the derivatives: what one operation leaves on the way would be padded with zeros
    for all others. Arguments are those of `mixed_op`.
    """
    if module.is_initializing():
        return mixed_op(module, ops, weights, inputs, shape)
    columns = _columns(ops)

    def nothing(module: Any, inputs: jax.Array) -> jax.Array:
        return jnp.zeros(shape, inputs.dtype)

    def branch(op: str) -> Callable[[Any, jax.Array], jax.Array]:
        def apply_one(module: Any, inputs: jax.Array) -> jax.Array:
            (output,) = module.apply_ops((op,), inputs)
            return jnp.asarray(output, inputs.dtype)

        return apply_one

    branches = [nothing, *(branch(ops[column]) for column in columns)]
    shares = weights[jnp.array(columns)]
    chosen = shares != 0
    index = jnp.sum(jnp.where(chosen, jnp.arange(1, len(branches)), 0))

    def choose(module: Any, index: jax.Array, inputs: jax.Array) -> Any:
        return nn.switch(index, branches, module, inputs)

    output: jax.Array = nn.remat(choose, prevent_cse=False)(module, index, inputs)
    return output * jnp.sum(jnp.where(chosen, shares, 0)).astype(output.dtype)


class _MixedEdge(nn.Module):
    """One edge's mixed operation. Called, it is a step of a scan over the edges."""

    ops: tuple[str, ...]
    apply_ops: ApplyOps
    remat: bool
    mix: Callable[..., jax.Array]

    def __call__(
        self, states: jax.Array, inputs: jax.Array | None, edge: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, None]:
        """Adds the output to the node that the edge leads to."""
        source, node, weights = edge
        # The states are read outside of it: kept is the one that was read, not all of them.
        read = (states if inputs is None else inputs)[source]
        return states.at[node].add(self.output(weights, read, states.shape[1:])), None

    @nn.compact
    def output(self, weights: jax.Array, read: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The output, of that shape, for a state that is read."""

        def mixed(edge: _MixedEdge, weights: jax.Array, read: jax.Array) -> jax.Array:
            return edge.mix(edge, edge.ops, weights, read, shape)

        return (nn.remat(mixed, prevent_cse=False) if self.remat else mixed)(self, weights, read)


def schedule(edges: Sequence[tuple[int, int]], *, reads_nodes: bool) -> list[list[int]]:
    """The positions of edges by steps, of which each reads only what earlier steps completed.

    As few steps as there can be, which is the length of the longest path, and of as few edges as
    there then can be.

    Args:
      edges: `(node read, node)`, those into a node before those that leave it.
      reads_nodes: whether what is read are nodes that other edges lead to.
    """

    def of_width(width: int) -> list[list[int]]:
        left, steps = list(range(len(edges))), []
        while left:
            waits = {edges[row][1] for row in left} if reads_nodes else set()
            steps.append([row for row in left if edges[row][0] not in waits][:width])
            left = [row for row in left if row not in steps[-1]]
        return steps

    widths = range(1, len(edges) + 1)
    return min(map(of_width, widths), key=len)


def add_mixed_edges(
    states: jax.Array,
    edges: Sequence[tuple[int, int]],
    weights: jax.Array,
    *,
    ops: tuple[str, ...],
    apply_ops: ApplyOps,
    name: str,
    inputs: jax.Array | None = None,
    remat: bool = False,
    one_hot: bool = False,
    together: ApplyOps | None = None,
) -> jax.Array:
    """Adds the mixed operations of edges of one shape to the nodes, as a scan over the edges.

    One body compiles for all edges: the compilation of an unrolled cell takes several times as
    long. Parameters are stacked along a first axis, an entry an edge.

    Args:
      states: `[nodes, B, H, W, C]`.
      edges: `(node read, node)`, those into a node before those that leave it.
      weights: `[len(edges), len(ops)]`.
      ops: the operations' names.
      apply_ops: applies some of them.
      name: name of the stacked parameters.
      inputs: `[.., B, H', W', C]`, what the edges read in place of `states`.
      remat: whether to keep only what an edge reads for the derivatives, and compute the rest
        anew. For one-hot weights it is so always.
      one_hot: whether the weights are one-hot or 0 in each row; see `chosen_op`.
      together: what applies operations in place of `apply_ops` where no variable is changed. With
        it a step of the scan takes all edges that wait for no other; see `schedule`. Not used for
        weights that are one-hot, of which each edge has another branch.

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
    mix = chosen_op if one_hot else mixed_op
    one_by_one = scan(ops, apply_ops, remat and not one_hot, mix, name=name)
    changes = any(map(one_by_one.is_mutable_collection, ("params", "batch_stats")))
    if together is not None and not one_hot and not changes:
        edge = _MixedEdge(ops, together, remat, stacked_op, parent=None)
        return _add_together(edge, one_by_one.variables, states, edges, weights, inputs)
    sources, nodes = jnp.array(edges).T
    states, _ = one_by_one(states, inputs, (sources, nodes, weights))
    return states


def _add_together(
    edge: _MixedEdge,
    variables: Any,
    states: jax.Array,
    edges: Sequence[tuple[int, int]],
    weights: jax.Array,
    inputs: jax.Array | None,
) -> jax.Array:
    """`add_mixed_edges` by the steps of `schedule`.

    An edge that a step is short of is the first one once more, with weights 0, and goes nowhere.
    """
    steps = schedule(edges, reads_nodes=inputs is None)
    width = max(map(len, steps))
    rows = np.array([step + (width - len(step)) * [0] for step in steps])
    taken = np.array([[[slot < len(step)] for slot in range(width)] for step in steps])
    sources, nodes = np.array(edges).T
    leads_to = np.equal.outer(nodes[rows], np.arange(len(states))) & taken
    shares = jnp.asarray(leads_to, states.dtype)

    def add_step(states: jax.Array, step: Any) -> tuple[jax.Array, None]:
        variables, sources, shares, weights = step

        def output(variables: Any, weights: jax.Array, read: jax.Array) -> jax.Array:
            shape = states.shape[1:]
            mixed = edge.apply(variables, weights, read, shape, method=_MixedEdge.output)
            return cast(jax.Array, mixed)

        read = (states if inputs is None else inputs)[sources]
        outputs = jax.vmap(output)(variables, weights, read)
        # A scatter would add in any order on a GPU, and a product of matrices round its operands.
        given = outputs[:, None] * shares.reshape(*shares.shape, 1, 1, 1, 1)
        return states + jnp.sum(given, axis=0, dtype=states.dtype), None

    of_steps = jax.tree.map(lambda leaf: leaf[rows], variables)
    xs = (of_steps, sources[rows], shares, jnp.where(taken, weights[rows], 0))
    return jax.lax.scan(add_step, states, xs)[0]


def stacked(trees: Sequence[Any]) -> Any:
    """One tree of several of the same structure, their leaves stacked along a first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


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
