"""The search space of DARTS (Liu, Simonyan and Yang, 2019): a normal and a reduction cell."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import DARTS_OPS, DartsGenotype
from nasi_jax.cells.mixed import Scope, add_mixed_edges, unstacked
from nasi_jax.cells.ops import (
    Conv,
    FactorizedReduce,
    Head,
    LayerSpec,
    ReluConvNorm,
    darts_op,
)
from nasi_jax.types import Alpha, Choice, Depthwise, Edge, Initializer, NormMode

NODES = range(2, 6)
"""The intermediate nodes; nodes 0 and 1 are the outputs of the two cells before."""

EDGES = tuple((source, node) for node in NODES for source in range(node))
"""`(node read, node)` of the 14 edges, in the order of alpha's rows."""

CELLS = ("normal", "reduce")


@dataclass(frozen=True)
class Darts:
    """The search space.

    Alpha is `{"normal": [14, O], "reduce": [14, O]}`, a row an edge. The network has a 3x3 stem
    of 3 * `init_channels` channels and `num_cells` cells; those at 1/3 and 2/3 of the depth are
    reduction cells, which halve the image and double the channels.

    Attributes:
      ops: the operations on offer, in the order of `DARTS_OPS` or a part of them.
      init_channels: channels of each node of the first cells.
      num_cells: cells in all, at least 3.
    """

    ops: tuple[str, ...] = DARTS_OPS
    init_channels: int = 16
    num_cells: int = 8
    name: str = "darts"

    def init_alpha(self) -> Alpha:
        """Zeros: alpha_0 of Algorithm 1."""
        return {cell: jnp.zeros((len(EDGES), len(self.ops))) for cell in CELLS}

    def num_selected(self) -> dict[str, int]:
        """One operation an edge."""
        return dict.fromkeys(CELLS, 1)

    def labels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Rows are edges, columns operations."""
        edges = tuple(f"{source}->{node}" for source, node in EDGES)
        return dict.fromkeys(CELLS, (edges, self.ops))

    def choices(self, alpha: Alpha) -> tuple[Choice, ...]:
        """For each cell the operation of each edge, then the two edges that each node keeps.

        `none` never wins: the operations are ranked without it, and an edge by the softmax
        weight of its best operation other than `none` (the rule of DARTS).
        """
        columns = [column for column, op in enumerate(self.ops) if op != "none"]
        ops = tuple(self.ops[column] for column in columns)
        choices = []
        for cell in CELLS:
            scores = jax.nn.log_softmax(alpha[cell])[:, jnp.array(columns)]
            edges, _ = self.labels()[cell]
            choices += [
                Choice(f"{cell} {edge}", ops, scores[row], 1) for row, edge in enumerate(edges)
            ]
            strengths = jnp.max(scores, axis=1)
            for node in NODES:
                first = EDGES.index((0, node))
                sources = tuple(map(str, range(node)))
                choices.append(
                    Choice(f"{cell} inputs of {node}", sources, strengths[first : first + node], 2)
                )
        return tuple(choices)

    def discretize(self, alpha: Alpha) -> DartsGenotype:
        """For each node the two strongest edges, with the best operation on each."""
        choices = {choice.name: choice for choice in self.choices(alpha)}
        cells = {}
        for cell in CELLS:
            edges = []
            for node in NODES:
                for source in selected(choices[f"{cell} inputs of {node}"]):
                    choice = choices[f"{cell} {source}->{node}"]
                    edges.append(Edge(choice.options[selected(choice)[0]], source))
            cells[cell] = tuple(edges)
        return DartsGenotype(**cells)

    def one_hot(self, genotype: DartsGenotype) -> Alpha:
        """Weight 1 for the operations of the genotype's edges; other edges have none at all."""
        weights = {}
        for cell in CELLS:
            positions = [
                (EDGES.index((edge.node, node)), self.ops.index(edge.op))
                for node, edge in _edges_by_node(getattr(genotype, cell))
            ]
            weights[cell] = indicator((len(EDGES), len(self.ops)), positions)
        return weights

    def sample(self, key: jax.Array) -> DartsGenotype:
        """A pair of cells drawn uniformly."""
        return self.discretize(random_alpha(key, self.init_alpha()))

    def supernet(
        self,
        num_classes: int,
        *,
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        spec = LayerSpec(norm, False, init, param_dtype, dtype, depthwise)
        return DartsSupernet(num_classes, self.init_channels, self.num_cells, spec, self.ops)

    def network(
        self,
        genotype: DartsGenotype,
        num_classes: int,
        *,
        form: Literal["search", "evaluation"] = "evaluation",
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
    ) -> nn.Module:
        """One genotype's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters after `inherit`. Form `evaluation` is the network that DARTS trains: scale and
        shift in the normalisation, and none of it behind pools.
        """
        searching = form == "search"
        spec = LayerSpec(norm, not searching, init, param_dtype, dtype, depthwise)
        return DartsNetwork(
            num_classes, self.init_channels, self.num_cells, spec, genotype, pool_norm=searching
        )

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network.

        The supernet keeps the cells of a stage stacked, and the edges of a cell; here each has
        its own entry.
        """
        stages = [stage for stage in _stages(self.num_cells) if not stage.reduction]
        names = {f"stage_{stage.start}": stage.names() for stage in stages}
        return {
            collection: {
                layer: unstacked(values, _stacks("edges_of_inputs" in values))
                if layer.startswith("cell_")
                else values
                for layer, values in _without_stages(layers, names).items()
            }
            for collection, layers in variables.items()
        }


class _Stage(NamedTuple):
    """Cells that follow one another: one reduction cell, or as many normal ones as there are."""

    start: int
    length: int
    reduction: bool

    def names(self) -> dict[str, list[str]]:
        """For each stack of a stage of normal cells the names of its slices."""
        cells = range(self.start, self.start + self.length)
        return {
            "cell": [f"cell_{index}" for index in cells],
            "second": [f"second_{index}" for index in cells[1:]],
            "first": [f"first_{index}" for index in cells[2:]],
        }


def _stages(num_cells: int) -> tuple[_Stage, ...]:
    reductions = (num_cells // 3, 2 * num_cells // 3)
    stages, start = [], 0
    for index in reductions:
        stages += [_Stage(start, index - start, False), _Stage(index, 1, True)]
        start = index + 1
    stages.append(_Stage(start, num_cells - start, False))
    return tuple(stage for stage in stages if stage.length > 0)


def _without_stages(
    layers: Mapping[str, Any], names: Mapping[str, Mapping[str, list[str]]]
) -> dict[str, Any]:
    """Layers with an entry for each cell of a stage in place of the stage."""
    flat = {layer: values for layer, values in layers.items() if layer not in names}
    for stage, slices in names.items():
        flat |= unstacked(layers.get(stage, {}), slices)
    return flat


def _edges_by_node(edges: tuple[Edge, ...]) -> list[tuple[int, Edge]]:
    return [(node, edges[2 * index + rank]) for index, node in enumerate(NODES) for rank in (0, 1)]


def _groups(reduction: bool) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The edges that share a stride: name -> (stride, rows of alpha).

    In a reduction cell the edges that leave the cell's inputs have stride 2. They come first:
    a scan must meet the edges into a node before those that leave it.
    """
    rows = range(len(EDGES))
    if not reduction:
        return {"edges": (1, tuple(rows))}
    from_inputs = tuple(row for row in rows if EDGES[row][0] < 2)
    others = tuple(row for row in rows if EDGES[row][0] >= 2)
    return {"edges_of_inputs": (2, from_inputs), "edges": (1, others)}


def _stacks(reduction: bool) -> dict[str, list[str]]:
    return {
        name: [_edge_name(*EDGES[row]) for row in rows]
        for name, (_, rows) in _groups(reduction).items()
    }


def _edge_name(source: int, node: int) -> str:
    return f"edge_{source}_{node}"


class _Supercell(nn.Module):
    """A cell with every operation on every edge.

    Of the 14 edges only the states are kept for the derivatives: what the operations leave on
    the way is many times as large.
    """

    ops: tuple[str, ...]
    reduction: bool
    spec: LayerSpec

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array, weights: jax.Array) -> jax.Array:
        inputs = jnp.stack([first, second])
        batch, height, width, channels = first.shape
        if self.reduction:
            states = jnp.zeros((6, batch, height // 2, width // 2, channels), first.dtype)
        else:
            states = jnp.concatenate([inputs, jnp.zeros((4, *first.shape), first.dtype)])
        for name, (stride, rows) in _groups(self.reduction).items():
            states = add_mixed_edges(
                states,
                [EDGES[row] for row in rows],
                weights[jnp.array(rows)],
                ops=self.ops,
                apply_op=functools.partial(darts_op, stride=stride, spec=self.spec, pool_norm=True),
                name=name,
                inputs=inputs if stride == 2 else None,
                remat=True,
            )
        return jnp.concatenate([states[node] for node in NODES], axis=-1)


class _Cell(nn.Module):
    """A cell of one genotype."""

    edges: tuple[Edge, ...]
    reduction: bool
    spec: LayerSpec
    pool_norm: bool

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        states = {0: first, 1: second}
        for node, edge in _edges_by_node(self.edges):
            stride = 2 if self.reduction and edge.node < 2 else 1
            op = functools.partial(
                darts_op, edge.op, stride=stride, spec=self.spec, pool_norm=self.pool_norm
            )
            output = Scope(op, name=_edge_name(edge.node, node))(states[edge.node])
            states[node] = states[node] + output if node in states else output
        return jnp.concatenate([states[node] for node in NODES], axis=-1)


class _StageCell(nn.Module):
    """A mixed normal cell of a stage, and what reads its output: one step of a scan over cells.

    A cell reads the outputs of the two before it, each through a layer of its own. Which cells
    those are, and so what shape these layers have, differs for the first cells of a stage. So
    what is carried are their outputs: those that this cell reads, and the first input of the
    next one. The last cells thus have layers that nothing reads.
    """

    ops: tuple[str, ...]
    spec: LayerSpec

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, ...], weights: jax.Array
    ) -> tuple[tuple[jax.Array, ...], None]:
        first, second, next_first, _, before = carry
        cell = _Supercell(self.ops, False, self.spec, name="cell")
        output = cell(first, second, weights)
        channels = first.shape[-1]
        next_second = ReluConvNorm(channels, 1, self.spec, name="second")(output)
        after_next = ReluConvNorm(channels, 1, self.spec, name="first")(output)
        return (next_first, next_second, after_next, before, output), None


class _Skeleton(nn.Module):
    """Stem, preprocessing, head: what the supernet and a network have in common."""

    num_classes: int
    init_channels: int
    num_cells: int
    spec: LayerSpec

    def stem(self, inputs: jax.Array) -> jax.Array:
        """What the first cell reads, twice."""
        stem = Conv(3 * self.init_channels, 3, self.spec, name="stem")(inputs)
        return self.spec.normalise("stem_norm")(stem)

    def preprocess(
        self, index: int, first: jax.Array, second: jax.Array, channels: int
    ) -> tuple[jax.Array, jax.Array]:
        """Both inputs of a cell, brought to its channels and to the size of the second one."""
        if first.shape[1] == second.shape[1]:
            first = ReluConvNorm(channels, 1, self.spec, name=f"first_{index}")(first)
        else:
            first = FactorizedReduce(channels, self.spec, name=f"first_{index}")(first)
        return first, ReluConvNorm(channels, 1, self.spec, name=f"second_{index}")(second)

    def head(self, inputs: jax.Array) -> jax.Array:
        """The logits."""
        return Head(self.num_classes, self.spec, name="head")(inputs)


class DartsSupernet(_Skeleton):
    """The one-shot network. The normal cells of a stage are a scan over stacked parameters."""

    ops: tuple[str, ...] = DARTS_OPS

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights` has the structure of alpha."""
        first = second = self.stem(inputs)
        channels = self.init_channels
        for stage in _stages(self.num_cells):
            channels *= 2 if stage.reduction else 1
            read = self.preprocess(stage.start, first, second, channels)
            if stage.reduction:
                cell = _Supercell(self.ops, True, self.spec, name=f"cell_{stage.start}")
                first, second = second, cell(*read, weights["reduce"])
            else:
                first, second = self._normal_cells(stage, *read, second, weights["normal"])
        return self.head(second)

    def _normal_cells(
        self,
        stage: _Stage,
        first: jax.Array,
        second: jax.Array,
        before: jax.Array,
        weights: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs of the last two cells of a stage, or of the only one and `before`."""
        next_first = jnp.zeros_like(first)
        if stage.length > 1:
            layer = ReluConvNorm(first.shape[-1], 1, self.spec, name=f"first_{stage.start + 1}")
            next_first = layer(before)
        cells = nn.scan(
            _StageCell,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=stage.length,
        )(self.ops, self.spec, name=f"stage_{stage.start}")
        blank = jnp.zeros((*first.shape[:-1], len(NODES) * first.shape[-1]), first.dtype)
        carry, _ = cells((first, second, next_first, blank, blank), weights)
        *_, last_but_one, last = carry
        return (last_but_one if stage.length > 1 else before), last


class DartsNetwork(_Skeleton):
    """The network of one genotype."""

    genotype: DartsGenotype = None  # type: ignore[assignment]
    pool_norm: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to logits."""
        first = second = self.stem(inputs)
        channels = self.init_channels
        for stage in _stages(self.num_cells):
            channels *= 2 if stage.reduction else 1
            edges = self.genotype.reduce if stage.reduction else self.genotype.normal
            for index in range(stage.start, stage.start + stage.length):
                read = self.preprocess(index, first, second, channels)
                cell = _Cell(
                    edges, stage.reduction, self.spec, self.pool_norm, name=f"cell_{index}"
                )
                first, second = second, cell(*read)
        return self.head(second)
