"""The DARTS supernet and the NAS-Bench-201 network in PyTorch, as `nasi_jax.cells` has them.

Imports PyTorch, which `torch_peer.py` therefore does in its functions alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

DARTS_NODES = range(2, 6)
NASBENCH201_EDGES = tuple((source, node) for node in range(1, 4) for source in range(node))


def num_parameters(network: nn.Module) -> int:
    """Entries of all parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


class Norm(nn.BatchNorm2d):
    """Batch normalization. DARTS: of the batch, without scale and shift. NAS-Bench-201: both."""

    def __init__(self, channels: int, affine: bool) -> None:
        # Momentum 1: one pass in training mode makes the statistics those of that batch.
        super().__init__(channels, momentum=1.0, affine=affine, track_running_stats=affine)


@contextlib.contextmanager
def without_statistics() -> Iterator[None]:
    """Normalization layers have their scale and shift alone, inside of it."""

    def scale_and_shift(layer: Norm, inputs: Tensor) -> Tensor:
        if layer.weight is None:
            return inputs
        return inputs * layer.weight[:, None, None] + layer.bias[:, None, None]

    forward = Norm.forward
    Norm.forward = scale_and_shift
    try:
        yield
    finally:
        Norm.forward = forward


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def relu_conv_norm(
    inputs: int, outputs: int, size: int, *, stride: int = 1, affine: bool
) -> nn.Sequential:
    """ReLU, convolution, normalization."""
    return nn.Sequential(nn.ReLU(), conv(inputs, outputs, size, stride), Norm(outputs, affine))


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on shifted inputs side by side, normalization."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = conv(inputs, outputs // 2, 1, stride=2)
        self.odd = conv(inputs, outputs - outputs // 2, 1, stride=2)
        self.norm = Norm(outputs, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, outputs, H / 2, W / 2]`."""
        active = torch.relu(inputs)
        return self.norm(torch.cat([self.even(active), self.odd(active[:, :, 1:, 1:])], dim=1))


def separable_conv(
    channels: int, size: int, *, stride: int, dilation: int, repeats: int
) -> nn.Sequential:
    """`repeats` times ReLU, depthwise convolution, 1x1 convolution, normalization."""
    layers: list[nn.Module] = []
    for index in range(repeats):
        depthwise = nn.Conv2d(
            channels,
            channels,
            size,
            stride if index == 0 else 1,
            dilation * (size - 1) // 2,
            dilation,
            groups=channels,
            bias=False,
        )
        layers += [nn.ReLU(), depthwise, conv(channels, channels, 1), Norm(channels, affine=False)]
    return nn.Sequential(*layers)


def darts_op(name: str, channels: int, stride: int) -> nn.Module:
    """The operation of that name, other than `none`."""
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), Norm(channels, affine=False))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, Norm(channels, affine=False))
    kind, _, size = name.partition("_conv_")
    dilation, repeats = {"sep": (1, 2), "dil": (2, 1)}[kind]
    return separable_conv(channels, int(size[0]), stride=stride, dilation=dilation, repeats=repeats)


class DartsCell(nn.Module):
    """A cell with every operation on every edge."""

    def __init__(self, ops: Sequence[str], channels: int, reduction: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(
                darts_op(op, channels, stride=2 if reduction and source < 2 else 1) for op in ops
            )
            for node in DARTS_NODES
            for source in range(node)
        )

    def forward(self, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
        """Maps two `[B, C, H, W]` to `[B, 4 C, ...]`; `weights` is `[14, O]`."""
        states = [first, second]
        edges = iter(zip(self.edges, weights, strict=True))
        for node in DARTS_NODES:
            terms = [
                weight * op(states[source])
                for source, (ops, row) in zip(range(node), edges, strict=False)
                for op, weight in zip(ops, row, strict=True)
            ]
            states.append(sum(terms[1:], terms[0]))
        return torch.cat(states[2:], dim=1)


class DartsSupernet(nn.Module):
    """The one-shot network, under the statistics of the batch."""

    def __init__(
        self, num_classes: int, ops: Sequence[str], init_channels: int, num_cells: int
    ) -> None:
        super().__init__()
        stem = 3 * init_channels
        self.stem = nn.Sequential(conv(3, stem, 3), Norm(stem, affine=False))
        self.first, self.second, self.cells = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.reductions = [
            index in (num_cells // 3, 2 * num_cells // 3) for index in range(num_cells)
        ]
        channels, two_before, before, halved = init_channels, stem, stem, False
        for reduction in self.reductions:
            channels *= 2 if reduction else 1
            # Behind a reduction the output of the cell before the last is twice as large.
            self.first.append(
                FactorizedReduce(two_before, channels)
                if halved
                else relu_conv_norm(two_before, channels, 1, affine=False)
            )
            self.second.append(relu_conv_norm(before, channels, 1, affine=False))
            self.cells.append(DartsCell(ops, channels, reduction))
            two_before, before, halved = before, 4 * channels, reduction
        self.head = nn.Linear(before, num_classes)

    def forward(self, images: Tensor, normal: Tensor, reduce: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` and the weights `[14, O]` of both cells to logits."""
        first = second = self.stem(images)
        layers = zip(self.reductions, self.first, self.second, self.cells, strict=True)
        for reduction, prepare_first, prepare_second, cell in layers:
            weights = reduce if reduction else normal
            output = cell(prepare_first(first), prepare_second(second), weights)
            first, second = second, output
        return self.head(second.mean(dim=(2, 3)))


class Nasbench201Cell(nn.Module):
    """A cell of one genotype."""

    def __init__(self, ops: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(self._op(op, channels) for op in ops)
        self.present = [op != "none" for op in ops]

    @staticmethod
    def _op(name: str, channels: int) -> nn.Module:
        if name in ("none", "skip_connect"):
            return nn.Identity()
        if name == "avg_pool_3x3":
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        return relu_conv_norm(channels, channels, int(name[-1]), affine=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to the same."""
        states = [inputs, *[torch.zeros_like(inputs)] * 3]
        edges = zip(NASBENCH201_EDGES, self.edges, self.present, strict=True)
        for (source, node), op, present in edges:
            if present:
                states[node] = states[node] + op(states[source])
        return states[-1]


class Nasbench201Reduction(nn.Module):
    """The residual block of stride 2 between stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            relu_conv_norm(channels, 2 * channels, 3, stride=2, affine=True),
            relu_conv_norm(2 * channels, 2 * channels, 3, affine=True),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), conv(channels, 2 * channels, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, 2 C, H / 2, W / 2]`."""
        return self.block(inputs) + self.shortcut(inputs)


def nasbench201_network(
    num_classes: int, ops: Sequence[str], init_channels: int, num_cells: int
) -> nn.Sequential:
    """The network of the cell with those operations on its six edges, in order."""
    channels = init_channels
    layers: list[nn.Module] = [conv(3, channels, 3), Norm(channels, affine=True)]
    for stage in range(3):
        if stage > 0:
            layers.append(Nasbench201Reduction(channels))
            channels *= 2
        layers += [Nasbench201Cell(ops, channels) for _ in range(num_cells)]
    layers += [Norm(channels, affine=True), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))
