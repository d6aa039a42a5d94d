"""The empirical neural tangent kernel itself, dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.independence import require_independent
from nasi_jax.types import ApplyFn, Params

Contraction = Literal["none", "outputs", "label", "summed_logits"]
"""What of the kernel's output axes is kept; see `ntk`."""


def ntk(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    other: jax.Array | None = None,
    *,
    contraction: Contraction = "none",
    labels: jax.Array | None = None,
    other_labels: jax.Array | None = None,
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """The empirical NTK, Theta = J J'^T (equation (1)), or a contraction of it.

    Entry `[b, k, c, l]` is <grad f_k(x_b), grad f_l(x'_c)> over all parameters. It is summed in
    float64 where JAX's x64 mode is on, whatever the parameters' dtype; otherwise the sums over
    the parameter arrays are compensated (Neumaier). Small eigenvalues need x64: in float32 those
    below about 1e-6 of the largest are noise.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobians are taken at.
      inputs: `[B, ...]`.
      other: `[B', ...]`, the second set; the first one again if not given.
      contraction: `none` keeps the outputs. `outputs`: sum_k Theta[b, k, c, k], which is K times
        the mean that neural-tangents calls `trace_axes=(-1,)`. `label`: Theta at the outputs of
        the labels. `summed_logits`: sum_kl Theta[b, k, c, l], the kernel of the sum of the
        logits, which TE-NAS uses.
      labels: integers `[B]`, for `label`.
      other_labels: integers `[B']`, for `label` where there is a second set.
      coupled: whether outputs depend on the other examples of a batch. False: `apply_fn` is
        called with one example at a time. True: rows of the Jacobian of the whole batch, exactly,
        at as many backward passes of it. None: finds out, and refuses if so.
      chunk_size: how many examples of each set at a time. At most two blocks of
        `chunk_size * K` rows of the Jacobian are held; the rows of the second set are computed
        anew for each chunk of the first. All at once if not given.

    Returns:
      `[B, K, B', K]` for `none`, `[B, B']` otherwise.

    Raises:
      ValueError: for an unknown contraction, if `label` has no labels, and if the examples are
        coupled and `coupled` is not given.
      AssertionError: for inputs, labels or outputs of other shapes or types.
    """
    if contraction not in get_args(Contraction):
        raise ValueError(
            f"contraction must be one of {', '.join(get_args(Contraction))}, got {contraction!r}"
        )
    same = other is None
    other = inputs if other is None else other
    other_labels = labels if same else other_labels
    if contraction == "label" and (labels is None or other_labels is None):
        raise ValueError("the contraction label needs the labels of every set of inputs")
    chex.assert_equal_rank([inputs, other])
    chex.assert_equal_shape_suffix([inputs, other], inputs.ndim - 1)
    for examples, own in ((inputs, labels), (other, other_labels)):
        if own is not None:
            chex.assert_rank(own, 1)
            chex.assert_type(own, int)
            chex.assert_equal_shape_prefix([examples, own], 1)
    chex.assert_rank(jax.eval_shape(apply_fn, params, inputs), 2)
    require_independent(apply_fn, params, inputs, coupled)

    def cotangents(inputs: jax.Array, labels: jax.Array | None) -> jax.Array:
        """`[B, M, K]`."""
        like = jax.eval_shape(apply_fn, params, inputs)
        size, count = like.shape
        if contraction == "label":
            return jax.nn.one_hot(labels, count, dtype=like.dtype)[:, None]
        if contraction == "summed_logits":
            return jnp.ones((size, 1, count), like.dtype)
        return jnp.broadcast_to(jnp.eye(count, dtype=like.dtype), (size, count, count))

    route = _rows_through_the_batch if coupled else _rows_of_examples
    rows_of = route(apply_fn, params, inputs, cotangents(inputs, labels))
    columns_of = route(apply_fn, params, other, cotangents(other, other_labels))

    def block(first: jax.Array, second: jax.Array | None) -> jax.Array:
        rows = rows_of(first)
        columns = rows if second is None else columns_of(second)
        return _products(rows, columns, over_outputs=contraction == "outputs")

    first, second = jnp.arange(inputs.shape[0]), jnp.arange(other.shape[0])
    if chunk_size is None:
        kernel = block(first, None if same else second)
    else:
        chunks = _chunks(second, chunk_size)

        def stripe(first: jax.Array) -> jax.Array:
            blocks = lax.map(lambda second: block(first, second), chunks)
            joined = jnp.moveaxis(blocks, 0, 2)
            shape = joined.shape
            return joined.reshape(*shape[:2], -1, *shape[4:])[:, :, : second.shape[0]]

        stripes = lax.map(stripe, _chunks(first, chunk_size))
        kernel = stripes.reshape(-1, *stripes.shape[2:])[: first.shape[0]]
    return kernel if contraction == "none" else kernel[:, 0, :, 0]


Rows = Callable[[jax.Array], list[jax.Array]]
"""Maps numbers of examples `[R]` to their rows of the Jacobian, `[R, M, P_l]` a parameter array."""


def _rows_of_examples(
    apply_fn: ApplyFn, params: Params, inputs: jax.Array, cotangents: jax.Array
) -> Rows:
    def rows(example: jax.Array) -> list[jax.Array]:
        _, pull = jax.vjp(lambda params: apply_fn(params, inputs[example][None])[0], params)
        return jax.tree.leaves(jax.vmap(pull)(cotangents[example]))

    return lambda examples: _flat(jax.vmap(rows)(examples))


def _rows_through_the_batch(
    apply_fn: ApplyFn, params: Params, inputs: jax.Array, cotangents: jax.Array
) -> Rows:
    outputs, pull = jax.vjp(lambda params: apply_fn(params, inputs), params)

    def row(example: jax.Array, cotangent: jax.Array) -> list[jax.Array]:
        placed = jnp.zeros_like(outputs).at[example].set(cotangent)
        return jax.tree.leaves(pull(placed))

    each = jax.vmap(jax.vmap(row, in_axes=(None, 0)))
    return lambda examples: _flat(each(examples, cotangents[examples]))


def _flat(leaves: list[jax.Array]) -> list[jax.Array]:
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]


def _products(rows: list[jax.Array], columns: list[jax.Array], *, over_outputs: bool) -> jax.Array:
    """sum_l <rows_l, columns_l>, `[R, M, C, M]`; with the outputs summed over, `[R, 1, C, 1]`."""
    wide = jax.dtypes.canonicalize_dtype(jnp.float64)
    equation = "rmp,cmp->rc" if over_outputs else "rmp,cnp->rmcn"
    total = error = jnp.zeros((), wide)
    for left, right in zip(rows, columns, strict=True):
        product = jnp.einsum(
            equation,
            left.astype(wide),
            right.astype(wide),
            precision=lax.Precision.HIGHEST,
        )
        added = total + product
        larger = jnp.abs(total) >= jnp.abs(product)
        error += jnp.where(larger, (total - added) + product, (product - added) + total)
        total = added
    kernel = total + error
    return kernel[:, None, :, None] if over_outputs else kernel


def _chunks(examples: jax.Array, size: int) -> jax.Array:
    """Numbers in rows of `size`; the last row is filled up with the last number."""
    missing = -examples.shape[0] % size
    return jnp.pad(examples, (0, missing), mode="edge").reshape(-1, size)
