import functools
import importlib.util
import itertools
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nasi_jax.cells.layers.conv import (
    _DENSE,
    _DEPTHWISE,
    _depthwise_dw_gathered,
    _Window,
    conv,
    depthwise_conv,
    max_pool,
    taps,
)

HEIGHT, WIDTH, CHANNELS, FEATURES = 6, 4, 3, 2

DENSE = [("dense", size, stride, 1) for size in (1, 3, 5) for stride in (1, 2)]
DEPTHWISE = [
    ("depthwise", size, stride, dilation)
    for size in (1, 3, 5)
    for stride in (1, 2)
    for dilation in (1, 2)
]
# Few of 5x5, which take the longest to compile.
DIFFERENTIATED = [case for case in DEPTHWISE if case[1] == 3 or case[2] == case[3]]
SOME = [("dense", 3, 1, 1), ("dense", 5, 2, 1), ("depthwise", 3, 2, 1), ("depthwise", 5, 2, 2)]


@pytest.fixture(autouse=True)
def double(x64):
    pass


def ours(kind, size, stride, dilation):
    if kind == "dense":
        return lambda x, w: conv(x, w, stride=stride)
    return lambda x, w: depthwise_conv(x, w, stride=stride, dilation=dilation)


def reference(kind, size, stride, dilation):
    half = dilation * (size - 1) // 2
    return lambda x, w: lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(half, half), (half, half)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=1 if kind == "dense" else x.shape[-1],
    )


def plain(kind, size, stride, dilation):
    """The definition, in loops over the taps and the places."""
    half = dilation * (size - 1) // 2

    def apply(x, w):
        features = w.shape[3]
        y = np.zeros((x.shape[0], x.shape[1] // stride, x.shape[2] // stride, features))
        for i, j, row, column in itertools.product(*map(range, (*y.shape[1:3], size, size))):
            up, left = i * stride + row * dilation - half, j * stride + column * dilation - half
            if 0 <= up < x.shape[1] and 0 <= left < x.shape[2]:
                if kind == "dense":
                    y[:, i, j] += x[:, up, left] @ w[row, column]
                else:
                    y[:, i, j] += x[:, up, left] * w[row, column, 0]
        return y

    return apply


def normal(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def arguments(kind, size, batch=3, dtype=np.float64):
    fan = (CHANNELS, FEATURES) if kind == "dense" else (1, CHANNELS)
    x = normal(0, batch, HEIGHT, WIDTH, CHANNELS, dtype=dtype)
    return x, normal(1, size, size, *fan, dtype=dtype)


def derivatives(function):
    """All that we compare, as one function of the arguments and of a direction in each."""

    def scalar(x, w):
        return jnp.sum(jnp.sin(function(x, w)))

    gradient = jax.grad(scalar, argnums=(0, 1))

    def along(x, w, direction):
        dots = jax.tree.map(jnp.vdot, gradient(x, w), direction)
        return dots[0] + dots[1]

    def example_loss(w, x):
        return scalar(x[None], w)

    def compute(x, w, direction):
        return {
            "forward": function(x, w),
            "gradients": gradient(x, w),
            "jvp": jax.jvp(function, (x, w), direction),
            "forward over reverse": jax.jvp(gradient, (x, w), direction)[1],
            "reverse over reverse": jax.grad(along, argnums=(0, 1))(x, w, direction),
            "reverse over forward": jax.grad(
                lambda x, w: jax.jvp(scalar, (x, w), direction)[1], argnums=(0, 1)
            )(x, w),
            "per example": jax.vmap(jax.grad(example_loss), in_axes=(None, 0))(w, x),
        }

    return compute


@pytest.mark.parametrize("case", DENSE + DIFFERENTIATED, ids=str)
def test_every_derivative_is_that_of_lax(case):
    x, w = arguments(*case[:2])
    direction = normal(2, *x.shape), normal(3, *w.shape)
    actual = jax.jit(derivatives(ours(*case)))(x, w, direction)
    expected = jax.jit(derivatives(reference(*case)))(x, w, direction)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for name in expected:
        chex.assert_trees_all_close(actual[name], expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["shift", "lax"])
def test_either_method_wherever_it_is_asked_for(method):
    x, w = arguments("depthwise", 3)
    direction = normal(2, *x.shape), normal(3, *w.shape)
    compute = jax.jit(derivatives(functools.partial(depthwise_conv, stride=2, method=method)))
    expected = jax.jit(derivatives(reference("depthwise", 3, 2, 1)))(x, w, direction)
    chex.assert_trees_all_close(compute(x, w, direction), expected, rtol=1e-10, atol=1e-10)
    grouped = "convolution" in compute.lower(x, w, direction).as_text()
    assert grouped == (method == "lax")


def test_bfloat16_is_summed_in_float32():
    # 2 * 256 ones: a running sum in bfloat16 stops at 256.
    x = jnp.ones((2, 16, 16, 1), jnp.bfloat16)
    slope = jax.grad(lambda w: jnp.sum(depthwise_conv(x, w)).astype(jnp.float32))
    assert float(slope(jnp.ones((1, 1, 1, 1), jnp.bfloat16))[0, 0, 0, 0]) == 512


@pytest.mark.parametrize("case", SOME, ids=str)
def test_derivatives_of_a_scan(case):
    x, w = arguments(*case[:2])
    direction = normal(2, *x.shape), normal(3, *w.shape)
    steps = jnp.linspace(0.5, 1.5, 3)

    def compute(function, loop):
        def loss(x, w):
            def body(total, step):
                y = function(jnp.sin(x * step + total), w)
                return total + jnp.mean(jnp.square(y)), jnp.sum(jnp.cos(y))

            total, ys = loop(body, jnp.zeros(()), steps)
            return total + jnp.sum(ys)

        return jax.jit(lambda *xw: jax.jvp(jax.value_and_grad(loss, (0, 1)), xw, direction))(x, w)

    def unrolled(body, total, steps):
        ys = []
        for step in steps:
            total, y = body(total, step)
            ys.append(y)
        return total, jnp.stack(ys)

    actual = compute(ours(*case), lax.scan)
    expected = compute(reference(*case), unrolled)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_eager_is_jit(case):
    x, w = arguments(*case[:2])
    function = ours(*case)

    def value_and_gradients(x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(function(x, w))), (0, 1))(x, w)

    jitted = jax.jit(value_and_gradients)(x, w)
    chex.assert_trees_all_close(value_and_gradients(x, w), jitted, rtol=1e-12)


@pytest.mark.parametrize("case", DENSE + DEPTHWISE, ids=str)
def test_forward_is_the_definition(case):
    x, w = arguments(*case[:2])
    expected = plain(*case)(np.asarray(x), np.asarray(w))
    np.testing.assert_allclose(ours(*case)(x, w), expected, rtol=1e-12, atol=1e-12)


def dense_jacobian(function, x, w, argument):
    """By linearity: the images of the unit vectors."""
    base = [np.asarray(x), np.asarray(w)]
    shape = base[argument].shape
    units = np.eye(base[argument].size).reshape(-1, *shape)
    columns = []
    for unit in units:
        base[argument] = unit
        columns.append(function(*base).ravel())
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_jacobian_is_the_definitions(case, argument):
    x, w = arguments(*case[:2], batch=2)
    expected = dense_jacobian(plain(*case), x, w, argument)
    for transform in (jax.jacrev, jax.jacfwd):
        jacobian = jax.jit(transform(ours(*case), argnums=argument))(x, w)
        flat = jacobian.reshape(expected.shape)
        np.testing.assert_allclose(flat, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [("dense", 3, 2, 1), ("depthwise", 3, 1, 2)], ids=str)
def test_joint_hessian(case):
    x, w = arguments(*case[:2], batch=1)

    def hessian(function, outer):
        def scalar(x, w):
            return jnp.sum(jnp.sin(function(x, w)))

        return jax.jit(outer(jax.grad(scalar, (0, 1)), (0, 1)))(x, w)

    expected = hessian(reference(*case), jax.jacfwd)
    for outer in (jax.jacfwd, jax.jacrev):
        chex.assert_trees_all_close(hessian(ours(*case), outer), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_third_derivative(kind):
    case = (kind, 3, 2, 1)
    x, w = arguments(*case[:2])

    def third(function):
        def along(t, order):
            if order == 0:
                return jnp.sum(jnp.sin(function(x * t, w * jnp.square(t))))
            return jax.grad(along)(t, order - 1)

        return jax.jit(along, static_argnums=1)(jnp.float64(0.7), 3)

    np.testing.assert_allclose(third(ours(*case)), third(reference(*case)), rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", [("dense", 1, 1, 1), *SOME], ids=str)
def test_dtype_is_kept(case, dtype):
    x, w = arguments(*case[:2], dtype=dtype)
    direction = normal(2, *x.shape, dtype=dtype), normal(3, *w.shape, dtype=dtype)
    results = jax.eval_shape(derivatives(ours(*case)), x, w, direction)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {np.dtype(dtype)}
    expected = plain(*case)(np.asarray(x, np.float64), np.asarray(w, np.float64))
    result = ours(*case)(x, w)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=1e-5)


PRIMITIVES = [
    pytest.param(group, name, _Window(size, stride, dilation), id=f"{kind}-{name}-{size}-{stride}")
    for group, kind, windows in (
        (_DENSE, "dense", [(3, 1, 1), (5, 2, 1)]),
        (_DEPTHWISE, "depthwise", [(3, 2, 1), (5, 1, 2), (5, 2, 2)]),
    )
    for name in ("forward", "dx", "dw")
    for size, stride, dilation in windows
]


def operands(group, name, window):
    x, w = arguments("dense" if group is _DENSE else "depthwise", window.size)
    y = jax.eval_shape(lambda x, w: group.forward(x, w, window), x, w)
    g = normal(4, *y.shape)
    return {"forward": (x, w), "dx": (g, w), "dw": (x, g)}[name]


@pytest.mark.parametrize(("group", "name", "window"), PRIMITIVES)
def test_lowering_of_other_backends_is_that_of_the_cpu(group, name, window):
    # The batching rule computes by that lowering, so a batch of one shows its values here.
    function = getattr(group, name)
    left, right = operands(group, name, window)
    here = function(left, right, window)
    elsewhere = jax.vmap(lambda a, b: function(a, b, window))(left[None], right[None])[0]
    chex.assert_equal_shape([here, elsewhere])
    np.testing.assert_allclose(here, elsewhere, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("group", "name", "window"), PRIMITIVES)
def test_bilinear_maps_are_transposes_of_each_other(group, name, window):
    x, w = operands(group, "forward", window)
    g, _ = operands(group, "dx", window)
    dot = jnp.vdot(group.forward(x, w, window), g)
    np.testing.assert_allclose(jnp.vdot(x, group.dx(g, w, window)), dot, rtol=1e-10)
    np.testing.assert_allclose(jnp.vdot(w, group.dw(x, g, window)), dot, rtol=1e-10)


@pytest.mark.parametrize(("group", "name", "window"), PRIMITIVES)
@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_other_backends_get_one_convolution(group, name, window, platform):
    function = getattr(group, name)
    traced = jax.jit(lambda a, b: function(a, b, window)).trace(*operands(group, name, window))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    shifted = group is _DEPTHWISE and platform != "tpu"
    assert text.count("stablehlo.convolution") == (0 if shifted else 1)
    assert "stablehlo.while" not in text
    assert shifted or "optimization_barrier" not in text


@pytest.mark.parametrize("case", SOME[::2], ids=str)
def test_second_derivatives_lower_for_other_backends(case):
    x, w = arguments(*case[:2])
    direction = normal(2, *x.shape), normal(3, *w.shape)
    traced = jax.jit(derivatives(ours(*case))).trace(x, w, direction)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        shifted = case[0] == "depthwise" and platform == "cuda"
        assert ("stablehlo.convolution" in text) != shifted


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_weight_gradient_of_gpus(case):
    """That of `lax`, with the derivatives that JAX has for each, and under `vmap`."""
    _, size, stride, dilation = case
    x, w = arguments("depthwise", size)
    forward = reference(*case)
    g = normal(2, *jax.eval_shape(forward, x, w).shape)
    direction = normal(3, *x.shape), normal(4, *g.shape)

    def expected(x, g):
        return jax.linear_transpose(lambda w: forward(x, w), w)(g)[0]

    def compute(function):
        def gradient(x, g):
            return jax.grad(lambda x, g: jnp.sum(jnp.sin(function(x, g))), (0, 1))(x, g)

        pairs = jnp.stack([x, direction[0]]), jnp.stack([g, direction[1]])
        return jax.jit(
            lambda: (
                function(x, g),
                jax.jvp(gradient, (x, g), direction),
                jax.vmap(function)(*pairs),
                jax.vmap(function, (None, 0))(x, pairs[1]),
            )
        )()

    window = _Window(size, stride, dilation)
    actual = compute(lambda x, g: _depthwise_dw_gathered(x, g, window))
    chex.assert_trees_all_close(actual, compute(expected), rtol=1e-10, atol=1e-10)


HALVED_TWICE = """
import jax
import jax.numpy as jnp
from nasi_jax.cells.layers.conv import conv
from nasi_jax.devices.deviceless import compile_for

def halved_twice(x, w):
    x = jax.nn.relu(x)
    return jnp.concatenate([conv(x, w, stride=2), conv(x[:, 1:, 1:], w, stride=2)], axis=-1)

shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 8, 8, 32), (1, 1, 32, 16))]
compile_for("h100", halved_twice, *shapes, name="halved twice")
"""


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="the compiler for GPUs, a plugin of JAX, is not installed",
)
def test_1x1_convolutions_of_stride_2_compile_for_a_gpu():
    # In a process of its own: where XLA does not get it, it aborts.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", HALVED_TWICE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_depthwise_on_the_cpu_is_no_grouped_convolution():
    x, w = arguments("depthwise", 3)
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(depthwise_conv(x, w))), (0, 1))
    assert "stablehlo.convolution" not in jax.jit(gradient).lower(x, w).as_text()


def test_taps_of_a_window():
    x = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    views = taps(x, 3, stride=2, fill=-7.0)
    assert [view.shape for view in views] == [(1, 2, 2, 1)] * 9
    np.testing.assert_array_equal(views[0][0, ..., 0], [[-7, -7], [-7, 6]])
    np.testing.assert_array_equal(views[4][0, ..., 0], [[1, 3], [9, 11]])
    np.testing.assert_array_equal(views[8][0, ..., 0], [[6, 8], [14, 16]])


@pytest.mark.parametrize("axes", [(1, None), (None, 2), (0, 1), ((1, 0), (None, 0))], ids=str)
@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.parametrize("group_name", ["forward", "dx", "dw"])
def test_vmapped_maps(group_name, case, axes):
    """Each of the three with a vmapped axis in either operand, in both, and in two vmaps."""
    kind, size, stride, dilation = case
    group = _DENSE if kind == "dense" else _DEPTHWISE
    window = _Window(size, stride, dilation)
    x, w = arguments(kind, size)
    g = group.forward(x, w, window)
    left, right = {"forward": (x, w), "dx": (g, w), "dw": (x, g)}[group_name]

    def apply(left, right):
        return getattr(group, group_name)(left, right, window)

    inner, outer = axes if isinstance(axes[0], tuple) else (axes, None)
    shapes = [list(left.shape), list(right.shape)]
    for mapped in filter(None, (outer, inner) if outer else (inner,)):
        for shape, axis in zip(shapes, mapped, strict=True):
            if axis is not None:
                shape.insert(axis, 2)
    operands = [normal(seed, *shape) for seed, shape in enumerate(shapes)]
    batched, looped = jax.vmap(apply, in_axes=inner), functools.partial(loop, apply, inner)
    if outer:
        batched, looped = jax.vmap(batched, outer), functools.partial(loop, looped, outer)
    chex.assert_trees_all_close(jax.jit(batched)(*operands), looped(*operands), rtol=1e-10)


@pytest.mark.parametrize("case", [case for case in SOME if case[0] == "depthwise"], ids=str)
def test_vmapped_weight_gradient_of_gpus(monkeypatch, case):
    """One larger map there, with the values of one map after another."""
    ways = []

    def on_cuda(*arrays, cuda, **others):
        ways.append(others)
        return cuda(*arrays)

    monkeypatch.setattr(lax, "platform_dependent", on_cuda)
    _, size, stride, dilation = case
    x, w = arguments("depthwise", size)
    window = _Window(size, stride, dilation)
    g = _DEPTHWISE.forward(x, w, window)
    pairs = normal(0, 2, *x.shape), normal(1, 2, *g.shape)

    def apply(x, g):
        return _DEPTHWISE.dw(x, g, window)

    chex.assert_trees_all_close(jax.vmap(apply)(*pairs), loop(apply, (0, 0), *pairs), rtol=1e-10)
    assert ways


def loop(function, axes, left, right):
    """`vmap` as a loop over two."""
    return jnp.stack(
        [
            function(
                *(
                    array if axis is None else jnp.take(array, index, axis)
                    for array, axis in zip((left, right), axes, strict=True)
                )
            )
            for index in range(2)
        ]
    )


def test_a_vmapped_weight_gradient_is_no_grouped_convolution():
    x, w = arguments("dense", 3)
    gradient = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(conv(x[None], w)))), (None, 0))
    text = jax.jit(gradient).lower(w, x).as_text()
    assert "feature_group_count = 3" not in text and "batch_group_count = 3" not in text


# The maximum over windows


def padded_maximum(x, stride):
    """The maximum by a chain of selections, whose derivatives are those of `where`."""
    first, *others = taps(x, 3, stride=stride, fill=-jnp.inf)
    for other in others:
        first = jnp.where(lax.stop_gradient(other > first), other, first)
    return first


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("levels", [1.0, 1e9])
def test_every_derivative_of_the_maximum(stride, levels):
    # With few levels many entries of a window are equal.
    x = jnp.round(levels * normal(0, 3, HEIGHT, WIDTH, CHANNELS)) / levels
    direction = normal(1, *x.shape)

    def everything(function):
        def scalar(x):
            return jnp.sum(jnp.sin(function(x)) * function(x))

        gradient = jax.grad(scalar)
        return (
            function(x),
            gradient(x),
            jax.jvp(function, (x,), (direction,))[1],
            jax.jvp(gradient, (x,), (direction,))[1],
            jax.grad(lambda x: jnp.vdot(gradient(x), direction))(x),
            jax.grad(lambda x: jnp.sum(jnp.square(jax.jvp(scalar, (x,), (direction,))[1])))(x),
        )

    ours = jax.jit(lambda: everything(lambda x: max_pool(x, 3, stride=stride)))()
    expected = everything(lambda x: padded_maximum(x, stride))
    chex.assert_trees_all_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_of_the_maximum(stride):
    x = normal(0, 4, 2, HEIGHT, WIDTH, CHANNELS)

    def slope(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x, 3, stride=stride))))(x)

    expected = jnp.stack([slope(each) for each in x])
    np.testing.assert_allclose(jax.vmap(slope)(x), expected, rtol=1e-12, atol=1e-15)


def test_kernels_are_calls_that_xla_keeps():
    def sums(x, w):
        return depthwise_conv(x, w) + max_pool(x, 3)

    x, w = arguments("depthwise", 3)
    text = jax.jit(sums).lower(x, w).compile().as_text()
    calls = [line for line in text.splitlines() if " call(" in line]
    assert any("_depthwise_forward" in line for line in calls)
    assert any("_select" in line for line in calls)
