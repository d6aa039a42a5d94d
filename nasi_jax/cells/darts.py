"""The search space of DARTS (Liu, Simonyan and Yang, 2019): a normal and a reduction cell."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import call_fields, check_op, shown
from nasi_jax.cells.layers.mixed import Scope, add_mixed_edges, stacked, unstacked
from nasi_jax.cells.layers.ops import (
    Conv,
    FactorizedReduce,
    Head,
    LayerSpec,
    ReluConvNorm,
    darts_op,
    darts_ops_together,
)
from nasi_jax.types import (
    BLOCK,
    STEMS,
    Alpha,
    CellEdge,
    CellGraph,
    CellNode,
    Choice,
    DropPath,
    Edge,
    NetworkSpec,
    Sizes,
    Stem,
)

NODES = range(2, 6)
"""The intermediate nodes; nodes 0 and 1 are the outputs of the two cells before."""

EDGES = tuple((source, node) for node in NODES for source in range(node))
"""`(node read, node)` of the 14 edges, in the order of alpha's rows."""

EDGES_OF_INPUTS = tuple(edge for edge in EDGES if edge[0] < 2)
"""Those that leave the inputs of a cell, and have stride 2 in a reduction cell."""

CELLS = ("normal", "reduce")

DARTS_OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The eight operations of DARTS (Liu et al., 2019), in the order of its released code."""


@dataclass(frozen=True)
class DartsGenotype:
    """A pair of DARTS cells: two incoming edges for each of the nodes 2, 3, 4 and 5.

    The two edges of a node are kept in the order of the nodes that they read, so that equal
    cells compare equal. Every intermediate node is part of the cell's output.

    Attributes:
      normal: 8 edges `(op, node read)` of the normal cell.
      reduce: 8 edges of the reduction cell.

    Raises:
      ValueError: for another number of edges, an unknown op, `none`, a node that does not come
        before the one that reads it, or two edges of a node that read the same one.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]

    family: ClassVar[str] = "darts"
    prefix: ClassVar[str] = "Genotype"
    text_form: ClassVar[str] = "Genotype(...) for DARTS"
    sizes: ClassVar[Sizes] = Sizes(init_channels=36, num_cells=20, least_cells=3)
    options: ClassVar[tuple[str, ...]] = ("stem", "auxiliary", "drop_path")

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", self._checked(self.normal, "normal"))
        object.__setattr__(self, "reduce", self._checked(self.reduce, "reduce"))

    @staticmethod
    def _checked(edges: Any, cell: str) -> tuple[Edge, ...]:
        num_edges = 2 * len(NODES)
        if not isinstance(edges, list | tuple) or len(edges) != num_edges:
            raise ValueError(f"the {cell} cell takes a list of {num_edges} (op, node) pairs")
        ordered: list[Edge] = []
        for node in range(len(NODES)):
            pair = []
            for edge in edges[2 * node : 2 * node + 2]:
                if not isinstance(edge, list | tuple) or len(edge) != 2:
                    raise ValueError(f"an edge of the {cell} cell is not an (op, node) pair")
                op = check_op(edge[0], DARTS_OPS[1:], f"the {cell} cell of a DARTS genotype")
                source = edge[1]
                if type(source) is not int or not 0 <= source < node + 2:
                    raise ValueError(
                        f"node {node + 2} of the {cell} cell reads a node from 0 to {node + 1}, "
                        f"not {shown(source)}"
                    )
                pair.append(Edge(op, source))
            if pair[0].node == pair[1].node:
                raise ValueError(
                    f"node {node + 2} of the {cell} cell reads node {pair[0].node} twice; "
                    "the two edges of a node read different nodes"
                )
            ordered += sorted(pair, key=lambda edge: edge.node)
        return tuple(ordered)

    def to_text(self) -> str:
        """`Genotype(normal=[...], normal_concat=range(2, 6), reduce=[...], ...)`."""
        concat = f"range(2, {2 + len(NODES)})"
        cells = {"normal": self.normal, "reduce": self.reduce}
        parts = (
            f"{cell}={[tuple(edge) for edge in edges]}, {cell}_concat={concat}"
            for cell, edges in cells.items()
        )
        return f"Genotype({', '.join(parts)})"

    @classmethod
    def from_text(cls, text: str) -> DartsGenotype:
        """Reads the text form.

        Raises:
          ValueError: if the text is anything else than one such call with literal arguments.
        """
        fields = call_fields(
            text, "Genotype", ("normal", "normal_concat", "reduce", "reduce_concat")
        )
        for cell in ("normal", "reduce"):
            concat = fields[f"{cell}_concat"]
            integers = isinstance(concat, list) and all(type(node) is int for node in concat)
            if not integers or concat != list(range(2, 2 + len(NODES))):
                raise ValueError(
                    f"{cell}_concat must be range(2, {2 + len(NODES)}): this search space "
                    "concatenates every intermediate node"
                )
        return cls(normal=fields["normal"], reduce=fields["reduce"])

    def evaluated(self) -> DartsGenotype:
        """The pair of cells itself."""
        return self

    def canonical(self) -> DartsGenotype:
        """The pair of cells with the intermediate nodes of each in the order of least edges.

        The order permutes the channels of a cell's output, which the convolutions and the head that
        read it absorb. All nodes are joined to the output, so that nothing is dropped.
        """
        return DartsGenotype(_in_least_order(self.normal), _in_least_order(self.reduce))

    def isomorphism_key(self) -> str:
        """The text form: cells are told apart as they are written."""
        return self.to_text()

    def record(self) -> dict[str, Any]:
        """No further entries."""
        return {}

    def graphs(self) -> tuple[CellGraph, ...]:
        """The normal and the reduction cell; nodes 2 to 5 bear the numbers 0 to 3."""
        return tuple(self._graph(cell) for cell in CELLS)

    def _graph(self, cell: str) -> CellGraph:
        output = NODES[-1] + 1
        nodes = (
            CellNode("c_{k-2}", "input"),
            CellNode("c_{k-1}", "input"),
            *(CellNode(str(node - 2), choice=f"{cell} inputs of {node}") for node in NODES),
            CellNode("c_{k}", "output"),
        )
        edges = (
            CellEdge(edge.node, node, edge.op, f"{cell} {edge.node}->{node}")
            for node, edge in _edges_by_node(getattr(self, cell))
        )
        joined = (CellEdge(node, output, role="output") for node in NODES)
        title = "reduction" if cell == "reduce" else cell
        return CellGraph(f"{title} cell", nodes, (*edges, *joined))

    def network(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        init_channels: int,
        num_cells: int,
        stem: Stem = "cifar",
        auxiliary: bool = False,
    ) -> nn.Module:
        """The network that DARTS trains.

        Scale and shift in the normalization, and none of it behind pools. With `auxiliary` it has
        a second head; see `DartsNetwork`.

        Raises:
          ValueError: if the stem takes more channels, or there is no such stem.
        """
        if stem not in STEMS:
            raise ValueError(f"stem must be one of: {', '.join(STEMS)}; got {stem!r}")
        if stem == "imagenet" and init_channels < 2:  # the first convolution has half of them
            raise ValueError(
                f"init_channels must be at least 2 with stem 'imagenet', got {init_channels}"
            )
        layers = LayerSpec.of(spec, affine=True)
        return DartsNetwork(
            num_classes,
            init_channels,
            num_cells,
            layers,
            self,
            stem_form=stem,
            auxiliary=auxiliary,
        )


def _in_least_order(edges: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """The least cell, by nodes read and ops, over all orders in which nodes read earlier ones."""
    cells = []
    for order in itertools.permutations(NODES):
        names = dict(zip((0, 1, *order), range(len(NODES) + 2), strict=True))
        pairs = [edges[2 * (node - 2) : 2 * (node - 2) + 2] for node in order]
        cell = [sorted((names[edge.node], edge.op) for edge in pair) for pair in pairs]
        if all(pair[-1][0] < node for node, pair in zip(NODES, cell, strict=True)):
            cells.append(cell)
    return tuple(Edge(op, node) for pair in min(cells) for node, op in pair)


_SETTINGS = {
    "steps": 100,
    "batch_size": 64,
    "penalty": 2.0,
    "redraw": False,
    "derivative": "forward",
    "ops": DARTS_OPS[1:],
}
"""The paper's (section 6): T = 100, b = 64, mu = 2, nu = 100 (fixed) or initially 500 (adaptive),
one theta_0. Its DARTS space is called reduced; that this means without `none` is our reading. The
derivative is the one that needs less memory."""


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

    genotype: ClassVar[type[DartsGenotype]] = DartsGenotype
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        "nasi-ada": {**_SETTINGS, "constraint": 500.0},
        "nasi-fix": {**_SETTINGS, "constraint": 100.0},
    }

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
        spec: NetworkSpec = NetworkSpec(),
        *,
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        layers = LayerSpec.of(spec, affine=False)
        return DartsSupernet(
            num_classes, self.init_channels, self.num_cells, layers, self.ops, one_hot
        )

    def network(
        self,
        genotype: DartsGenotype,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        form: Literal["search", "evaluation"] = "evaluation",
    ) -> nn.Module:
        """One genotype's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters after `inherit`. Form `evaluation` is `DartsGenotype.network`.
        """
        if form == "evaluation":
            return genotype.network(
                num_classes, spec, init_channels=self.init_channels, num_cells=self.num_cells
            )
        layers = LayerSpec.of(spec, affine=False)
        return DartsNetwork(
            num_classes, self.init_channels, self.num_cells, layers, genotype, pool_norm=True
        )

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network.

        The supernet keeps the cells of a stage stacked, and the edges of a cell; here each has
        its own entry.
        """
        stages = _stages(self.num_cells)
        return {
            collection: functools.reduce(_unstack, stages, layers)
            for collection, layers in variables.items()
        }


class _Stage(NamedTuple):
    """The cells of one image size. In all stages but the first the first is a reduction cell."""

    start: int
    length: int
    reduction: bool


def _stages(num_cells: int) -> tuple[_Stage, ...]:
    starts = (0, num_cells // 3, 2 * num_cells // 3, num_cells)
    return tuple(
        _Stage(start, end - start, reduction=start > 0) for start, end in itertools.pairwise(starts)
    )


def _unstack(layers: Mapping[str, Any], stage: _Stage) -> dict[str, Any]:
    """Unstacks the layers of a stage: an entry for each cell, and in it for each edge.

    Of a stack only what something reads: no edge of stride 1 leaves the inputs of a reduction
    cell, and the last cells have none after them that would read them.
    """
    flat = dict(layers)
    halving = flat.pop(f"halving_{stage.start}", {})
    stacks = flat.pop(f"stage_{stage.start}", {})

    def part(name: str, position: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[position], stacks.get(name, {}))

    for position in range(stage.length):
        index = stage.start + position
        cell = unstacked({"edges": part("edges", position)}, {"edges": _names(EDGES)})
        if stage.reduction and position == 0:
            cell |= unstacked({"edges": halving}, {"edges": _names(EDGES_OF_INPUTS)})
        flat[f"cell_{index}"] = cell
        if position >= 1:
            flat[f"second_{index}"] = part("second", position - 1)
        if position >= 2:
            flat[f"first_{index}"] = part("first", position - 2)
    return flat


def _edges_by_node(edges: tuple[Edge, ...]) -> list[tuple[int, Edge]]:
    return [(node, edges[2 * index + rank]) for index, node in enumerate(NODES) for rank in (0, 1)]


def _names(edges: Sequence[tuple[int, int]]) -> list[str]:
    return [_edge_name(*edge) for edge in edges]


def _edge_name(source: int, node: int) -> str:
    return f"edge_{source}_{node}"


class _Cell(nn.Module):
    """A cell of one genotype."""

    edges: tuple[Edge, ...]
    reduction: bool
    spec: LayerSpec
    pool_norm: bool

    @nn.compact
    def __call__(
        self, first: jax.Array, second: jax.Array, drop_path: DropPath | None
    ) -> jax.Array:
        states = {0: first, 1: second}
        for number, (node, edge) in enumerate(_edges_by_node(self.edges)):
            stride = 2 if self.reduction and edge.node < 2 else 1
            op = functools.partial(
                darts_op, edge.op, stride=stride, spec=self.spec, pool_norm=self.pool_norm
            )
            output = Scope(op, name=_edge_name(edge.node, node))(states[edge.node])
            if drop_path is not None and (edge.op != "skip_connect" or stride > 1):
                output = _dropped(output, _fold_in(drop_path, number))
            states[node] = states[node] + output if node in states else output
        return checkpoint_name(jnp.concatenate([states[node] for node in NODES], axis=-1), BLOCK)


def _dropped(output: jax.Array, drop_path: DropPath) -> jax.Array:
    """Drop path with inverted scaling: 0 for dropped examples, times `1 / kept` for the others."""
    kept = 1 - drop_path.rate
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, kept, (1, 1, 1)))(drop_path.keys)
    return output * jnp.where(keep, 1 / kept, 0).astype(output.dtype)


def _fold_in(drop_path: DropPath, number: int | jax.Array) -> DropPath:
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(drop_path.keys)
    return drop_path._replace(keys=keys)


class _NextCell(nn.Module):
    """A normal cell of one genotype, its inputs brought to its channels: a step of a scan."""

    genotype: DartsGenotype
    channels: int
    spec: LayerSpec
    pool_norm: bool

    layers: ClassVar[tuple[str, ...]] = ("first", "second", "cell")

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array],
        index: jax.Array,
        drop_path: DropPath | None,
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        before, last = carry
        first = ReluConvNorm(self.channels, 1, self.spec, name="first")(before)
        second = ReluConvNorm(self.channels, 1, self.spec, name="second")(last)
        cell = self.spec.of_cell(_Cell)(
            self.genotype.normal, False, self.spec, self.pool_norm, name="cell"
        )
        path = None if drop_path is None else _fold_in(drop_path, index)
        return (last, cell(first, second, path)), None


class _StageCell(nn.Module):
    """The edges of stride 1 of a cell, and what reads its output: one step of a scan over cells.

    A cell reads the outputs of the two before it, each through a layer of its own. Which cells
    those are, and so what shape these layers have, differs for the first cells of a stage. So
    what is carried are their outputs: those that this cell reads, and the first input of the
    next one; then what the nodes of this cell have been given already; then the outputs of the
    last two cells. The last cells thus have layers that nothing reads.
    """

    ops: tuple[str, ...]
    spec: LayerSpec
    one_hot: bool

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, ...], weights: jax.Array
    ) -> tuple[tuple[jax.Array, ...], None]:
        first, second, next_first, nodes, _, before = carry
        states = jnp.concatenate([first[None], second[None], nodes])
        states = _add_edges(
            states,
            EDGES,
            weights,
            self.ops,
            "edges",
            spec=self.spec,
            one_hot=self.one_hot,
            stride=1,
        )
        output = checkpoint_name(jnp.concatenate([states[node] for node in NODES], axis=-1), BLOCK)
        channels = first.shape[-1]
        next_second = ReluConvNorm(channels, 1, self.spec, name="second")(output)
        after_next = ReluConvNorm(channels, 1, self.spec, name="first")(output)
        blank = jnp.zeros_like(nodes)
        return (next_first, next_second, after_next, blank, before, output), None


def _add_edges(
    states: jax.Array,
    edges: tuple[tuple[int, int], ...],
    weights: jax.Array,
    ops: tuple[str, ...],
    name: str,
    *,
    spec: LayerSpec,
    one_hot: bool,
    stride: int,
    inputs: jax.Array | None = None,
) -> jax.Array:
    """`add_mixed_edges` of DARTS.

    Of the edges only the states are kept for the derivatives: what the operations leave on the
    way is many times as large.
    """

    def apply_ops(ops: Sequence[str], inputs: jax.Array) -> Iterator[jax.Array]:
        return (darts_op(op, inputs, stride=stride, spec=spec, pool_norm=True) for op in ops)

    together = functools.partial(darts_ops_together, stride=stride, spec=spec)
    return add_mixed_edges(
        states,
        edges,
        weights,
        ops=ops,
        apply_ops=apply_ops,
        name=name,
        inputs=inputs,
        remat=True,
        one_hot=one_hot,
        together=together if spec.together else None,
    )


class _Skeleton(nn.Module):
    """Stem, preprocessing, head: what the supernet and a network have in common."""

    num_classes: int
    init_channels: int
    num_cells: int
    spec: LayerSpec

    def stem(self, inputs: jax.Array) -> jax.Array:
        """What the first cell reads, twice."""
        stem = Conv(3 * self.init_channels, 3, self.spec, name="stem")(inputs)
        return checkpoint_name(self.spec.normalize("stem_norm")(stem), BLOCK)

    def first_input(
        self, index: int, inputs: jax.Array, channels: int, *, halve: bool
    ) -> jax.Array:
        """The first input of a cell, brought to its channels and to the size of the second."""
        name = f"first_{index}"
        if halve:
            return FactorizedReduce(channels, self.spec, name=name)(inputs)
        return ReluConvNorm(channels, 1, self.spec, name=name)(inputs)

    def preprocess(
        self, index: int, first: jax.Array, second: jax.Array, channels: int
    ) -> tuple[jax.Array, jax.Array]:
        """Both inputs of a cell, brought to its channels and to the size of the second one."""
        halve = first.shape[1] != second.shape[1]
        first = self.first_input(index, first, channels, halve=halve)
        return first, ReluConvNorm(channels, 1, self.spec, name=f"second_{index}")(second)

    def head(self, inputs: jax.Array) -> jax.Array:
        """The logits."""
        return Head(self.num_classes, self.spec, name="head")(inputs)


class DartsSupernet(_Skeleton):
    """The one-shot network. A stage is a scan over its cells, and a cell one over its edges.

    So that a reduction cell is a step of that scan as well, its edges of stride 2 come before it,
    as a scan of their own; in the step the edges that leave its inputs then have weight 0.
    """

    ops: tuple[str, ...] = DARTS_OPS
    one_hot: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights` has the structure of alpha."""
        before = last = self.stem(inputs)
        for number, stage in enumerate(_stages(self.num_cells)):
            channels = self.init_channels * 2**number
            before, last = self._stage(stage, before, last, channels, weights)
        return self.head(last)

    def _stage(
        self, stage: _Stage, before: jax.Array, last: jax.Array, channels: int, weights: Alpha
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs of the last two cells of a stage, from those of the two before it."""
        first, second = self.preprocess(stage.start, before, last, channels)
        of_cells = jnp.broadcast_to(weights["normal"], (stage.length, len(EDGES), len(self.ops)))
        batch, height, width, _ = first.shape
        if stage.reduction:
            height, width = height // 2, width // 2
            rows = jnp.array([EDGES.index(edge) for edge in EDGES_OF_INPUTS])
            of_inputs, of_others = weights["reduce"][rows], weights["reduce"].at[rows].set(0)
            of_cells = jnp.concatenate([of_others[None], of_cells[1:]])
        nodes = jnp.zeros((len(NODES), batch, height, width, channels), first.dtype)
        if stage.reduction:
            nodes = _add_edges(
                nodes,
                tuple((source, node - NODES[0]) for source, node in EDGES_OF_INPUTS),
                of_inputs,
                self.ops,
                f"halving_{stage.start}",
                spec=self.spec,
                one_hot=self.one_hot,
                stride=2,
                inputs=jnp.stack([first, second]),
            )
            first = second = jnp.zeros_like(nodes[0])
        next_first = jnp.zeros_like(first)
        if stage.length > 1:
            next_first = self.first_input(stage.start + 1, last, channels, halve=stage.reduction)
        cells = nn.scan(
            _StageCell,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=stage.length,
        )(self.ops, self.spec, self.one_hot, name=f"stage_{stage.start}")
        blank = jnp.zeros((batch, height, width, len(NODES) * channels), first.dtype)
        carry, _ = cells((first, second, next_first, nodes, blank, blank), of_cells)
        *_, last_but_one, now = carry
        return (last_but_one if stage.length > 1 else last), now


class _AuxiliaryHead(nn.Module):
    """The second head, which is only trained: pools, two convolutions, a dense layer.

    The pools are means over the four windows of 5x5 in the corners: over images of 8x8, as from
    CIFAR, and of 7x7, as from ImageNet, those of a pool of stride 3 and of stride 2. The second
    convolution, of 2x2, sees all of them.
    """

    num_classes: int
    spec: LayerSpec
    stem_form: Stem

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        active = nn.relu(inputs)
        sides = (slice(None, 5), slice(-5, None))
        corners = [jnp.mean(active[:, row, side], axis=(1, 2)) for row in sides for side in sides]
        pooled = jnp.stack(corners, axis=1).reshape(len(inputs), 2, 2, -1)
        narrow = Conv(128, 1, self.spec, name="conv_0")(pooled)
        narrow = nn.relu(self.spec.normalize("norm_0")(narrow))
        wide = Conv(768, 1, self.spec, name="conv_1")(narrow.reshape(len(inputs), 1, 1, -1))
        if self.stem_form == "cifar":
            wide = self.spec.normalize("norm_1")(wide)
        return Head(self.num_classes, self.spec, name="head")(nn.relu(wide))


class DartsNetwork(_Skeleton):
    """The network of one genotype.

    With `auxiliary` it has a second head behind the second reduction cell. Its logits are sown as
    `logits` in the collection `auxiliary`, and computed only where that is mutable.
    """

    genotype: DartsGenotype = None  # type: ignore[assignment]
    pool_norm: bool = False
    stem_form: Stem = "cifar"
    auxiliary: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, drop_path: DropPath | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to logits.

        Args:
          inputs: `[B, H, W, C]`.
          drop_path: by which operations of the cells, other than the identity, are left out for
            some examples (Larsson et al., 2017); none is if not given.
        """
        if self.stem_form == "cifar":
            first = second = self.stem(inputs)
        else:
            first, second = self._imagenet_stem(inputs)
        for number, stage in enumerate(_stages(self.num_cells)):
            channels = self.init_channels * 2**number
            cells = range(stage.start, stage.start + stage.length)
            # The first two read what has other channels or another size than what the rest read.
            scans = self.spec.scan_cells and len(cells[2:]) > 1 and not self.is_initializing()
            for index in cells[:2] if scans else cells:
                reduction = stage.reduction and index == stage.start
                edges = self.genotype.reduce if reduction else self.genotype.normal
                read = self.preprocess(index, first, second, channels)
                cell = self.spec.of_cell(_Cell)(
                    edges, reduction, self.spec, self.pool_norm, name=f"cell_{index}"
                )
                path = None if drop_path is None else _fold_in(drop_path, index)
                first, second = second, cell(*read, path)
                if index == 2 * self.num_cells // 3 and self.auxiliary:
                    self._sow_auxiliary(second)
            if scans:
                first, second = self._scanned(cells[2:], first, second, channels, drop_path)
        return self.head(second)

    def _scanned(
        self,
        indices: range,
        first: jax.Array,
        second: jax.Array,
        channels: int,
        drop_path: DropPath | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Normal cells that read the two before them, of the same shape, as a scan over them.

        The variables stay those of each cell; inside they are stacked.
        """
        layers = {kind: [f"{kind}_{index}" for index in indices] for kind in _NextCell.layers}

        def joined(variables: Any) -> Any:
            return {
                kind: stacked([variables[name] for name in names])
                for kind, names in layers.items()
                if names[0] in variables  # a cell of identities has none
            }

        def apart(stacks: Any) -> dict[str, Any]:
            return unstacked(stacks, {kind: layers[kind] for kind in stacks})

        def cells(network: DartsNetwork, carry: Any) -> Any:
            del network  # which is bound
            step = nn.scan(
                _NextCell,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast),
            )
            return step(self.genotype, channels, self.spec, self.pool_norm, name="cells")(
                carry, jnp.array(indices), drop_path
            )[0]

        mapped = nn.map_variables(
            cells,
            ("params", "batch_stats"),
            trans_in_fn=lambda given: {name: {"cells": joined(given[name])} for name in given},
            trans_out_fn=lambda given: {name: apart(given[name]["cells"]) for name in given},
            mutable=True,
        )
        carry: tuple[jax.Array, jax.Array] = mapped(self, (first, second))
        return carry

    def _imagenet_stem(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images of a quarter and of an eighth of the size."""
        states = inputs
        outputs = []
        for index, channels in enumerate((self.init_channels // 2, *[self.init_channels] * 2)):
            conv = Conv(channels, 3, self.spec, stride=2, name=f"stem_{index}")
            states = self.spec.normalize(f"stem_norm_{index}")(conv(states))
            outputs.append(checkpoint_name(states, BLOCK))
            states = nn.relu(states)
        return outputs[1], outputs[2]

    def _sow_auxiliary(self, inputs: jax.Array) -> None:
        if self.is_mutable_collection("auxiliary") or self.is_initializing():
            head = _AuxiliaryHead(
                self.num_classes, self.spec, self.stem_form, name="auxiliary_head"
            )
            self.sow("auxiliary", "logits", head(inputs))
