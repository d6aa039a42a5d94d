"""NAS-Bench-201 (Dong and Yang, 2020): one cell of 4 nodes, 6 edges, 5 operations."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import check_op, on_path, shown, stripped_text
from nasi_jax.cells.layers.mixed import Scope, add_mixed_edges, unstacked
from nasi_jax.cells.layers.ops import (
    Conv,
    Head,
    LayerSpec,
    ReluConvNorm,
    avg_pool,
    halving_avg_pool,
)
from nasi_jax.types import BLOCK, Alpha, CellEdge, CellGraph, CellNode, Choice, NetworkSpec, Sizes

EDGES = tuple((source, node) for node in range(1, 4) for source in range(node))
"""`(node read, node)` in the order of `arch_str` and of alpha's rows."""

NASBENCH201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The five operations of NAS-Bench-201 (Dong and Yang, 2020), in its own order."""


@dataclass(frozen=True)
class Nasbench201Genotype:
    """A NAS-Bench-201 cell.

    Attributes:
      ops: the operations of the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3, in this order.

    Raises:
      ValueError: for another number of operations or an unknown one.
    """

    ops: tuple[str, ...]

    family: ClassVar[str] = "nasbench201"
    prefix: ClassVar[str] = "|"
    text_form: ClassVar[str] = "|op~0|+|op~0|op~1|+... for NAS-Bench-201"
    sizes: ClassVar[Sizes] = Sizes(init_channels=16, num_cells=5)
    options: ClassVar[tuple[str, ...]] = ()
    benchmark: ClassVar[str] = "NAS-Bench-201"
    known: ClassVar[tuple[str, ...]] = NASBENCH201_OPS

    def __post_init__(self) -> None:
        if not isinstance(self.ops, list | tuple) or len(self.ops) != 6:
            raise ValueError(f"a {self.benchmark} cell takes a list of 6 ops")
        where = f"a {self.benchmark} genotype"
        checked = tuple(check_op(op, self.known, where) for op in self.ops)
        object.__setattr__(self, "ops", checked)

    def to_text(self) -> str:
        """The benchmark's `arch_str`, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
        ops = iter(self.ops)
        return "+".join(
            "|" + "".join(f"{next(ops)}~{source}|" for source in range(node))
            for node in range(1, 4)
        )

    def isomorphism_key(self) -> str:
        """The cell's output as an expression of its input, equal for isomorphic cells.

        The notion of the benchmark, under which its 15,625 cells are 6,466: `skip_connect` passes
        on what it reads, `none` gives a zero, and the order of a sum doesn't matter. It is finer
        than equality of functions, because a sum with a zero differs from the sum without it.
        """
        # Spelt and sorted as in the benchmark's release: a sum that is passed on has no brackets,
        # so that other spellings, which sort otherwise, merge and split other cells.
        zero, ops, nodes = "#", iter(self.ops), ["0"]
        for _ in range(3):
            terms = []
            for source, op in zip(nodes, ops, strict=False):  # the ops go on
                if op == "none" or source == zero:
                    terms.append(zero)
                else:
                    terms.append(source if op == "skip_connect" else f"({source})@{op}")
            nodes.append("+".join(sorted(terms)))
        return nodes[-1]

    @classmethod
    def from_text(cls, text: str) -> Nasbench201Genotype:
        """Reads an `arch_str`.

        Raises:
          ValueError: if the text has another form.
        """
        op = r"([^|~+]+)"
        form = r"\+".join(
            r"\|" + "".join(rf"{op}~{source}\|" for source in range(node)) for node in range(1, 4)
        )
        match = re.fullmatch(form, stripped_text(text))
        if match is None:
            raise ValueError(
                f"not a NAS-Bench-201 arch_str: {shown(text)}; "
                "the form is |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
            )
        return cls(ops=match.groups())

    def evaluated(self) -> Self:
        """The cell itself: the benchmark trained it with all that leads nowhere in it."""
        return self

    def canonical(self) -> Self:
        """The first cell that computes the same function, in the order of `Nasbench201.genotypes`.

        Edges on no path from input to output are `none`, which leaves 9,445 cells of 15,625. Those
        that a renaming of convolutions makes equal functions are one, which leaves 5,044. The
        form of a cell without `none` is without it too; a `skip_connect` may be new in it.
        """
        cell = self.graphs()[0]
        live = tuple(edge.op if edge.role == "op" else "none" for edge in cell.edges)
        return type(self)(_first_cells()[function_of(live)])

    def record(self) -> dict[str, Any]:
        """No further entries."""
        return {}

    def graphs(self) -> tuple[CellGraph, ...]:
        """The cell; what is on no path from input to output is not used."""
        matrix = np.zeros((4, 4), int)
        for edge, op in zip(EDGES, self.ops, strict=True):
            matrix[edge] = op != "none"
        used = on_path(matrix)
        roles: dict[int, Any] = {0: "input", 3: "output"}
        nodes = tuple(
            CellNode(str(node), roles.get(node, "node"), used=bool(used[node])) for node in range(4)
        )
        edges = tuple(
            CellEdge(
                source,
                node,
                "" if op == "none" else op,
                f"{source}->{node}",
                "op" if matrix[source, node] and used[source] and used[node] else "unused",
            )
            for (source, node), op in zip(EDGES, self.ops, strict=True)
        )
        return (CellGraph("", nodes, edges),)

    def network(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        init_channels: int,
        num_cells: int,
    ) -> nn.Module:
        """The network that the benchmark trained, with scale and shift in its normalization."""
        layers = LayerSpec.of(spec, affine=True)
        return Nasbench201Network(num_classes, init_channels, num_cells, layers, genotype=self)


def function_of(ops: Sequence[str]) -> tuple[Any, ...]:
    """What a cell computes, up to the names of its nodes and convolutions.

    Every convolution has parameters of its own, so that a sum of two isn't one of them twice. It
    reads a sum of terms `(layer, pools)`, where a layer is the input or a convolution: a skip
    passes on the terms that it reads, and an average pool, which is linear, pools each of them.
    """
    layers: list[tuple[str, list[tuple[int, int]]]] = [("input", [])]
    sums: list[list[tuple[int, int]]] = [[(0, 0)], [], [], []]
    for (source, node), op in zip(EDGES, ops, strict=True):
        if op == "skip_connect":
            sums[node] += sums[source]
        elif op == "avg_pool_3x3":
            sums[node] += [(layer, pools + 1) for layer, pools in sums[source]]
        elif op != "none":
            sums[node].append((len(layers), 0))
            layers.append((op, sums[source]))
    layers.append(("output", sums[-1]))

    def op_of(layer: int) -> str:
        return layers[layer][0]

    alike = itertools.groupby(sorted(range(len(layers)), key=op_of), op_of)
    functions = []
    for orders in itertools.product(*(itertools.permutations(group) for _, group in alike)):
        names = {layer: name for name, layer in enumerate(itertools.chain(*orders))}
        reads = (
            sorted((names[read], pools) for read, pools in layers[layer][1]) for layer in names
        )
        functions.append(
            tuple((op_of(layer), *read) for layer, read in zip(names, reads, strict=True))
        )
    return min(functions)


@functools.cache
def _first_cells() -> dict[tuple[Any, ...], tuple[str, ...]]:
    """For each function the operations of the first cell that computes it.

    A convolution on no path is in the function too, so that this is for cells without any.
    """
    first: dict[tuple[Any, ...], tuple[str, ...]] = {}
    for ops in itertools.product(NASBENCH201_OPS, repeat=len(EDGES)):
        first.setdefault(function_of(ops), ops)
    return first


_SETTINGS = {
    "steps": 100,
    "batch_size": 16,
    "penalty": 1.0,
    "redraw": True,
    "derivative": "reverse",
    "ops": ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    "num_cells": 1,
}
"""The paper states nothing for this space. mu, the initial nu, that every step draws theta_0 anew,
and that it is searched without `none` were chosen on validation accuracies on CIFAR-10 (see
benchmarks/README.md), with as many steps on as many images as two CPU cores do in a minute. A fixed
nu is out of reach here, and not chosen with care."""


@dataclass(frozen=True)
class Nasbench201:
    """The search space.

    Alpha is `{"cell": [6, O]}`, a row an edge. The network is a 3x3 stem, 3 stages of
    `num_cells` cells, and a residual block of stride 2 that doubles the channels between stages.

    Attributes:
      ops: the operations on offer.
      init_channels: channels of the stem and of the first stage.
      num_cells: cells a stage.
    """

    ops: tuple[str, ...] = NASBENCH201_OPS
    init_channels: int = 16
    num_cells: int = 5
    name: str = "nasbench201"

    genotype: ClassVar[type[Nasbench201Genotype]] = Nasbench201Genotype
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "nasi-ada": {**_SETTINGS, "constraint": 1000.0},
        "nasi-fix": {**_SETTINGS, "constraint": 1000.0},
    }

    def init_alpha(self) -> Alpha:
        """Zeros: alpha_0 of Algorithm 1."""
        return {"cell": jnp.zeros((len(EDGES), len(self.ops)))}

    def num_selected(self) -> dict[str, int]:
        """One operation an edge."""
        return {"cell": 1}

    def labels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Rows are edges, columns operations."""
        return {"cell": (tuple(f"{source}->{node}" for source, node in EDGES), self.ops)}

    def choices(self, alpha: Alpha) -> tuple[Choice, ...]:
        """The operation of each edge."""
        scores = jax.nn.log_softmax(alpha["cell"])
        edges, ops = self.labels()["cell"]
        return tuple(Choice(edge, ops, scores[row], 1) for row, edge in enumerate(edges))

    def discretize(self, alpha: Alpha) -> Nasbench201Genotype:
        """The best operation of each edge."""
        return self.genotype(tuple(self.ops[selected(choice)[0]] for choice in self.choices(alpha)))

    def one_hot(self, genotype: Nasbench201Genotype) -> Alpha:
        """Weight 1 for each edge's operation."""
        positions = [(row, self.ops.index(op)) for row, op in enumerate(genotype.ops)]
        return {"cell": indicator((len(EDGES), len(self.ops)), positions)}

    def sample(self, key: jax.Array) -> Nasbench201Genotype:
        """A cell drawn uniformly."""
        return self.discretize(random_alpha(key, self.init_alpha()))

    def genotypes(self) -> Iterator[Nasbench201Genotype]:
        """Every cell: 15,625 of them with the five operations."""
        for ops in itertools.product(self.ops, repeat=len(EDGES)):
            yield self.genotype(ops)

    def supernet(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        layers = LayerSpec.of(spec, affine=False)
        return self._network(num_classes, layers, ops=self.ops, one_hot=one_hot)

    def network(
        self,
        genotype: Nasbench201Genotype,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        form: Literal["search", "evaluation"] = "evaluation",
    ) -> nn.Module:
        """One cell's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters after `inherit`. Form `evaluation` has scale and shift in its normalization, as
        the networks that the benchmark trained and counted.
        """
        if form == "evaluation":
            return genotype.network(
                num_classes, spec, init_channels=self.init_channels, num_cells=self.num_cells
            )
        layers = LayerSpec.of(spec, affine=False)
        return self._network(num_classes, layers, genotype=genotype)

    def _network(self, num_classes: int, spec: LayerSpec, **kind: Any) -> nn.Module:
        """The supernet, or the network of a genotype."""
        return Nasbench201Network(num_classes, self.init_channels, self.num_cells, spec, **kind)

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network.

        The supernet keeps the edges of a cell stacked; here each edge has its own entry.
        """
        names = {"edges": [edge_name(source, node) for source, node in EDGES]}
        return {
            collection: {
                layer: unstacked(values, names, axis=1) if layer.startswith("stage_") else values
                for layer, values in layers.items()
            }
            for collection, layers in variables.items()
        }


def apply_op(name: str, inputs: jax.Array, *, spec: LayerSpec) -> jax.Array:
    """Applies the operation of that name, inside a compact method of a module.

    Args:
      name: one of `NASBENCH201_OPS` other than `none`.
      inputs: `[B, H, W, C]`.
      spec: how the layers are built.

    Returns:
      `[B, H, W, C]`.
    """
    if name == "skip_connect":
        return inputs
    if name == "avg_pool_3x3":
        return avg_pool(inputs)
    return ReluConvNorm(inputs.shape[-1], int(name[-1]), spec, name=name)(inputs)


def edge_name(source: int, node: int) -> str:
    """The name of an edge's layers."""
    return f"edge_{source}_{node}"


class Supercell(nn.Module):
    """A cell with every operation on every edge: one step of a scan over the cells."""

    ops: tuple[str, ...]
    spec: LayerSpec
    one_hot: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: jax.Array) -> tuple[jax.Array, None]:
        """Maps `[B, H, W, C]` to the same shape; `weights` is `[6, O]`."""
        states = jnp.concatenate([inputs[None], jnp.zeros((3, *inputs.shape), inputs.dtype)])

        def apply_ops(ops: Sequence[str], inputs: jax.Array) -> Iterator[jax.Array]:
            return (apply_op(op, inputs, spec=self.spec) for op in ops)

        states = add_mixed_edges(
            states,
            EDGES,
            weights,
            ops=self.ops,
            apply_ops=apply_ops,
            name="edges",
            one_hot=self.one_hot,
            together=apply_ops if self.spec.together else None,
        )
        return checkpoint_name(states[-1], BLOCK), None


class Cell(nn.Module):
    """A cell of one genotype: one step of a scan over the cells."""

    genotype: Nasbench201Genotype
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: None) -> tuple[jax.Array, None]:
        """Maps `[B, H, W, C]` to the same shape."""
        states = [inputs, *[jnp.zeros_like(inputs)] * 3]
        for (source, node), op in zip(EDGES, self.genotype.ops, strict=True):
            if op != "none":
                layers = functools.partial(apply_op, op, spec=self.spec)
                states[node] += Scope(layers, name=edge_name(source, node))(states[source])
        return checkpoint_name(states[-1], BLOCK), None


class _Reduction(nn.Module):
    """The residual block of stride 2 between stages."""

    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        outputs = ReluConvNorm(self.features, 3, self.spec, stride=2, name="first")(inputs)
        outputs = ReluConvNorm(self.features, 3, self.spec, name="second")(outputs)
        shortcut = Conv(self.features, 1, self.spec, name="shortcut")
        return checkpoint_name(outputs + shortcut(halving_avg_pool(inputs)), BLOCK)


class Nasbench201Network(nn.Module):
    """The network of a genotype, or the supernet of the operations if there is none.

    The cells of a stage have one shape, so they are a scan over stacked parameters.
    """

    num_classes: int
    init_channels: int
    num_cells: int
    spec: LayerSpec
    genotype: Nasbench201Genotype | None = None
    ops: tuple[str, ...] = NASBENCH201_OPS
    one_hot: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights["cell"]` is `[6, O]`, or absent for a network."""
        states = self.spec.normalize("stem_norm")(
            Conv(self.init_channels, 3, self.spec, name="stem")(inputs)
        )
        states = checkpoint_name(states, BLOCK)
        edge_weights = None if weights is None else weights["cell"]
        cell = Cell if self.genotype else functools.partial(Supercell, one_hot=self.one_hot)
        stage_of_cells: Any = nn.scan(
            self.spec.of_cell(cell),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_cells,
        )
        for stage in range(3):
            if stage > 0:
                features = self.init_channels * 2**stage
                states = _Reduction(features, self.spec, name=f"reduction_{stage}")(states)
            cells = stage_of_cells(self.genotype or self.ops, self.spec, name=f"stage_{stage}")
            states, _ = cells(states, edge_weights)
        states = nn.relu(self.spec.normalize("last_norm")(states))
        return Head(self.num_classes, self.spec, name="head")(states)
