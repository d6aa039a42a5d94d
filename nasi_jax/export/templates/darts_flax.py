"""A network of two DARTS cells (Liu, Simonyan and Yang, 2019) in flax.

It needs jax and flax, and safetensors to load parameters:

    network, variables = load("parameters.safetensors")
    logits = network.apply(variables, images)  # images [B, H, W, 3]

In training, normalization takes the statistics of the batch and updates the running ones:

    logits, updates = network.apply(variables, images, train=True, mutable=["batch_stats"])
"""

from os import PathLike
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

NUM_CLASSES = 10
INIT_CHANNELS = 36
NUM_CELLS = 20
STEM = "cifar"
NORMAL = (
    ("sep_conv_3x3", 0),
    ("sep_conv_3x3", 1),
    ("sep_conv_3x3", 0),
    ("sep_conv_3x3", 1),
    ("skip_connect", 0),
    ("sep_conv_3x3", 1),
    ("skip_connect", 0),
    ("dil_conv_3x3", 2),
)
REDUCE = (
    ("max_pool_3x3", 0),
    ("max_pool_3x3", 1),
    ("max_pool_3x3", 1),
    ("skip_connect", 2),
    ("max_pool_3x3", 0),
    ("skip_connect", 2),
    ("max_pool_3x3", 1),
    ("skip_connect", 2),
)


def conv(features: int, size: int, stride: int = 1, *, name: str) -> nn.Conv:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv(features, (size, size), stride, size // 2, use_bias=False, name=name)


def norm(train: bool, name: str = "norm") -> nn.BatchNorm:
    """Batch normalization."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


class ReluConvNorm(nn.Module):
    """ReLU, 1x1 convolution, normalization."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        return norm(train)(conv(self.features, 1, name="conv")(nn.relu(inputs)))


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on shifted inputs side by side, normalization."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        active = nn.relu(inputs)
        half = self.features // 2
        even = conv(half, 1, stride=2, name="even")(active)
        odd = conv(self.features - half, 1, stride=2, name="odd")(active[:, 1:, 1:])
        return norm(train)(jnp.concatenate([even, odd], axis=-1))


class SeparableConv(nn.Module):
    """ReLU, depthwise convolution, 1x1 convolution, normalization: twice, or once if dilated."""

    size: int
    stride: int
    dilated: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        channels = inputs.shape[-1]
        dilation = 2 if self.dilated else 1
        outputs = inputs
        for index in range(1 if self.dilated else 2):
            depthwise = nn.Conv(
                channels,
                (self.size, self.size),
                self.stride if index == 0 else 1,
                dilation * (self.size // 2),
                kernel_dilation=dilation,
                feature_group_count=channels,
                use_bias=False,
                name=f"depthwise_{index}",
            )
            outputs = depthwise(nn.relu(outputs))
            outputs = conv(channels, 1, name=f"pointwise_{index}")(outputs)
            outputs = norm(train, f"norm_{index}")(outputs)
        return outputs


class Edge(nn.Module):
    """The operation of an edge."""

    op: str
    stride: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        window = {"window_shape": (3, 3), "strides": (self.stride,) * 2, "padding": ((1, 1),) * 2}
        if self.op == "max_pool_3x3":
            return nn.max_pool(inputs, **window)
        if self.op == "avg_pool_3x3":
            return nn.avg_pool(inputs, **window, count_include_pad=False)
        if self.op == "skip_connect":
            if self.stride == 1:
                return inputs
            return FactorizedReduce(inputs.shape[-1], name=self.op)(inputs, train)
        size, dilated = int(self.op[-1]), self.op.startswith("dil_conv")
        return SeparableConv(size, self.stride, dilated, name=self.op)(inputs, train)


class Cell(nn.Module):
    """A cell: its nodes 2 to 5, each the sum of two edges, side by side."""

    edges: tuple[tuple[str, int], ...]
    reduction: bool

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array, train: bool) -> jax.Array:
        """Maps two `[B, H, W, C]` to `[B, ..., 4 C]`."""
        states = [first, second]
        for node in range(2, 6):
            outputs = []
            for op, source in self.edges[2 * node - 4 : 2 * node - 2]:
                stride = 2 if self.reduction and source < 2 else 1
                edge = Edge(op, stride, name=f"edge_{source}_{node}")
                outputs.append(edge(states[source], train))
            states.append(outputs[0] + outputs[1])
        return jnp.concatenate(states[2:], axis=-1)


class Network(nn.Module):
    """Stem, cells, mean over the image, dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, 3]` to logits `[B, NUM_CLASSES]`."""
        if STEM == "imagenet":
            states = conv(INIT_CHANNELS // 2, 3, stride=2, name="stem_0")(images)
            states = nn.relu(norm(train, "stem_norm_0")(states))
            states = conv(INIT_CHANNELS, 3, stride=2, name="stem_1")(states)
            before = norm(train, "stem_norm_1")(states)
            states = conv(INIT_CHANNELS, 3, stride=2, name="stem_2")(nn.relu(before))
            last = norm(train, "stem_norm_2")(states)
        else:
            states = conv(3 * INIT_CHANNELS, 3, name="stem")(images)
            before = last = norm(train, "stem_norm")(states)
        channels = INIT_CHANNELS
        for index in range(NUM_CELLS):
            reduction = index in (NUM_CELLS // 3, 2 * NUM_CELLS // 3)
            channels *= 2 if reduction else 1
            # Behind a reduction the output of the cell before the last is twice as large.
            halve = before.shape[1] != last.shape[1]
            prepare_first = FactorizedReduce if halve else ReluConvNorm
            first = prepare_first(channels, name=f"first_{index}")(before, train)
            second = ReluConvNorm(channels, name=f"second_{index}")(last, train)
            cell = Cell(REDUCE if reduction else NORMAL, reduction, name=f"cell_{index}")
            before, last = last, cell(first, second, train)
        return nn.Dense(NUM_CLASSES, name="head")(jnp.mean(last, axis=(1, 2)))


def load(path: str | PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """The network and its variables, from a safetensors file."""
    from safetensors.flax import load_file

    return Network(), unflatten_dict(load_file(path), sep=".")
