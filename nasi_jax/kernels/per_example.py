"""The gradient norm of every example by itself, without the gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.independence import require_independent
from nasi_jax.kernels.interpreter import (
    ENTERED,
    Layer,
    Operation,
    Rule,
    UnreadableProgram,
    intercept,
    layer_of,
    same_entries,
)
from nasi_jax.types import ApplyFn, Params


def squared_gradient_norms(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    cotangents: jax.Array,
    *,
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """||v^T J_b||^2 of every example b and output cotangent v: one number each, J never held.

    J_b `[K, P]` is the Jacobian of the outputs of example b in all parameters. The kernel of a
    dense or convolutional layer that is read once has, with its patches A `[S, K']` and the
    cotangents B `[S, O]` of its S output positions, the gradient A^T B, whose squared norm is
    taken at once: as ||A^T B||_F^2 (direct), or as <A A^T, B B^T> (ghost: Goodfellow,
    arXiv:1510.01799; Rochette et al., arXiv:1912.06015) where that is the fewer operations,
    S (K' / M + O) < K' O, as A A^T serves all M cotangents of an example. Kernels in the body of
    a scan are taken an iteration at a time. All other parameters go through their gradients. The
    result is that of `vmap(grad)`, whatever the network; groups, depthwise ones too, are blocks
    of A^T B. Where JAX writes programs in a form that is not known here (see
    `interpreter.UnreadableProgram`), all parameters go through their gradients, for the same
    result. With NAS-Bench-201 and 32 images on two CPU cores that takes 1.3 times as long for one
    cotangent an example and for ten, with 1.4 and 4 times the memory (`benchmarks/estimators.py
    --batch-size 32`); in a trial on an H200 with 64 images as long, with 2 and 5 times the memory.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobian is taken at.
      inputs: `[B, ...]`.
      cotangents: `[B, M, K]`, M of them for each example.
      coupled: whether outputs depend on the other examples of a batch. False: `apply_fn` is
        called with one example at a time. True: J_b is taken through the whole batch, exactly,
        with `B M` backward passes of it. None: finds out, and refuses if so.
      chunk_size: how many examples (of coupled ones: how many backward passes) at a time. It
        bounds the memory. If not given, on CPU the largest divisor of their number from 4 to 8,
        so that what is at work stays near the caches; without one, and elsewhere, all (of coupled
        ones the M of one example, each of which takes the whole batch).

    Returns:
      `[B, M]`.

    Raises:
      ValueError: if the examples are coupled and `coupled` is not given.
      AssertionError: if `cotangents` is not of the shape above.
    """
    chex.assert_rank(cotangents, 3)
    chex.assert_equal_shape_prefix([inputs, cotangents], 1)
    require_independent(apply_fn, params, inputs, coupled)
    if coupled:
        return _norms_through_the_batch(apply_fn, params, inputs, cotangents, chunk_size)
    leaves, structure = jax.tree.flatten(params)
    try:
        kernels = _kernels(apply_fn, structure, leaves, inputs[:1])
    except UnreadableProgram:
        kernels = set()
    others = {index: leaf for index, leaf in enumerate(leaves) if index not in kernels}
    count = cotangents.shape[1]

    def norms(inputs: jax.Array, cotangents: jax.Array) -> jax.Array:
        def outputs_of(tap: jax.Array, others: dict[int, jax.Array]) -> jax.Array:
            merged = [others.get(index, leaf) for index, leaf in enumerate(leaves)]
            if not kernels:
                return apply_fn(jax.tree.unflatten(structure, merged), inputs[None])[0]
            rule = functools.partial(_tap, tap, kernels, count)
            return _labelled(rule, apply_fn, structure, merged, inputs[None])[0]

        outputs, pull = jax.vjp(outputs_of, jnp.zeros((), cotangents.dtype), others)

        def norm(cotangent: jax.Array) -> jax.Array:
            of_kernels, gradients = pull(cotangent.astype(outputs.dtype))
            return functools.reduce(jnp.add, map(squared_norm, gradients.values()), of_kernels)

        return jax.vmap(norm)(cotangents)

    return _mapped(norms, chunk_size, elsewhere=len(inputs))(inputs, cotangents)


def squared_norm(tree: Params) -> jax.Array:
    """The sum of the squares of all entries of all leaves."""
    return functools.reduce(jnp.add, (jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def _norms_through_the_batch(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    cotangents: jax.Array,
    chunk_size: int | None,
) -> jax.Array:
    size, count, outputs = cotangents.shape
    like, pull = jax.vjp(lambda params: apply_fn(params, inputs), params)

    def norm(example: jax.Array, cotangent: jax.Array) -> jax.Array:
        rows = jnp.zeros_like(like).at[example].set(cotangent.astype(like.dtype))
        return squared_norm(pull(rows)[0])

    examples = jnp.repeat(jnp.arange(size), count)
    mapped = _mapped(norm, chunk_size, elsewhere=count)
    return mapped(examples, cotangents.reshape(-1, outputs)).reshape(size, count)


def _mapped(
    function: Callable[..., jax.Array], chunk_size: int | None, *, elsewhere: int
) -> Callable[..., jax.Array]:
    """`vmap`, of `chunk_size` at a time; `elsewhere` if not given, and this is no CPU."""

    def mapped(*arrays: jax.Array) -> jax.Array:
        count = arrays[0].shape[0]
        size = default_chunk(count, elsewhere) if chunk_size is None else chunk_size
        return lax.map(lambda each: function(*each), arrays, batch_size=size)

    return mapped


def default_chunk(count: int, elsewhere: int) -> int:
    """How many of `count` are taken at a time by default: see `squared_gradient_norms`."""
    if jax.default_backend() != "cpu":
        return elsewhere
    return next((size for size in range(8, 3, -1) if count % size == 0), count)


class _Shared(NamedTuple):
    """The label of a parameter that every iteration of a scan reads."""

    leaf: int


def _labelled(
    rule: Rule,
    apply_fn: ApplyFn,
    structure: Any,
    leaves: list[jax.Array],
    inputs: jax.Array,
    on_loss: Callable[[Any], None] = lambda label: None,
) -> jax.Array:
    """The outputs by a rule that sees parameters labelled with their number."""

    def of_leaves(leaves: list[jax.Array], inputs: jax.Array) -> jax.Array:
        return apply_fn(jax.tree.unflatten(structure, leaves), inputs)

    labels = [*range(len(leaves)), None]
    outputs: jax.Array = intercept(
        of_leaves, rule, leaves, inputs, labels=labels, in_loop=_shared, on_loss=on_loss
    )
    return outputs


def _shared(label: int | _Shared) -> _Shared:
    return label if isinstance(label, _Shared) else _Shared(label)


def _kernels(
    apply_fn: ApplyFn, structure: Any, leaves: list[jax.Array], inputs: jax.Array
) -> set[int]:
    """The parameters that are the kernel of one layer, and nothing else."""
    sites: dict[int, set[tuple[int, ...]]] = {}
    others: set[int] = set()

    def lose(label: int | _Shared) -> None:
        others.add(_shared(label).leaf)

    def rule(operation: Operation) -> Any:
        if operation.name in ENTERED:
            return None
        labels = [label for label in operation.labels if label is not None]
        view = same_entries(operation)
        if view is None and layer_of(operation) is not None and isinstance(labels[0], int):
            sites.setdefault(labels[0], set()).add(operation.site)
        elif view is None:
            for label in labels:
                lose(label)
        return view

    def trace(leaves: list[jax.Array], inputs: jax.Array) -> jax.Array:
        return _labelled(rule, apply_fn, structure, leaves, inputs, lose)

    jax.eval_shape(trace, leaves, inputs)
    return {leaf for leaf, found in sites.items() if len(found) == 1} - others


def _tap(tap: jax.Array, kernels: set[int], count: int, operation: Operation) -> Any:
    """The rule for a zero at every layer whose cotangent is the squared norm.

    Args:
      tap: the zero.
      kernels: which parameters are kernels.
      count: cotangents of each example.
      operation: see `intercept`.
    """
    view = same_entries(operation)
    layer = None if view else layer_of(operation)
    if layer is None or operation.labels[layer.kernel] not in kernels:
        return view
    kernel, activations = operation.inputs[layer.kernel], operation.inputs[1 - layer.kernel]
    return [_tapped(layer, operation.apply, count)(tap, activations, kernel)], None


def _tapped(
    layer: Layer, apply: Callable[..., list[jax.Array]], count: int
) -> Callable[..., jax.Array]:
    def linear(activations: jax.Array, kernel: jax.Array) -> jax.Array:
        operands = (activations, kernel) if layer.kernel == 1 else (kernel, activations)
        return apply(*operands)[0]

    @jax.custom_vjp
    def op(tap: jax.Array, activations: jax.Array, kernel: jax.Array) -> jax.Array:
        return linear(activations, kernel)

    def forward(tap: jax.Array, activations: jax.Array, kernel: jax.Array) -> Any:
        return linear(activations, kernel), (activations, kernel)

    def backward(kept: Any, cotangent: jax.Array) -> Any:
        activations, kernel = kept
        transposed = jax.linear_transpose(lambda array: linear(array, kernel), activations)
        norm = _squared_norm(layer, count, activations, cotangent)
        return norm, transposed(cotangent)[0], None

    op.defvjp(forward, backward)
    return op


def _squared_norm(
    layer: Layer, count: int, activations: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """||A^T B||_F^2, block by block."""
    views, rows = layer.views(activations), layer.rows(cotangent)
    positions, features = rows.shape
    if layer.groups == 1:
        patches = jnp.concatenate(views, axis=1)
        width = patches.shape[1]
        if positions * (width / count + features) < width * features:
            return jnp.vdot(patches @ patches.T, rows @ rows.T)
        product = patches.T @ rows
        return jnp.vdot(product, product)
    blocks = rows.reshape(positions, layer.groups, -1)
    if views[0].shape[1] == layer.groups:
        # Depthwise: one number a tap and channel, summed up without ever holding the products.
        sums = [jnp.sum(view[:, :, None] * blocks, axis=0) for view in views]
        return functools.reduce(jnp.add, (jnp.vdot(total, total) for total in sums))
    patches = jnp.stack([view.reshape(positions, layer.groups, -1) for view in views])
    product = jnp.einsum("tsgc,sgo->tgco", patches, blocks)
    return jnp.vdot(product, product)
