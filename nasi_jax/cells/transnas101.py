"""TransNAS-Bench-101 (Duan et al., 2021), its micro space: NAS-Bench-201's cell without the pool.

The networks differ: there is no residual block, and cells halve the images themselves. What they
are is read from the authors' code, github.com/yawen-d/TransNASBench.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.genotype import shown, stripped_text
from nasi_jax.cells.layers.mixed import Scope, add_mixed_edges, unstacked
from nasi_jax.cells.layers.ops import Conv, FactorizedReduce, Head, LayerSpec, ReluConvNorm
from nasi_jax.cells.nasbench201 import (
    EDGES,
    NASBENCH201_OPS,
    Cell,
    Nasbench201,
    Nasbench201Genotype,
    Supercell,
    apply_op,
    edge_name,
    function_of,
)
from nasi_jax.types import BLOCK, Alpha, NetworkSpec, Sizes

TRANSNAS101_OPS = NASBENCH201_OPS[:4]
"""The four operations, in the order of the benchmark's digits."""

MODULES = (2, 2, 1)
"""For each image size how many modules there are: of the skeleton 41414, a 4 and the 1 after it.

A 4 halves the images and doubles the channels in its first cell, a 1 leaves both.
"""


@dataclass(frozen=True)
class Transnas101Genotype(Nasbench201Genotype):
    """A micro cell of TransNAS-Bench-101: one of NAS-Bench-201 without the pool.

    Attributes:
      ops: the operations of the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3, in this order.

    Raises:
      ValueError: for another number of operations or an unknown one.
    """

    family: ClassVar[str] = "transnas101"
    prefix: ClassVar[str] = "64-41414-"
    text_form: ClassVar[str] = "64-41414-1_23_012 for TransNAS-Bench-101"
    sizes: ClassVar[Sizes] = Sizes(init_channels=64, num_cells=2)
    benchmark: ClassVar[str] = "TransNAS-Bench-101"
    known: ClassVar[tuple[str, ...]] = TRANSNAS101_OPS

    def to_text(self) -> str:
        """The benchmark's name of the network: base channels, skeleton, a digit for each edge."""
        digits = "{}_{}{}_{}{}{}".format(*map(TRANSNAS101_OPS.index, self.ops))
        return f"{self.prefix}{digits}"

    @classmethod
    def from_text(cls, text: str) -> Transnas101Genotype:
        """Reads the benchmark's name of a network.

        Raises:
          ValueError: if the text has another form.
        """
        form = f"{cls.prefix}([0-3])_([0-3])([0-3])_([0-3])([0-3])([0-3])"
        match = re.fullmatch(form, stripped_text(text))
        if match is None:
            digits = ", ".join(f"{digit} {op}" for digit, op in enumerate(TRANSNAS101_OPS))
            raise ValueError(
                f"not a TransNAS-Bench-101 micro cell: {shown(text)}; the form is "
                f"{cls.prefix}1_23_012, with the digits {digits}"
            )
        return cls(tuple(TRANSNAS101_OPS[int(digit)] for digit in match.groups()))

    def canonical(self) -> Transnas101Genotype:
        """The first cell that computes the same function, in the order of `Transnas101.genotypes`.

        Edges on no path from input to output are `none`, which leaves 2,128 cells of 4,096. Those
        that a renaming of layers makes equal functions are one, which leaves 1,376. A skip from the
        input is such a layer, because it has parameters where the cell halves the images.
        """
        return _first_cells()[_function(self)]

    def isomorphism_key(self) -> str:
        """The cell as text: the benchmark trained all 4,096, and calls no two of them the same."""
        return self.to_text()

    def network(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        init_channels: int,
        num_cells: int,
    ) -> nn.Module:
        """The network as the benchmark trained it to classify: `inputs -> logits [B, classes]`."""
        layers = LayerSpec.of(spec, affine=True)
        return Transnas101Network(num_classes, init_channels, num_cells, layers, genotype=self)


def _function(cell: Transnas101Genotype) -> tuple[Any, ...]:
    """What a cell computes where it halves the images; what is equal there is equal elsewhere."""
    ops = []
    for edge in cell.graphs()[0].edges:
        if edge.role == "unused":
            ops.append("none")
        else:
            reduces = edge.source == 0 and edge.op == "skip_connect"
            ops.append("reduce" if reduces else edge.op)
    return function_of(ops)


@functools.cache
def _first_cells() -> dict[tuple[Any, ...], Transnas101Genotype]:
    """For each function the first cell that computes it."""
    first: dict[tuple[Any, ...], Transnas101Genotype] = {}
    for ops in itertools.product(TRANSNAS101_OPS, repeat=len(EDGES)):
        cell = Transnas101Genotype(ops)
        first.setdefault(_function(cell), cell)
    return first


@dataclass(frozen=True)
class Transnas101(Nasbench201):
    """The search space.

    Alpha is `{"cell": [6, O]}`, a row an edge. The network is a stem of two 3x3 convolutions of
    stride 2, then 5 modules of `num_cells` cells, of which the first, third and fifth begin with a
    cell that halves the images and doubles the channels.

    Attributes:
      ops: the operations on offer.
      init_channels: channels of the stem; the first cell has twice as many.
      num_cells: cells a module.
    """

    ops: tuple[str, ...] = TRANSNAS101_OPS
    init_channels: int = 16
    num_cells: int = 2
    name: str = "transnas101"

    genotype: ClassVar[type[Transnas101Genotype]] = Transnas101Genotype
    # Those of NAS-Bench-201: nothing has been tried here.
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        variant: {**fields, "ops": TRANSNAS101_OPS[1:]}
        for variant, fields in Nasbench201.settings.items()
    }

    def _network(self, num_classes: int, spec: LayerSpec, **kind: Any) -> nn.Module:
        return Transnas101Network(num_classes, self.init_channels, self.num_cells, spec, **kind)

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network.

        The supernet keeps the edges of a cell stacked; here each edge has its own entry.
        """
        names = {
            name: [edge_name(*edge) for edge in edges] for name, edges in _HALVING_EDGES.items()
        }
        return {
            collection: {
                layer: unstacked(values, names) if layer.startswith("halving_") else values
                for layer, values in layers.items()
            }
            for collection, layers in super().inherit(variables).items()
        }


_HALVING_EDGES = {
    "edges_of_input": tuple(edge for edge in EDGES if edge[0] == 0),
    "edges": tuple(edge for edge in EDGES if edge[0] > 0),
}
"""The edges of a cell that halves the images: the first ones have stride 2."""


def _halving_op(name: str, inputs: jax.Array, *, features: int, spec: LayerSpec) -> jax.Array:
    if name == "skip_connect":
        return FactorizedReduce(features, spec, name=name)(inputs)
    return ReluConvNorm(features, int(name[-1]), spec, stride=2, name=name)(inputs)


def _of_even_size(inputs: jax.Array) -> jax.Array:
    """Images of an odd size with zeros at their end, which PyTorch's layers of stride 2 read."""
    _, height, width, _ = inputs.shape
    return jnp.pad(inputs, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


class _HalvingSupercell(nn.Module):
    """A cell with every operation on every edge that halves the images."""

    features: int
    ops: tuple[str, ...]
    spec: LayerSpec
    one_hot: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: jax.Array) -> jax.Array:
        inputs = _of_even_size(inputs)
        batch, height, width, _ = inputs.shape
        states = jnp.zeros((4, batch, height // 2, width // 2, self.features), inputs.dtype)

        def add(name: str, op: Callable[..., jax.Array], inputs: jax.Array | None) -> jax.Array:
            def apply_ops(ops: Sequence[str], inputs: jax.Array) -> Iterator[jax.Array]:
                return (op(each, inputs, spec=self.spec) for each in ops)

            edges = _HALVING_EDGES[name]
            return add_mixed_edges(
                states,
                edges,
                weights[jnp.array([EDGES.index(edge) for edge in edges])],
                ops=self.ops,
                apply_ops=apply_ops,
                name=name,
                inputs=inputs,
                one_hot=self.one_hot,
                together=apply_ops if self.spec.together else None,
            )

        halving_op = functools.partial(_halving_op, features=self.features)
        states = add("edges_of_input", halving_op, inputs[None])
        states = add("edges", apply_op, None)
        return checkpoint_name(states[-1], BLOCK)


class _HalvingCell(nn.Module):
    """A cell of one genotype that halves the images."""

    features: int
    genotype: Transnas101Genotype
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: None) -> jax.Array:
        inputs = _of_even_size(inputs)
        batch, height, width, _ = inputs.shape
        shape = (batch, height // 2, width // 2, self.features)
        states = [inputs, *[jnp.zeros(shape, inputs.dtype)] * 3]
        halving_op = functools.partial(_halving_op, features=self.features)
        for (source, node), op in zip(EDGES, self.genotype.ops, strict=True):
            if op != "none":
                apply = halving_op if source == 0 else apply_op
                layers = functools.partial(apply, op, spec=self.spec)
                states[node] += Scope(layers, name=edge_name(source, node))(states[source])
        return checkpoint_name(states[-1], BLOCK)


class Transnas101Network(nn.Module):
    """The network of a genotype, or the supernet of the operations if there is none.

    Cells of one shape are a scan over stacked parameters.
    """

    num_classes: int
    init_channels: int
    num_cells: int
    spec: LayerSpec
    genotype: Transnas101Genotype | None = None
    ops: tuple[str, ...] = TRANSNAS101_OPS
    one_hot: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights["cell"]` is `[6, O]`, or absent for a network."""
        half = (self.init_channels + 1) // 2
        states = Conv(half, 3, self.spec, stride=2, name="stem")(inputs)
        states = self.spec.normalize("stem_norm")(states)
        stem = ReluConvNorm(self.init_channels, 3, self.spec, stride=2, name="second_stem")
        states = checkpoint_name(stem(states), BLOCK)
        edge_weights = None if weights is None else weights["cell"]
        halving: Any = _HalvingCell
        cell: Any = Cell
        if self.genotype is None:
            halving = functools.partial(_HalvingSupercell, one_hot=self.one_hot)
            cell = functools.partial(Supercell, one_hot=self.one_hot)
        for stage, modules in enumerate(MODULES):
            features = self.init_channels * 2 ** (stage + 1)
            kind = (self.genotype or self.ops, self.spec)
            first = self.spec.of_cell(halving)(features, *kind, name=f"halving_{stage}")
            states = first(states, edge_weights)
            if others := modules * self.num_cells - 1:
                cells: Any = nn.scan(
                    self.spec.of_cell(cell),
                    variable_axes={"params": 0, "batch_stats": 0},
                    split_rngs={"params": True},
                    in_axes=nn.broadcast,
                    length=others,
                )(*kind, name=f"stage_{stage}")
                states, _ = cells(states, edge_weights)
        return Head(self.num_classes, self.spec, name="head")(states)
