"""Convolutions and maxima over windows whose every derivative is a kernel of our own choice.

A convolution y = conv(x, w), its input gradient dx(g, w) and its weight gradient dw(x, g) are
three bilinear maps, each the transpose of the others:

  <conv(x, w), g> = <x, dx(g, w)> = <w, dw(x, g)>.

So the three, registered as primitives, serve derivatives of any order and in either mode. What
that buys, measured on two CPU cores:

- a depthwise convolution is a sum of shifted multiples, about 60 times faster than the grouped
  `lax.conv_general_dilated` of XLA:CPU, and its weight gradient a loop over images, 2 to 4 times
  faster than what differentiating that sum gives;
- XLA:CPU rewrites the gradients of a convolution into its fast form only outside of loops. In
  the body of a scan the gradients of `lax.conv_general_dilated` ran 25 times slower. Ours are in
  the fast form from the start;
- XLA:CPU fuses such sums into whatever reads them, in particular into updates of a buffer in a
  scan, which then run on one core. Ours are calls that it does not inline: kernels of their own,
  on all cores. That took a quarter off a search step of DARTS.

A maximum over windows is linear once the winners are known, so it is treated alike. What
differentiating a chain of selections gives, one padded array a tap, ran 20 times slower.

On other backends all three are `lax.conv_general_dilated` and its transposes, but for depthwise
convolutions on a GPU. There they are sums of shifted multiples as well: with the grouped
convolutions of its library a search step of DARTS took twice as long on an H200.

Under `vmap` each becomes one larger map of its kind: examples join the batch, kernels the
channels. The weight gradient of each example by itself, which JAX would turn into a grouped
convolution, is a product of matrices (dense) or sums of products (depthwise; on a GPU one larger
map as well).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from nasi_jax.types import Depthwise


def conv(inputs: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolution padded so that stride 1 keeps the size.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[k, k, C, F]`, k odd.
      stride: step of the window, a divisor of H and W.

    Returns:
      `[B, H / stride, W / stride, F]`.
    """
    chex.assert_rank([inputs, kernel], 4)
    if kernel.shape[0] == 1:
        return _every(inputs, stride) @ kernel[0, 0]
    return _DENSE.forward(inputs, kernel, _Window(kernel.shape[0], stride, 1))


def _every(inputs: jax.Array, stride: int) -> jax.Array:
    if stride == 1:
        return inputs
    # The barrier keeps the slice out of the fused products of XLA:GPU, which take a slice with a
    # stride over a whole axis for that axis, and then abort at the next slice or concatenation
    # that is fused (openxla/xla issue 47381).
    return lax.optimization_barrier(inputs[:, ::stride, ::stride])


def depthwise_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    method: Depthwise = "auto",
) -> jax.Array:
    """Convolution of every channel with its own kernel, padded so that stride 1 keeps the size.

    Args:
      inputs: `[B, H, W, C]`.
      kernel: `[k, k, 1, C]`, k odd.
      stride: step of the window, a divisor of H and W.
      dilation: distance of its taps.
      method: how it is computed, the derivatives too; see `nasi_jax.types.Depthwise`.

    Returns:
      `[B, H / stride, W / stride, C]`.
    """
    chex.assert_rank([inputs, kernel], 4)
    return _DEPTHWISE.forward(inputs, kernel, _Window(kernel.shape[0], stride, dilation, method))


def taps(
    inputs: jax.Array, size: int, *, stride: int = 1, dilation: int = 1, fill: float = 0.0
) -> list[jax.Array]:
    """The `size * size` shifted views that the taps of a window read, row by row.

    Args:
      inputs: `[B, H, W, C]`.
      size: taps a side.
      stride: step of the window.
      dilation: distance of its taps.
      fill: value of the padding.

    Returns:
      Arrays `[B, H / stride, W / stride, C]`.
    """
    reach = dilation * (size - 1)
    margin = (reach // 2, reach // 2)
    padded = jnp.pad(inputs, ((0, 0), margin, margin, (0, 0)), constant_values=fill)
    # Without the barrier XLA:CPU fuses the producer of `inputs` into every tap, and computes it
    # anew for each of them.
    padded = lax.optimization_barrier(padded)
    _, height, width, _ = inputs.shape
    return [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(0, reach + 1, dilation)
        for column in range(0, reach + 1, dilation)
    ]


def max_pool(inputs: jax.Array, size: int = 3, *, stride: int = 1) -> jax.Array:
    """Maximum over windows, padding not counted; of equal values the first has the gradient.

    Args:
      inputs: `[B, H, W, C]`.
      size: taps a side, odd.
      stride: step of the window, a divisor of H and W.

    Returns:
      `[B, H / stride, W / stride, C]`.
    """
    first, *others = taps(lax.stop_gradient(inputs), size, stride=stride, fill=-jnp.inf)
    best, winner = first, jnp.zeros(first.shape, jnp.int8)
    for index, other in enumerate(others, 1):
        wins = other > best
        best, winner = jnp.where(wins, other, best), jnp.where(wins, jnp.int8(index), winner)
    return _select_winners(inputs, winner, _Window(size, stride, 1))


def widened(array: jax.Array) -> jax.Array:
    """The array in float32 if it is of fewer bits: what long sums are taken in."""
    narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(jnp.float32) if narrow else array


class _Window(NamedTuple):
    size: int
    stride: int
    dilation: int
    method: Depthwise = "auto"


_Map = Callable[..., jax.Array]
"""Maps `(left, right, window)` to an array."""


def _lax_conv(x: jax.Array, w: jax.Array, window: _Window, groups: int) -> jax.Array:
    half = window.dilation * (window.size - 1) // 2
    return lax.conv_general_dilated(
        x,
        w,
        (window.stride, window.stride),
        ((half, half), (half, half)),
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _dilate(g: jax.Array, window: _Window) -> tuple[jax.Array, _Window]:
    """The cotangent with zeros between its entries, and the window that then has stride 1."""
    gap = (0, window.stride - 1, window.stride - 1)
    zero = jnp.zeros((), g.dtype)
    dilated = lax.pad(g, zero, ((0, 0, 0), gap, gap, (0, 0, 0)))
    return dilated, window._replace(stride=1)


def _views(x: jax.Array, window: _Window) -> list[jax.Array]:
    return taps(x, window.size, stride=window.stride, dilation=window.dilation)


def _dense_forward(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    return _lax_conv(x, w, window, groups=1)


def _dense_dx(g: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    # Behind the barrier XLA cannot fold the transposition into the convolution, which would
    # then be out of its fast form.
    mirrored = lax.optimization_barrier(jnp.swapaxes(w[::-1, ::-1], 2, 3))
    dilated, window = _dilate(g, window)
    return _lax_conv(dilated, mirrored, window, groups=1)


def _dense_dw(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    # Patches times cotangents. As a convolution over the images it took 1.5 to 2 times as long,
    # and 10 times where there is a stride.
    size, channels, features = window.size, x.shape[-1], g.shape[-1]
    count = _images_at_once(x, g, window)

    def add_images(total: jax.Array, images: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, g = images
        return total + _gradient(x, g, window), None

    images = tuple(array.reshape(-1, count, *array.shape[1:]) for array in (x, g))
    zeros = jnp.zeros((size**2 * channels, features), x.dtype)
    return lax.scan(add_images, zeros, images)[0].reshape(size, size, channels, features)


def _gradient(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """The weight gradient `[k * k * C, F]` of a dense convolution, by a product of matrices."""
    patches = jnp.concatenate(_views(x, window), axis=-1)
    return patches.reshape(-1, patches.shape[-1]).T @ g.reshape(-1, g.shape[-1])


def _images_at_once(x: jax.Array, g: jax.Array, window: _Window) -> int:
    """How many images, a divisor of their number, have patches that stay in a cache of 4 MiB.

    With all of 64 images at once the gradient of each took 5 times as long.
    """
    each = window.size**2 * x.shape[-1] * g.shape[-3] * g.shape[-2] * x.dtype.itemsize
    most = max(1, 2**22 // each)
    return max(count for count in range(1, min(most, len(x)) + 1) if len(x) % count == 0)


def _depthwise_forward(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    views = _views(x, window)
    weights = w.reshape(len(views), 1, 1, 1, -1)
    products = (view * weight for view, weight in zip(views, weights, strict=True))
    return functools.reduce(jnp.add, products)


def _depthwise_dx(g: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    dilated, window = _dilate(g, window)
    return _depthwise_forward(dilated, w[::-1, ::-1], window)


def _depthwise_dw(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    # A sum over images of all taps at once, each a shifted view of rows `[H, W C]` that are
    # gathered by their offset, so that XLA:CPU makes one loop of them. A loop for each tap takes
    # 3 times as long, and to compile 4 times as long.
    size, _, dilation, _ = window
    images, height, width, channels = x.shape
    margin = dilation * (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    dilated, _ = _dilate(g, window)
    rest = ((0, 0), (0, height - dilated.shape[1]), (0, width - dilated.shape[2]), (0, 0))
    rows, cotangents = lax.optimization_barrier(
        (
            padded.reshape(images, height + 2 * margin, -1),
            jnp.pad(dilated, rest).reshape(images, height, -1),
        )
    )

    def add_image(totals: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        rows, cotangent = image

        def view(shift: jax.Array) -> jax.Array:
            start = (shift[0], shift[1] * channels)
            return lax.dynamic_slice(rows, start, cotangent.shape)

        return totals + jax.vmap(view)(_shifts(window)) * cotangent[None], None

    zeros = jnp.zeros((size**2, height, width * channels), x.dtype)
    totals, _ = lax.scan(add_image, zeros, (rows, cotangents))
    sums = jnp.sum(jnp.sum(totals, axis=1).reshape(-1, width, channels), axis=1)
    return sums.reshape(size, size, 1, channels)


def _depthwise_dw_gathered(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    # One reduction over a gather of all shifted views: one kernel, where the sum over images is
    # a loop that launches two for each of them.
    size, stride, dilation, _ = window
    margin = (dilation * (size - 1) // 2,) * 2
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))

    def view(shift: jax.Array) -> jax.Array:
        return lax.dynamic_slice(padded, (0, *shift, 0), x.shape)[:, ::stride, ::stride]

    views = jax.vmap(view)(_shifts(window))
    return jnp.sum(views * g[None], axis=(1, 2, 3)).reshape(size, size, 1, -1)


def _shifts(window: _Window) -> jax.Array:
    """Row and column `[k * k, 2]` at which the view of each tap begins in the padded images."""
    return window.dilation * jnp.indices((window.size, window.size)).reshape(2, -1).T


def _dense_dw_each(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """Weight gradients `[N, k, k, C, F]` of `x[N, B, H, W, C]` and `g[N, B, h, w, F]`."""

    def each(x: jax.Array, g: jax.Array) -> jax.Array:
        return _gradient(x, g, window)

    def a_few_at_a_time(x: jax.Array, g: jax.Array) -> jax.Array:
        count = max(1, _images_at_once(x[:, 0], g[:, 0], window) // x.shape[1])
        return lax.map(lambda pair: each(*pair), (x, g), batch_size=count)

    products = lax.platform_dependent(x, g, cpu=a_few_at_a_time, default=jax.vmap(each))
    return products.reshape(x.shape[0], window.size, window.size, x.shape[-1], g.shape[-1])


def _depthwise_dw_each(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
    """Weight gradients `[N, k, k, 1, C]` of `x[N, B, H, W, C]` and `g[N, B, h, w, C]`."""
    views = _views(x.reshape(-1, *x.shape[2:]), window)
    sums = [jnp.sum(view.reshape(g.shape) * g, axis=(1, 2, 3)) for view in views]
    return jnp.stack(sums, axis=1).reshape(len(x), window.size, window.size, 1, -1)


def _select(x: jax.Array, winner: jax.Array, window: _Window) -> jax.Array:
    """Of each window the entry that its winner names."""
    count = window.size**2
    return _selected(_views(x, window), [winner] * count, range(count))


def _unselect(g: jax.Array, winner: jax.Array, window: _Window) -> jax.Array:
    """The transpose of `_select` in x: each entry sums over the windows that it won."""
    # Counted from 1, so that no tap has won in the padding. As in any transpose of a window the
    # taps come in reverse.
    dilated, dense = _dilate(g, window)
    winners, _ = _dilate(winner + jnp.int8(1), window)
    return _selected(_views(dilated, dense), _views(winners, dense), range(window.size**2, 0, -1))


def _selected(views: list[jax.Array], winners: list[jax.Array], taps: Iterable[int]) -> jax.Array:
    zero = jnp.zeros((), views[0].dtype)
    kept = [
        jnp.where(winner == tap, view, zero)
        for view, winner, tap in zip(views, winners, taps, strict=True)
    ]
    return functools.reduce(jnp.add, kept)


class _Bilinear:
    """The three primitives of one kind of convolution, dense or depthwise."""

    def __init__(
        self,
        name: str,
        *on_cpu: _Map,
        dw_each: _Map,
        depthwise: bool,
        on_gpu: Sequence[_Map | None] = (None, None, None),
    ):
        def forward(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
            return _lax_conv(x, w, window, x.shape[-1] if depthwise else 1)

        def dx(g: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
            batch, height, width, features = g.shape
            channels = features if depthwise else w.shape[2]
            shape = (batch, height * window.stride, width * window.stride, channels)
            like = jax.ShapeDtypeStruct(shape, g.dtype)
            return jax.linear_transpose(lambda x: forward(x, w, window), like)(g)[0]

        def dw(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
            shape = (window.size, window.size, 1 if depthwise else x.shape[-1], g.shape[-1])
            like = jax.ShapeDtypeStruct(shape, g.dtype)
            return jax.linear_transpose(lambda w: forward(x, w, window), like)(g)[0]

        elsewhere = (forward, dx, dw)
        names = (f"{name}_conv", f"{name}_conv_dx", f"{name}_conv_dw")
        primitives = [
            _primitive(*each) for each in zip(names, on_cpu, elsewhere, on_gpu, strict=True)
        ]
        self.forward, self.dx, self.dw = (_bind(primitive) for primitive in primitives)
        ad.defbilinear(
            primitives[0],
            lambda g, x, w, window: self.dx(g, w, window),
            lambda g, x, w, window: self.dw(x, g, window),
        )
        ad.defbilinear(
            primitives[1],
            lambda x, g, w, window: self.forward(x, w, window),
            lambda x, g, w, window: self.dw(x, g, window),
        )
        ad.defbilinear(
            primitives[2],
            lambda w, x, g, window: self.dx(g, w, window),
            lambda w, x, g, window: self.forward(x, w, window),
        )
        batched: tuple[tuple[tuple[int, int] | None, ...], ...]
        if depthwise:
            merged_dw = _merged(self.dw, (3, 3), 3)

            def dw_both(x: jax.Array, g: jax.Array, window: _Window) -> jax.Array:
                # On a GPU one kernel for all, where the sums are one each.
                each, merged = (functools.partial(f, window=window) for f in (dw_each, merged_dw))
                ways = {"cuda": merged, "rocm": merged, "default": each}
                return lax.platform_dependent(x, g, **ways)

            alike = _merged(self.forward, (3, 3), 3), _merged(self.dx, (3, 3), 3), dw_both
            batched = ((0, 0), None), ((0, 0), None), (None, None)
        else:
            alike = _vmapped(forward), _vmapped(dx), dw_each
            batched = ((0, 0), (3, 3)), ((0, 0), (2, 3)), ((3, 2), (3, 3))
        for primitive, both, (left, right) in zip(primitives, alike, batched, strict=True):
            _register_batching(primitive, left, right, both)


def _merged(bind: _Map, joined: tuple[int | None, int | None], split: int) -> _Map:
    """A vmapped map as one larger one.

    Args:
      bind: the map.
      joined: for each operand the axis that its vmapped axis, the first, joins; None if it has
        none.
      split: the axis of the result that the vmapped axis is then a part of.
    """

    def apply(left: jax.Array, right: jax.Array, window: _Window) -> jax.Array:
        operands = []
        for array, axis in zip((left, right), joined, strict=True):
            if axis is not None:
                count, shape = array.shape[0], array.shape[1:]
                merged = (*shape[:axis], count * shape[axis], *shape[axis + 1 :])
                array = jnp.moveaxis(array, 0, axis).reshape(merged)
            operands.append(array)
        result = bind(*operands, window)
        shape = result.shape
        parted = (*shape[:split], count, shape[split] // count, *shape[split + 1 :])
        return jnp.moveaxis(result.reshape(parted), split, 0)

    return apply


def _vmapped(function: _Map) -> _Map:
    return lambda left, right, window: jax.vmap(lambda *each: function(*each, window))(left, right)


def _bind(primitive: Primitive) -> _Map:
    return lambda left, right, window: primitive.bind(left, right, window=window)


def _primitive(name: str, on_cpu: _Map, elsewhere: _Map, on_gpu: _Map | None = None) -> Primitive:
    """A primitive that lowers to a map of each backend.

    Unless its window asks for `shift`, which is `on_cpu` there and `on_gpu` on all others, or for
    `lax`.

    Args:
      name: its name.
      on_cpu: the map on that backend.
      elsewhere: the map on backends that are not named.
      on_gpu: the map on a GPU; `elsewhere`, and `shift` what it is on the CPU, if not given.
    """
    primitive = Primitive(name)
    bind = _bind(primitive)

    @functools.cache  # JAX asks thousands of times while it traces a supernet
    def result_of(window: _Window, *like: jax.ShapeDtypeStruct) -> Any:
        result = jax.eval_shape(functools.partial(elsewhere, window=window), *like)
        return jax.core.ShapedArray(result.shape, result.dtype)

    def abstract(*arrays: Any, window: _Window) -> Any:
        like = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
        return result_of(window, *like)

    primitive.def_impl(lambda *arrays, window: jax.jit(bind, static_argnums=2)(*arrays, window))
    primitive.def_abstract_eval(abstract)
    cpu, gpu = _in_float32(on_cpu), _in_float32(on_gpu or on_cpu)
    auto_on_gpu = "shift" if on_gpu else "lax"
    for platform, auto, shift in (
        ("cpu", "shift", _uninlined(cpu)),
        ("cuda", auto_on_gpu, gpu),
        ("rocm", auto_on_gpu, gpu),
        (None, "lax", gpu),
    ):
        ways = {"shift": shift, "lax": elsewhere}
        ways["auto"] = ways[auto]
        mlir.register_lowering(
            primitive, mlir.lower_fun(_by_method(ways), multiple_results=False), platform=platform
        )
    return primitive


def _by_method(ways: Mapping[str, _Map]) -> _Map:
    return lambda left, right, window: ways[window.method](left, right, window)


def _in_float32(function: _Map) -> _Map:
    @functools.wraps(function)  # its name is what a profile shows
    def wide(left: jax.Array, right: jax.Array, window: _Window) -> jax.Array:
        return function(widened(left), widened(right), window).astype(left.dtype)

    return wide


def _uninlined(function: _Map) -> _Map:
    """The map as a call that XLA keeps, and fuses with nothing outside."""
    jitted = jax.jit(function, static_argnums=2)

    def call(left: jax.Array, right: jax.Array, window: _Window) -> jax.Array:
        return set_xla_metadata(jitted(left, right, window), inlineable="false")

    return call


def _linear_in_left(primitive: Primitive, transpose: Primitive) -> None:
    """The derivatives of a map that is linear in its left operand, the right one being integers."""

    def jvp(primals: Any, tangents: Any, window: _Window) -> tuple[jax.Array, Any]:
        result = primitive.bind(*primals, window=window)
        tangent = tangents[0]
        if isinstance(tangent, ad.Zero):
            return result, ad.Zero(jax.typeof(result))
        return result, primitive.bind(tangent, primals[1], window=window)

    def transposed(g: Any, left: Any, right: Any, window: _Window) -> tuple[Any, None]:
        if isinstance(g, ad.Zero):
            return ad.Zero(left.aval), None
        return transpose.bind(g, right, window=window), None

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed


def _register_batching(
    primitive: Primitive, left: tuple[int, int] | None, right: tuple[int, int] | None, both: _Map
) -> None:
    """The rule of a primitive under `vmap`.

    Args:
      primitive: one of the three.
      left: where only the left operand is vmapped, the axes of `_merged`; None to treat it as
        both.
      right: the same for the right one.
      both: the map where both are, with the vmapped axis first.
    """

    def rule(arrays: Any, axes: Any, window: _Window) -> tuple[jax.Array, int]:
        (count,) = {
            array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None
        }
        first = [
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        if axes[1] is None and left is not None:
            apply = _merged(_bind(primitive), (left[0], None), left[1])
        elif axes[0] is None and right is not None:
            apply = _merged(_bind(primitive), (None, right[0]), right[1])
        else:
            apply = both
            first = [
                jnp.broadcast_to(array, (count, *array.shape)) if axis is None else array
                for array, axis in zip(first, axes, strict=True)
            ]
        return apply(*first, window), 0

    batching.primitive_batchers[primitive] = rule


_DENSE = _Bilinear(
    "dense",
    _dense_forward,
    _dense_dx,
    _dense_dw,
    dw_each=_dense_dw_each,
    depthwise=False,
)
_DEPTHWISE = _Bilinear(
    "depthwise",
    _depthwise_forward,
    _depthwise_dx,
    _depthwise_dw,
    dw_each=_depthwise_dw_each,
    depthwise=True,
    on_gpu=(_depthwise_forward, _depthwise_dx, _depthwise_dw_gathered),
)


def _selection() -> _Map:
    """`_select` with its derivatives."""
    pair = _primitive("select", _select, _select), _primitive("unselect", _unselect, _unselect)
    for primitive, transpose in (pair, pair[::-1]):
        _linear_in_left(primitive, transpose)
        _register_batching(primitive, None, None, _merged(_bind(primitive), (0, 0), 0))
    return _bind(pair[0])


_select_winners = _selection()
