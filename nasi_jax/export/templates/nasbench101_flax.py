"""A network of NAS-Bench-101 cells (Ying et al., 2019) in flax.

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
INIT_CHANNELS = 128
NUM_CELLS = 3
MATRIX = (
    (0, 1, 1, 1, 0, 1, 0),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 1, 0, 0),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 0, 0, 0, 0, 0, 0),
)
OPS = (
    "input",
    "conv1x1-bn-relu",
    "conv3x3-bn-relu",
    "conv3x3-bn-relu",
    "conv3x3-bn-relu",
    "maxpool3x3",
    "output",
)


def parents(vertex: int) -> list[int]:
    """The vertices that `vertex` reads."""
    return [source for source in range(vertex) if MATRIX[source][vertex]]


def vertex_channels(features: int) -> dict[int, int]:
    """Channels of the intermediate vertices of a cell with `features` channels.

    Those that the output reads share its channels, the first ones taking what is left over;
    every other has as many as the widest vertex that reads it.
    """
    last = len(OPS) - 1
    joined = [vertex for vertex in parents(last) if vertex > 0]
    channels = {
        vertex: features // len(joined) + (rank < features % len(joined))
        for rank, vertex in enumerate(joined)
    }
    for vertex in reversed(range(1, last)):
        if vertex not in channels:
            readers = [reader for reader in range(last) if MATRIX[vertex][reader]]
            channels[vertex] = max(channels[reader] for reader in readers)
    return channels


class ConvNormRelu(nn.Module):
    """Convolution, normalization, ReLU."""

    features: int
    size: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        window, padding = (self.size, self.size), self.size // 2
        conv = nn.Conv(self.features, window, padding=padding, use_bias=False, name="conv")
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")
        return nn.relu(norm(conv(inputs)))


class Vertex(nn.Module):
    """The operation of a vertex on the sum of what it reads."""

    vertex: int
    features: int

    @nn.compact
    def __call__(self, states: dict[int, jax.Array], train: bool) -> jax.Array:
        """Maps the vertices before it, `[B, H, W, C]` each, to `[B, H, W, features]`."""
        read = []
        for source in parents(self.vertex):
            if source == 0:
                projection = ConvNormRelu(self.features, 1, name="projection")
                read.append(projection(states[0], train))
            else:
                read.append(states[source][..., : self.features])
        total = sum(read[1:], start=read[0])
        op = OPS[self.vertex]
        if op == "maxpool3x3":
            return nn.max_pool(total, (3, 3), padding=((1, 1), (1, 1)))
        size = 3 if op == "conv3x3-bn-relu" else 1
        return ConvNormRelu(self.features, size, name=op)(total, train)


class Cell(nn.Module):
    """A cell: the vertices that its output reads side by side, plus its projected input."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        states = {0: inputs}
        for vertex, features in sorted(vertex_channels(self.features).items()):
            states[vertex] = Vertex(vertex, features, name=f"vertex_{vertex}")(states, train)
        read = parents(len(OPS) - 1)
        joined = [states[vertex] for vertex in read if vertex > 0]
        outputs = [jnp.concatenate(joined, axis=-1)] if joined else []
        if 0 in read:
            projection = ConvNormRelu(self.features, 1, name="output_projection")
            outputs.append(projection(inputs, train))
        return sum(outputs[1:], start=outputs[0])


class Network(nn.Module):
    """Stem, 3 stages of cells, mean over the image, dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, 3]` to logits `[B, NUM_CLASSES]`."""
        features = INIT_CHANNELS
        states = ConvNormRelu(features, 3, name="stem")(images, train)
        for stage in range(3):
            if stage > 0:
                states = nn.max_pool(states, (2, 2), strides=(2, 2))
                features *= 2
            for index in range(NUM_CELLS):
                states = Cell(features, name=f"cell_{stage}_{index}")(states, train)
        return nn.Dense(NUM_CLASSES, name="head")(jnp.mean(states, axis=(1, 2)))


def load(path: str | PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """The network and its variables, from a safetensors file."""
    from safetensors.flax import load_file

    return Network(), unflatten_dict(load_file(path), sep=".")
