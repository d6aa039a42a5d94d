"""The empirical neural tangent kernel itself: on devices, or block by block on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from nasi_jax.kernels.independence import require_independent
from nasi_jax.kernels.parts import (
    Chunk,
    checked,
    copied,
    fold,
    num_shards,
    over_devices,
    passed_around,
    wide,
)
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
    mesh: Mesh | None = None,
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
      chunk_size: how many examples of each set at a time, on each device. It bounds the memory,
        whatever the number of examples: at most two blocks of `chunk_size * K` rows of the
        Jacobian are held besides the result, and what computing them takes. The rows of the
        second set are computed anew for each chunk of the first. All at once if not given.
      mesh: devices that share the work along its axis `data`; they must divide both sets. Each
        has all parameters, its part of each set, and its rows of the result, which stays split.
        Rows of the second set are computed by the device that has their examples and go around,
        so that a device holds one more block, on its way.

    Returns:
      `[B, K, B', K]` for `none`, `[B, B']` otherwise.

    Raises:
      ValueError: for an unknown contraction, if `label` has no labels, if the examples are
        coupled and `coupled` is not given, or is with a mesh, and for a chunk size or a mesh that
        is not as above.
      AssertionError: for inputs, labels or outputs of other shapes or types.
    """
    first, second = _sets(apply_fn, params, inputs, other, contraction, labels, other_labels)
    require_independent(apply_fn, params, inputs, coupled, mesh=mesh)
    num_outputs = jax.eval_shape(apply_fn, params, inputs).shape[1]
    kept = num_outputs if contraction == "none" else 1
    route = _rows_through_the_batch if coupled else _rows_of_examples

    def part(params: Params, first: Examples, second: Examples) -> jax.Array:
        """The rows of one device, `[R, M, B', M]`."""
        height, width = first.inputs.shape[0], second.inputs.shape[0]
        rows_of = route(apply_fn, params, first, contraction)
        columns_of = route(apply_fn, params, second, contraction)
        zero = jnp.int32(0)
        at_once = other is None and (chunk_size is None or chunk_size >= height)

        def stripe(kernel: jax.Array, chunk: Chunk) -> jax.Array:
            rows = rows_of(chunk)

            def block(kernel: jax.Array, against: Chunk) -> jax.Array:
                columns = rows if at_once else columns_of(against)
                for device, visiting in passed_around(columns, mesh):
                    product = _products(rows, visiting, over_outputs=contraction == "outputs")
                    place = (chunk.start, zero, device * width + against.start, zero)
                    kernel = lax.dynamic_update_slice(kernel, product, place)
                return kernel

            return fold(block, kernel, width, chunk_size)

        shape = (height, kept, width * num_shards(mesh), kept)
        return fold(stripe, jnp.zeros(shape, wide()), height, chunk_size)

    kernel: jax.Array = over_devices(part, mesh, summed=False)(params, first, second)
    return kernel if contraction == "none" else kernel[:, 0, :, 0]


def ntk_on_host(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    other: jax.Array | None = None,
    *,
    chunk_size: int,
    contraction: Contraction = "none",
    labels: jax.Array | None = None,
    other_labels: jax.Array | None = None,
    mesh: Mesh | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The kernel of `ntk` as a NumPy array, block by block: for one too large for its devices.

    One compiled program computes all blocks; of two that mirror one another, one is computed.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, each example on its own.
      params: parameters that the Jacobians are taken at.
      inputs: `[B, ...]`, here and below a NumPy array if not all of it shall be on a device.
      other: `[B', ...]`, the second set; the first one again if not given.
      chunk_size: how many examples of each set at a time, on each device, which holds one block
        of the kernel and what `ntk` holds besides it.
      contraction: see `ntk`.
      labels: see `ntk`.
      other_labels: see `ntk`.
      mesh: devices that share each block as in `ntk`, no more than there are examples in a set.
      out: what to fill, as `numpy.lib.format.open_memmap` opens it; a new array if not given.

    Returns:
      `out`, of the shape that `ntk` returns.

    Raises:
      ValueError: where `ntk` has one, if the examples are coupled, and for another shape of `out`.
      AssertionError: for inputs, labels or outputs of other shapes or types.
    """
    first, second = _sets(apply_fn, params, inputs, other, contraction, labels, other_labels)
    require_independent(apply_fn, params, inputs, None, way_out="use ntk with coupled=True")
    num_outputs = jax.eval_shape(apply_fn, params, inputs).shape[1]
    kept = (num_outputs,) if contraction == "none" else ()
    shape = (*first.inputs.shape[:1], *kept, *second.inputs.shape[:1], *kept)
    if out is None:
        out = np.empty(shape, wide())
    elif out.shape != shape:
        raise ValueError(f"out must be of the kernel's shape {shape}, got {out.shape}")

    @jax.jit
    def block(params: Params, first: Examples, second: Examples) -> jax.Array:
        return ntk(
            apply_fn,
            params,
            first.inputs,
            second.inputs,
            contraction=contraction,
            labels=first.labels,
            other_labels=second.labels,
            coupled=False,
            mesh=mesh,
        )

    params = copied(params, mesh)
    outputs = (slice(None),) * len(kept)
    for rows in _places(first, chunk_size, mesh):
        for columns in _places(second, chunk_size, mesh):
            if other is None and columns.start < rows.start:
                continue
            found = np.asarray(block(params, _at(first, rows), _at(second, columns)))
            out[(rows, *outputs, columns, *outputs)] = found
            if other is None:
                half = found.ndim // 2
                mirrored = np.moveaxis(found, range(half), range(half, 2 * half))
                out[(columns, *outputs, rows, *outputs)] = mirrored
    return out


class Examples(NamedTuple):
    """Inputs `[B, ...]`, and labels `[B]` where there are any."""

    inputs: jax.Array
    labels: jax.Array | None


def _sets(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    other: jax.Array | None,
    contraction: Contraction,
    labels: jax.Array | None,
    other_labels: jax.Array | None,
) -> tuple[Examples, Examples]:
    """Both sets of examples, checked."""
    if contraction not in get_args(Contraction):
        raise ValueError(
            f"contraction must be one of {', '.join(get_args(Contraction))}, got {contraction!r}"
        )
    first = Examples(inputs, labels)
    second = first if other is None else Examples(other, other_labels)
    if contraction == "label" and (first.labels is None or second.labels is None):
        raise ValueError("the contraction label needs the labels of every set of inputs")
    chex.assert_equal_rank([first.inputs, second.inputs])
    chex.assert_equal_shape_suffix([first.inputs, second.inputs], inputs.ndim - 1)
    for examples in (first, second):
        if examples.labels is not None:
            chex.assert_rank(examples.labels, 1)
            chex.assert_type(examples.labels, int)
            chex.assert_equal_shape_prefix(examples, 1)
    chex.assert_rank(jax.eval_shape(apply_fn, params, inputs), 2)
    return first, second


Rows = Callable[[Chunk], list[jax.Array]]
"""Maps a chunk of `R` examples to their rows of the Jacobian, `[R, M, P_l]` a parameter array."""


def _rows_of_examples(
    apply_fn: ApplyFn, params: Params, examples: Examples, contraction: Contraction
) -> Rows:
    def rows(example: Examples) -> list[jax.Array]:
        outputs, pull = jax.vjp(lambda params: apply_fn(params, example.inputs[None])[0], params)
        return _flat(jax.vmap(pull)(_cotangents(outputs, example.labels, contraction)))

    return lambda chunk: jax.vmap(rows)(jax.tree.map(chunk.of, examples))


def _rows_through_the_batch(
    apply_fn: ApplyFn, params: Params, examples: Examples, contraction: Contraction
) -> Rows:
    outputs, pull = jax.vjp(lambda params: apply_fn(params, examples.inputs), params)

    def placed(number: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jnp.zeros_like(outputs).at[number].set(cotangent)

    def rows(number: jax.Array, label: jax.Array | None) -> list[jax.Array]:
        cotangents = _cotangents(outputs[number], label, contraction)
        return _flat(jax.vmap(pull)(jax.vmap(placed, (None, 0))(number, cotangents)))

    numbers = jnp.arange(outputs.shape[0])
    return lambda chunk: jax.vmap(rows)(*jax.tree.map(chunk.of, (numbers, examples.labels)))


def _cotangents(outputs: jax.Array, label: jax.Array | None, contraction: Contraction) -> jax.Array:
    """`[M, K]`, of an example with the outputs `[K]`."""
    count, dtype = outputs.shape[0], outputs.dtype
    if contraction == "label":
        return jax.nn.one_hot(label, count, dtype=dtype)[None]
    return (
        jnp.ones((1, count), dtype)
        if contraction == "summed_logits"
        else jnp.eye(count, dtype=dtype)
    )


def _flat(gradients: Params) -> list[jax.Array]:
    return [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]


def _products(rows: list[jax.Array], columns: list[jax.Array], *, over_outputs: bool) -> jax.Array:
    """sum_l <rows_l, columns_l>, `[R, M, C, M]`; with the outputs summed over, `[R, 1, C, 1]`."""
    dtype = wide()
    equation = "rmp,cmp->rc" if over_outputs else "rmp,cnp->rmcn"
    total = error = jnp.zeros((), dtype)
    for left, right in zip(rows, columns, strict=True):
        product = jnp.einsum(
            equation,
            left.astype(dtype),
            right.astype(dtype),
            precision=lax.Precision.HIGHEST,
        )
        added = total + product
        larger = jnp.abs(total) >= jnp.abs(product)
        error += jnp.where(larger, (total - added) + product, (product - added) + total)
        total = added
    kernel = total + error
    return kernel[:, None, :, None] if over_outputs else kernel


def _places(examples: Examples, chunk_size: int, mesh: Mesh | None) -> list[slice]:
    """What of a set each block has; the last one reaches back, so that all have one size."""
    count, devices = examples.inputs.shape[0], num_shards(mesh)
    size = min(checked(chunk_size), count // devices) * devices
    if size < 1:
        raise ValueError(f"the {devices} devices of mesh must be no more than the {count} examples")
    starts = range(0, count, size)
    return [slice(start, start + size) for start in (min(start, count - size) for start in starts)]


def _at(examples: Examples, place: slice) -> Examples:
    cut: Examples = jax.tree.map(lambda array: array[place], examples)
    return cut
