"""A network of two DARTS cells (Liu, Simonyan and Yang, 2019) in PyTorch.

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


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def relu_conv_norm(inputs: int, outputs: int) -> nn.Module:
    """ReLU, 1x1 convolution, normalization."""
    layers = OrderedDict(
        relu=nn.ReLU(), conv=conv(inputs, outputs, 1), norm=nn.BatchNorm2d(outputs)
    )
    return nn.Sequential(layers)


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on shifted inputs side by side, normalization."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = conv(inputs, outputs // 2, 1, stride=2)
        self.odd = conv(inputs, outputs - outputs // 2, 1, stride=2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, outputs, H / 2, W / 2]`."""
        active = torch.relu(inputs)
        return self.norm(torch.cat([self.even(active), self.odd(active[:, :, 1:, 1:])], dim=1))


def separable_conv(channels: int, size: int, stride: int, dilated: bool) -> nn.Module:
    """ReLU, depthwise convolution, 1x1 convolution, normalization: twice, or once if dilated."""
    dilation = 2 if dilated else 1
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1 if dilated else 2):
        layers[f"relu_{index}"] = nn.ReLU()
        layers[f"depthwise_{index}"] = nn.Conv2d(
            channels,
            channels,
            size,
            stride if index == 0 else 1,
            dilation * (size // 2),
            dilation,
            groups=channels,
            bias=False,
        )
        layers[f"pointwise_{index}"] = conv(channels, channels, 1)
        layers[f"norm_{index}"] = nn.BatchNorm2d(channels)
    return nn.Sequential(layers)


def operation(op: str, channels: int, stride: int) -> nn.Module:
    """The operation of that name."""
    if op == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if op == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    return separable_conv(channels, int(op[-1]), stride, dilated=op.startswith("dil_conv"))


class Cell(nn.ModuleDict):
    """A cell: its nodes 2 to 5, each the sum of two edges, side by side."""

    def __init__(self, edges: tuple[tuple[str, int], ...], channels: int, reduction: bool) -> None:
        super().__init__()
        self.edges = edges
        for node in range(2, 6):
            for op, source in edges[2 * node - 4 : 2 * node - 2]:
                stride = 2 if reduction and source < 2 else 1
                layer = operation(op, channels, stride)
                self[f"edge_{source}_{node}"] = nn.Sequential(OrderedDict({op: layer}))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Maps two `[B, C, H, W]` to `[B, 4 C, ...]`."""
        states = [first, second]
        for node in range(2, 6):
            left, right = (
                self[f"edge_{source}_{node}"](states[source])
                for _, source in self.edges[2 * node - 4 : 2 * node - 2]
            )
            states.append(left + right)
        return torch.cat(states[2:], dim=1)


class Network(nn.ModuleDict):
    """Stem, cells, mean over the image, dense layer."""

    def __init__(self) -> None:
        super().__init__()
        if STEM == "imagenet":
            before = last = INIT_CHANNELS
            self["stem_0"] = conv(3, INIT_CHANNELS // 2, 3, stride=2)
            self["stem_norm_0"] = nn.BatchNorm2d(INIT_CHANNELS // 2)
            self["stem_1"] = conv(INIT_CHANNELS // 2, INIT_CHANNELS, 3, stride=2)
            self["stem_norm_1"] = nn.BatchNorm2d(INIT_CHANNELS)
            self["stem_2"] = conv(INIT_CHANNELS, INIT_CHANNELS, 3, stride=2)
            self["stem_norm_2"] = nn.BatchNorm2d(INIT_CHANNELS)
        else:
            before = last = 3 * INIT_CHANNELS
            self["stem"] = conv(3, last, 3)
            self["stem_norm"] = nn.BatchNorm2d(last)
        channels = INIT_CHANNELS
        halve = STEM == "imagenet"
        for index in range(NUM_CELLS):
            reduction = index in (NUM_CELLS // 3, 2 * NUM_CELLS // 3)
            channels *= 2 if reduction else 1
            # Behind a reduction the output of the cell before the last is twice as large.
            prepare_first = FactorizedReduce if halve else relu_conv_norm
            self[f"first_{index}"] = prepare_first(before, channels)
            self[f"second_{index}"] = relu_conv_norm(last, channels)
            self[f"cell_{index}"] = Cell(REDUCE if reduction else NORMAL, channels, reduction)
            before, last, halve = last, 4 * channels, reduction
        self["head"] = nn.Linear(last, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` to logits `[B, NUM_CLASSES]`."""
        if STEM == "imagenet":
            states = torch.relu(self["stem_norm_0"](self["stem_0"](images)))
            before = self["stem_norm_1"](self["stem_1"](states))
            last = self["stem_norm_2"](self["stem_2"](torch.relu(before)))
        else:
            before = last = self["stem_norm"](self["stem"](images))
        for index in range(NUM_CELLS):
            first = self[f"first_{index}"](before)
            second = self[f"second_{index}"](last)
            before, last = last, self[f"cell_{index}"](first, second)
        return self["head"](last.mean(dim=(2, 3)))


def load(path: str | PathLike[str]) -> Network:
    """The network in evaluation mode, with parameters from a safetensors file."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
