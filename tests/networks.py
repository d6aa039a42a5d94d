"""Small networks of every kind of layer, as functions of parameters in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nasi_jax.cells.layers.conv import conv, depthwise_conv


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0]))


def inputs(seed=0, size=3):
    return array(100 + seed, size, 6, 6, 2)


def cotangents(size=3, count=2, outputs=3):
    return array(7, size, count, outputs)


def lax_conv(x, w, *, stride=1, dilation=1, groups=1, padding="SAME", gap=1):
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        lhs_dilation=(gap, gap),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def head(params, x):
    return jnp.mean(x, axis=(1, 2)) @ params["head"] + params["bias"][None]


def normalized(x, axes):
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.var(x, axis=axes, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5)


def plain(params, x):
    return head(params, jnp.tanh(lax_conv(x, params["w"]) + params["shift"]))


def relu(params, x):
    return head(params, jax.nn.relu(lax_conv(x, params["w"], stride=2)))


def valid(params, x):
    return head(params, jnp.tanh(lax_conv(x, params["w"], padding=((0, 1), (2, 0)))))


def dilated(params, x):
    return head(params, jnp.tanh(lax_conv(x, params["w"], dilation=2)))


def transposed(params, x):
    return head(params, jnp.tanh(lax_conv(x, params["w"], padding=((2, 1), (1, 2)), gap=2)))


def channels_first(params, x):
    y = lax.conv(jnp.transpose(x, (0, 3, 1, 2)), jnp.transpose(params["w"]), (2, 1), "SAME")
    return head(params, jnp.tanh(jnp.moveaxis(y, 1, 3)))


def depthwise(params, x):
    return head(params, jnp.tanh(lax_conv(x, params["depthwise"], groups=2, stride=2)))


def grouped(params, x):
    """Four groups of two channels."""
    wide = jnp.concatenate([x, jnp.sin(x), jnp.cos(x), x * x], axis=3)
    return head(params, jnp.tanh(lax_conv(wide, params["w"], groups=4, dilation=2)))


def own(params, x):
    y = jnp.tanh(depthwise_conv(x, params["own_depthwise"], stride=2, dilation=2))
    return head(params, jnp.tanh(conv(y, params["w"])))


def pointwise(params, x):
    return head(params, jnp.tanh(conv(x, params["w"][1:2, 1:2])) * conv(x, params["one"]))


def max_pooled(params, x):
    y = jnp.tanh(lax_conv(x, params["w"]))
    pooled = lax.reduce_window(y, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    return head(params, pooled)


def average_pooled(params, x):
    y = jnp.tanh(lax_conv(x, params["w"]))
    return head(params, lax.reduce_window(y, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"))


def affine(params, x):
    """Normalized by statistics of the example alone."""
    y = normalized(lax_conv(x, params["w"]), (1, 2))
    return head(params, jnp.tanh(y * params["scale"] + params["shift"]))


def residual(params, x):
    y = jnp.tanh(lax_conv(x, params["w"]))
    return head(params, y + jnp.tanh(lax_conv(y, params["square"])))


def concatenated(params, x):
    y = jnp.concatenate([lax_conv(x, params["w"]), x, x], axis=3)
    return head(params, jnp.tanh(y @ params["join"]))


def shared(params, x):
    """One kernel in two places."""
    y = jnp.tanh(lax_conv(x, params["w"]))
    return head(params, jnp.tanh(lax_conv(lax_conv(y, params["square"]), params["square"])))


def jitted_twice(params, x):
    """One kernel through one jitted function called twice."""
    layer = jax.jit(lambda y, w: jnp.tanh(lax_conv(y, w)))
    y = lax_conv(x, params["w"])
    return head(params, layer(layer(y, params["square"]), params["square"]))


def scanned(params, x):
    def body(y, w):
        return jnp.tanh(lax_conv(y, w)), None

    y, _ = lax.scan(body, lax_conv(x, params["w"]), params["stack"])
    return head(params, y)


def scanned_and_shared(params, x):
    """A kernel in every iteration, slices of another, and those once more outside."""

    def body(y, w):
        return jnp.tanh(lax_conv(lax_conv(y, w), params["square"])), jnp.sum(w)

    y, sums = lax.scan(body, lax_conv(x, params["w"]), params["stack"])
    return head(params, y) + jnp.sum(sums)


def scanned_with_own(params, x):
    def body(y, w):
        return jnp.tanh(conv(y, w)), None

    y, _ = lax.scan(jax.checkpoint(body), conv(x, params["w"]), params["stack"])
    return head(params, y)


def carried(params, x):
    """A kernel of a layer that a loop carries as well, and that comes out of it."""

    def body(carry, _):
        y, w = carry
        return (jnp.tanh(y), -w), w

    y = jnp.tanh(lax_conv(lax_conv(x, params["w"]), params["square"]))
    (y, w), copies = lax.scan(body, (y, params["square"]), None, 2)
    return head(params, jnp.tanh(lax_conv(y, w) + lax_conv(y, copies[0])))


def read_and_returned(params, x):
    """A kernel that leaves a checkpointed function as it is, and one that is an output too."""

    def layer(w):
        return lax_conv(x, w), w

    y, w = jax.checkpoint(layer)(params["w"])
    return head(params, jnp.tanh(y)) + jnp.sum(jnp.sin(w)) + params["bias"][None]


def transposed_dense(params, x):
    """Kernels on the left, transposed, reshaped, and contracted along two axes."""
    flat = jnp.einsum("hwck,bhwc->kb", params["flat"], x)
    return jnp.transpose(jnp.tanh(flat)) @ jnp.transpose(params["head"][:3])


def batched_dot(params, x):
    """A kernel with an axis in common with what it multiplies."""
    y = jnp.einsum("bhwc,wcd->bhwd", x, params["columns"])
    return head(params, jnp.tanh(y))


def branched(params, x):
    y = lax.cond(params["bias"][0] > 100, lax_conv, lambda y, w: lax_conv(y, 2 * w), x, params["w"])
    return head(params, jnp.tanh(y))


def wide(params, x):
    """Few positions and many features, so that Gram matrices are the cheaper form."""
    y = jnp.tanh(lax_conv(x, params["w"], stride=3))
    z = lax_conv(y, params["wide"])
    return head(params, jnp.tanh(lax_conv(z, params["narrow"])))


def batch_normalized(params, x):
    y = normalized(lax_conv(x, params["w"]), (0, 1, 2))
    return head(params, jnp.tanh(y * params["scale"] + params["shift"]))


PARAMS = {
    "w": (3, 3, 2, 4),
    "one": (1, 1, 2, 4),
    "square": (3, 3, 4, 4),
    "stack": (2, 3, 3, 4, 4),
    "depthwise": (3, 3, 1, 4),
    "own_depthwise": (3, 3, 1, 2),
    "wide": (3, 3, 4, 24),
    "narrow": (3, 3, 24, 4),
    "columns": (6, 2, 4),
    "flat": (6, 6, 2, 3),
    "join": (8, 4),
    "scale": (1, 1, 1, 4),
    "shift": (1, 1, 1, 4),
    "head": (4, 3),
    "bias": (3,),
}
INDEPENDENT = {
    function.__name__: function
    for function in (
        *(plain, relu, valid, dilated, transposed, channels_first, depthwise, grouped, own),
        *(pointwise, max_pooled, average_pooled, affine, residual, concatenated, shared),
        *(jitted_twice, scanned, scanned_and_shared, scanned_with_own, carried),
        *(read_and_returned, transposed_dense, batched_dot, branched, wide),
    )
}
"""Networks whose examples are independent."""


def params():
    return {
        name: array(seed, *shape) for seed, (name, shape) in zip(itertools.count(), PARAMS.items())
    }


def jacobian(function, params, inputs):
    """Dense, `[B, K, P]`."""
    compute = jax.jit(jax.jacrev(function))
    tree = compute(params, inputs)
    outputs = jax.eval_shape(function, params, inputs).shape
    leaves = [leaf.reshape(*outputs, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)
