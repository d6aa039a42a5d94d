"""A network of NAS-Bench-101 cells (Ying et al., 2019) in PyTorch.

It needs torch, and safetensors to load parameters:

    network = load("parameters.safetensors")
    logits = network(images)  # images [B, 3, H, W]

`load` returns the network in evaluation mode.
"""

from collections import OrderedDict
from os import PathLike

import torch
from torch import Tensor, nn

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


def conv_norm_relu(inputs: int, outputs: int, size: int) -> nn.Module:
    """Convolution without bias, normalization, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


class Vertex(nn.ModuleDict):
    """The operation of a vertex on the sum of what it reads."""

    def __init__(self, vertex: int, inputs: int, features: int) -> None:
        super().__init__()
        self.vertex, self.features = vertex, features
        if 0 in parents(vertex):
            self["projection"] = conv_norm_relu(inputs, features, 1)
        op = OPS[vertex]
        if op == "maxpool3x3":
            self[op] = nn.MaxPool2d(3, 1, 1)
        else:
            size = 3 if op == "conv3x3-bn-relu" else 1
            self[op] = conv_norm_relu(features, features, size)

    def forward(self, states: dict[int, Tensor]) -> Tensor:
        """Maps the vertices before it, `[B, C, H, W]` each, to `[B, features, H, W]`."""
        read = [
            self["projection"](states[0]) if source == 0 else states[source][:, : self.features]
            for source in parents(self.vertex)
        ]
        return self[OPS[self.vertex]](sum(read[1:], start=read[0]))


class Cell(nn.ModuleDict):
    """A cell: the vertices that its output reads side by side, plus its projected input."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        for vertex, channels in sorted(vertex_channels(features).items()):
            self[f"vertex_{vertex}"] = Vertex(vertex, inputs, channels)
        if 0 in parents(len(OPS) - 1):
            self["output_projection"] = conv_norm_relu(inputs, features, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, features, H, W]`."""
        states = {0: inputs}
        for vertex in range(1, len(OPS) - 1):
            states[vertex] = self[f"vertex_{vertex}"](states)
        read = parents(len(OPS) - 1)
        joined = [states[vertex] for vertex in read if vertex > 0]
        outputs = [torch.cat(joined, dim=1)] if joined else []
        if 0 in read:
            outputs.append(self["output_projection"](inputs))
        return sum(outputs[1:], start=outputs[0])


class Network(nn.ModuleDict):
    """Stem, 3 stages of cells, mean over the image, dense layer."""

    def __init__(self) -> None:
        super().__init__()
        channels = features = INIT_CHANNELS
        self["stem"] = conv_norm_relu(3, channels, 3)
        for stage in range(3):
            features *= 2 if stage > 0 else 1
            for index in range(NUM_CELLS):
                self[f"cell_{stage}_{index}"] = Cell(channels, features)
                channels = features
        self["head"] = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` to logits `[B, NUM_CLASSES]`."""
        states = self["stem"](images)
        for stage in range(3):
            if stage > 0:
                states = nn.functional.max_pool2d(states, 2)
            for index in range(NUM_CELLS):
                states = self[f"cell_{stage}_{index}"](states)
        return self["head"](states.mean(dim=(2, 3)))


def load(path: str | PathLike[str]) -> Network:
    """The network in evaluation mode, with parameters from a safetensors file."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
