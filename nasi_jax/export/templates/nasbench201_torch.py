"""A network of NAS-Bench-201 cells (Dong and Yang, 2020) in PyTorch.

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


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def relu_conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """ReLU, convolution, normalization."""
    layer = conv(inputs, outputs, size, stride)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=layer, norm=nn.BatchNorm2d(outputs)))


def operation(op: str, channels: int) -> nn.Module:
    """The operation of that name other than `none`."""
    if op == "skip_connect":
        return nn.Identity()
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return relu_conv_norm(channels, channels, int(op[-1]))


class Cell(nn.ModuleDict):
    """A cell of 4 nodes, each the sum of its edges; the last is the output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for (source, node), op in zip(EDGES, OPS, strict=True):
            if op != "none":
                layers = OrderedDict({op: operation(op, channels)})
                self[f"edge_{source}_{node}"] = nn.Sequential(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to the same."""
        states = [inputs, *[torch.zeros_like(inputs)] * 3]
        for (source, node), op in zip(EDGES, OPS, strict=True):
            if op != "none":
                states[node] = states[node] + self[f"edge_{source}_{node}"](states[source])
        return states[3]


class Reduction(nn.Module):
    """A residual block of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = relu_conv_norm(channels, 2 * channels, 3, stride=2)
        self.second = relu_conv_norm(2 * channels, 2 * channels, 3)
        self.shortcut = conv(channels, 2 * channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, 2 C, H / 2, W / 2]`."""
        halved = nn.functional.avg_pool2d(inputs, 2)
        return self.second(self.first(inputs)) + self.shortcut(halved)


class Network(nn.ModuleDict):
    """Stem, 3 stages of cells, mean over the image, dense layer."""

    def __init__(self) -> None:
        super().__init__()
        channels = INIT_CHANNELS
        self["stem"] = conv(3, channels, 3)
        self["stem_norm"] = nn.BatchNorm2d(channels)
        for stage in range(3):
            if stage > 0:
                self[f"reduction_{stage}"] = Reduction(channels)
                channels *= 2
            for index in range(NUM_CELLS):
                self[f"cell_{stage}_{index}"] = Cell(channels)
        self["last_norm"] = nn.BatchNorm2d(channels)
        self["head"] = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` to logits `[B, NUM_CLASSES]`."""
        states = self["stem_norm"](self["stem"](images))
        for stage in range(3):
            if stage > 0:
                states = self[f"reduction_{stage}"](states)
            for index in range(NUM_CELLS):
                states = self[f"cell_{stage}_{index}"](states)
        states = torch.relu(self["last_norm"](states))
        return self["head"](states.mean(dim=(2, 3)))


def load(path: str | PathLike[str]) -> Network:
    """The network in evaluation mode, with parameters from a safetensors file."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
