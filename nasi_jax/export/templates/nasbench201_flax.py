"""A network of NAS-Bench-201 cells (Dong and Yang, 2020) in flax.

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
INIT_CHANNELS = 16
NUM_CELLS = 5
OPS = (
    "nor_conv_3x3",
    "nor_conv_3x3",
    "nor_conv_3x3",
    "skip_connect",
    "nor_conv_3x3",
    "nor_conv_1x1",
)

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""`(node read, node)` in the order of `OPS`."""


def conv(features: int, size: int, stride: int = 1, *, name: str) -> nn.Conv:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv(features, (size, size), stride, size // 2, use_bias=False, name=name)


def norm(train: bool, name: str = "norm") -> nn.BatchNorm:
    """Batch normalization."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


class ReluConvNorm(nn.Module):
    """ReLU, convolution, normalization."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        outputs = conv(self.features, self.size, self.stride, name="conv")(nn.relu(inputs))
        return norm(train)(outputs)


class Edge(nn.Module):
    """The operation of an edge other than `none`."""

    op: str

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to the same."""
        if self.op == "skip_connect":
            return inputs
        if self.op == "avg_pool_3x3":
            padding = ((1, 1), (1, 1))
            return nn.avg_pool(inputs, (3, 3), padding=padding, count_include_pad=False)
        return ReluConvNorm(inputs.shape[-1], int(self.op[-1]), name=self.op)(inputs, train)


class Cell(nn.Module):
    """A cell of 4 nodes, each the sum of its edges; the last is the output."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to the same."""
        states = [inputs, *[jnp.zeros_like(inputs)] * 3]
        for (source, node), op in zip(EDGES, OPS, strict=True):
            if op != "none":
                states[node] += Edge(op, name=f"edge_{source}_{node}")(states[source], train)
        return states[3]


class Reduction(nn.Module):
    """A residual block of stride 2."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / 2, W / 2, features]`."""
        outputs = ReluConvNorm(self.features, 3, stride=2, name="first")(inputs, train)
        outputs = ReluConvNorm(self.features, 3, name="second")(outputs, train)
        # There is no padding; but so it runs under JAX's strict promotion of dtypes too.
        halved = nn.avg_pool(inputs, (2, 2), strides=(2, 2), count_include_pad=False)
        return outputs + conv(self.features, 1, name="shortcut")(halved)


class Network(nn.Module):
    """Stem, 3 stages of cells, mean over the image, dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, 3]` to logits `[B, NUM_CLASSES]`."""
        states = norm(train, "stem_norm")(conv(INIT_CHANNELS, 3, name="stem")(images))
        for stage in range(3):
            if stage > 0:
                features = INIT_CHANNELS * 2**stage
                states = Reduction(features, name=f"reduction_{stage}")(states, train)
            for index in range(NUM_CELLS):
                states = Cell(name=f"cell_{stage}_{index}")(states, train)
        states = nn.relu(norm(train, "last_norm")(states))
        return nn.Dense(NUM_CLASSES, name="head")(jnp.mean(states, axis=(1, 2)))


def load(path: str | PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """The network and its variables, from a safetensors file."""
    from safetensors.flax import load_file

    return Network(), unflatten_dict(load_file(path), sep=".")
