"""NAS-Bench-1Shot1 (Zela et al., 2020): three one-shot spaces inside NAS-Bench-101."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import NASBENCH101_OPS, Nasbench101Genotype
from nasi_jax.cells.mixed import chosen_op, mixed_op, unstacked
from nasi_jax.cells.ops import (
    ConvNormRelu,
    Head,
    LayerSpec,
    ReluConvNorm,
    halving_max_pool,
    max_pool,
)
from nasi_jax.conv import widened
from nasi_jax.types import Alpha, Choice, Depthwise, Initializer, NormMode

NUM_PARENTS = {1: (1, 2, 2, 2, 2), 2: (1, 1, 2, 2, 3), 3: (1, 1, 1, 2, 2, 2)}
"""For each space how many vertices each intermediate vertex reads, and last the output."""


@dataclass(frozen=True)
class Nasbench1Shot1:
    """One of the three search spaces.

    Vertex 0 is the cell's input, the last one its output. Alpha has `ops` `[V, O]`, a row an
    intermediate vertex, and a single row `inputs_v` `[1, v]` for each vertex v that does not
    read everything before it (`inputs_output` for the output).

    A one-shot cell (Zela et al.) sums, for each vertex, the weighted vertices before it and a
    projection of the cell's input, mixes the operations on that sum, and joins the weighted
    vertices side by side, to which the weighted projection of the input is added.

    The space's two smaller forms have 4 intermediate vertices, so 6 in all; that the benchmark
    has room for a seventh changes neither network nor hash.

    Attributes:
      space: 1, 2 or 3.
      ops: the operations on offer.
      init_channels: channels of a vertex in the first stage of the one-shot network.
      num_cells: cells a stage.
    """

    space: Literal[1, 2, 3] = 1
    ops: tuple[str, ...] = NASBENCH101_OPS
    init_channels: int = 16
    num_cells: int = 3

    @property
    def name(self) -> str:
        """The registered name."""
        return f"nasbench1shot1-{self.space}"

    @property
    def num_vertices(self) -> int:
        """Intermediate vertices."""
        return len(NUM_PARENTS[self.space]) - 1

    def _parents(self) -> dict[str, tuple[int, int]]:
        """For each entry `inputs_v` of alpha, how many vertices there are to read, and are read."""
        labels = [*map(str, range(1, self.num_vertices + 1)), "output"]
        counts = zip(labels, NUM_PARENTS[self.space], strict=True)
        return {
            f"inputs_{label}": (vertex, count)
            for vertex, (label, count) in enumerate(counts, start=1)
            if count < vertex
        }

    def init_alpha(self) -> Alpha:
        """Zeros: alpha_0 of Algorithm 1."""
        inputs = {name: jnp.zeros((1, options)) for name, (options, _) in self._parents().items()}
        return {"ops": jnp.zeros((self.num_vertices, len(self.ops)))} | inputs

    def num_selected(self) -> dict[str, int]:
        """One operation a vertex; as many parents as the space prescribes."""
        return {"ops": 1} | {name: count for name, (_, count) in self._parents().items()}

    def labels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Rows of `ops` are vertices; columns of `inputs_v` are the vertices to read."""
        vertices = tuple(map(str, range(1, self.num_vertices + 1)))
        inputs = {
            name: ((name.removeprefix("inputs_"),), tuple(map(str, range(options))))
            for name, (options, _) in self._parents().items()
        }
        return {"ops": (vertices, self.ops)} | inputs

    def choices(self, alpha: Alpha) -> tuple[Choice, ...]:
        """The operation of each vertex, then the parents of each that has a choice."""
        labels, selected = self.labels(), self.num_selected()
        return tuple(
            Choice(f"{kind} of {row}", columns, scores, selected[name])
            for name, (rows, columns) in labels.items()
            for row, scores in zip(rows, jax.nn.log_softmax(alpha[name]), strict=True)
            for kind in ["op" if name == "ops" else "inputs"]
        )

    def discretize(self, alpha: Alpha) -> Nasbench101Genotype:
        """The best operation of each vertex and its best parents; `prune()` it to look it up."""
        choices = self.choices(alpha)
        ops = tuple(choice.options[selected(choice)[0]] for choice in choices[: self.num_vertices])
        parents = {choice.name: selected(choice) for choice in choices[self.num_vertices :]}
        return self._genotype(ops, parents)

    def _genotype(
        self, ops: tuple[str, ...], parents: dict[str, tuple[int, ...]]
    ) -> Nasbench101Genotype:
        size = self.num_vertices + 2
        matrix = np.zeros((size, size), int)
        for vertex in range(1, size):
            label = "output" if vertex == size - 1 else vertex
            read = parents.get(f"inputs of {label}", tuple(range(vertex)))
            matrix[list(read), vertex] = 1
        return Nasbench101Genotype(tuple(map(tuple, matrix.tolist())), ("input", *ops, "output"))

    def one_hot(self, genotype: Nasbench101Genotype) -> Alpha:
        """Weight 1 for each vertex's operation and for each vertex that it reads.

        Raises:
          ValueError: if the (unpruned) cell is not in this space.
        """
        positions = [(row, self.ops.index(op)) for row, op in enumerate(genotype.ops[1:-1])]
        size = self.num_vertices + 2
        counts = tuple(len(genotype.parents(vertex)) for vertex in range(1, len(genotype.ops)))
        if len(genotype.ops) != size or counts != NUM_PARENTS[self.space]:
            raise ValueError(
                f"not a cell of {self.name}: its vertices read {NUM_PARENTS[self.space]} others, "
                f"the cell's {counts}"
            )
        weights = {"ops": indicator((self.num_vertices, len(self.ops)), positions)}
        for name, (options, _) in self._parents().items():
            read = [(0, source) for source in genotype.parents(options)]
            weights[name] = indicator((1, options), read)
        return weights

    def sample(self, key: jax.Array) -> Nasbench101Genotype:
        """A cell drawn uniformly over the choices."""
        return self.discretize(random_alpha(key, self.init_alpha()))

    def genotypes(self) -> Iterator[Nasbench101Genotype]:
        """Every combination of choices: 14,580 / 29,160 / 1,312,200, before any is isomorphic."""
        subsets = [
            [(name.replace("_", " of "), read) for read in itertools.combinations(range(n), k)]
            for name, (n, k) in self._parents().items()
        ]
        for ops in itertools.product(self.ops, repeat=self.num_vertices):
            for parents in itertools.product(*subsets):
                yield self._genotype(ops, dict(parents))

    def supernet(
        self,
        num_classes: int,
        *,
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        spec = LayerSpec(norm, True, init, param_dtype, dtype, depthwise)
        return self._one_shot(num_classes, spec, one_hot=one_hot)

    def network(
        self,
        genotype: Nasbench101Genotype,
        num_classes: int,
        *,
        form: Literal["search", "evaluation"] = "evaluation",
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
        norm_group: int | None = None,
        remat: bool = False,
    ) -> nn.Module:
        """One cell's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters after `inherit`. Form `evaluation` is the network that NAS-Bench-101 trained:
        the pruned cell, 3 stages of 3 cells from 128 channels on, whatever this space's fields
        say.
        """
        spec = LayerSpec(norm, True, init, param_dtype, dtype, depthwise, norm_group, remat)
        if form == "evaluation":
            return Nasbench101Network(num_classes, genotype.prune(), spec)
        self.one_hot(genotype)
        return self._one_shot(num_classes, spec, genotype=genotype)

    def _one_shot(self, num_classes: int, spec: LayerSpec, **settings: Any) -> OneShotNetwork:
        return OneShotNetwork(
            num_classes,
            self.init_channels,
            self.num_cells,
            spec,
            self.ops,
            self.num_vertices,
            **settings,
        )

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network.

        The supernet keeps the vertices of a cell stacked; here each vertex has its own entry.
        """
        names = {"vertices": [f"vertex_{row + 1}" for row in range(self.num_vertices)]}
        return {
            collection: {
                layer: unstacked(values, names) if layer.startswith("cell_") else values
                for layer, values in layers.items()
            }
            for collection, layers in variables.items()
        }


def _apply_op(name: str, inputs: jax.Array, *, features: int, spec: LayerSpec) -> jax.Array:
    if name == "maxpool3x3":
        return max_pool(inputs)
    return ConvNormRelu(features, int(name[4]), spec, name=name)(inputs)


class _MixedVertex(nn.Module):
    """Fills in one vertex of a one-shot cell: one step of a scan over the vertices."""

    ops: tuple[str, ...]
    features: int
    spec: LayerSpec
    one_hot: bool

    @nn.compact
    def __call__(
        self, states: jax.Array, inputs: jax.Array, vertex: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, None]:
        index, parents, weights = vertex
        projected = ConvNormRelu(self.features, 1, self.spec, name="projection")(inputs)
        others = jnp.tensordot(parents[1:], widened(states), axes=1)
        total = (parents[0] * widened(projected) + others).astype(projected.dtype)
        mix = chosen_op if self.one_hot else mixed_op
        return states.at[index].set(mix(self, self.ops, weights, total, total.shape)), None

    def apply_op(self, op: str, inputs: jax.Array) -> jax.Array:
        """The operation of that name."""
        return _apply_op(op, inputs, features=self.features, spec=self.spec)


class _OneShotCell(nn.Module):
    """A cell with every operation on every vertex, as a scan over the vertices."""

    ops: tuple[str, ...]
    num_vertices: int
    features: int
    spec: LayerSpec
    one_hot: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha) -> jax.Array:
        batch, height, width, _ = inputs.shape
        states = jnp.zeros((self.num_vertices, batch, height, width, self.features), inputs.dtype)
        parents = jnp.stack(
            [self._parents(weights, vertex) for vertex in range(1, self.num_vertices + 1)]
        )
        scan = nn.scan(
            _MixedVertex,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=self.num_vertices,
        )(self.ops, self.features, self.spec, self.one_hot, name="vertices")
        states, _ = scan(states, inputs, (jnp.arange(self.num_vertices), parents, weights["ops"]))
        read = weights["inputs_output"][0]
        joined = read[1:, None, None, None, None] * widened(states)
        projection = ConvNormRelu(
            self.num_vertices * self.features, 1, self.spec, name="output_projection"
        )
        outputs = jnp.concatenate(list(joined), axis=-1) + read[0] * widened(projection(inputs))
        return outputs.astype(inputs.dtype)

    def _parents(self, weights: Alpha, vertex: int) -> jax.Array:
        """Weights `[num_vertices + 1]` of what a vertex reads; without a choice it reads all."""
        all_before = jnp.ones((1, vertex), weights["ops"].dtype)
        before = weights.get(f"inputs_{vertex}", all_before)[0]
        return jnp.pad(before, (0, self.num_vertices + 1 - vertex))


class _Vertex(nn.Module):
    """One vertex of a genotype: the sum of what it reads, then its operation."""

    op: str
    parents: tuple[int, ...]
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, states: dict[int, jax.Array]) -> jax.Array:
        read = [
            ConvNormRelu(self.features, 1, self.spec, name="projection")(inputs)
            if source == 0
            else states[source][..., : self.features]
            for source in self.parents
        ]
        total = functools.reduce(jnp.add, read)
        return _apply_op(self.op, total, features=self.features, spec=self.spec)


class _Cell(nn.Module):
    """A cell of one genotype in the one-shot network, unpruned."""

    genotype: Nasbench101Genotype
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        output = len(self.genotype.ops) - 1
        states: dict[int, jax.Array] = {}
        for vertex in range(1, output):
            parents = self.genotype.parents(vertex)
            layer = _Vertex(
                self.genotype.ops[vertex],
                parents,
                self.features,
                self.spec,
                name=f"vertex_{vertex}",
            )
            states[vertex] = layer(inputs, states)
        read = self.genotype.parents(output)
        joined = jnp.concatenate(
            [states[vertex] if vertex in read else 0 * states[vertex] for vertex in states],
            axis=-1,
        )
        if 0 in read:
            features = len(states) * self.features
            joined += ConvNormRelu(features, 1, self.spec, name="output_projection")(inputs)
        return joined


class OneShotNetwork(nn.Module):
    """The network of a genotype, or the supernet of the operations if there is none."""

    num_classes: int
    init_channels: int
    num_cells: int
    spec: LayerSpec
    ops: tuple[str, ...]
    num_vertices: int
    genotype: Nasbench101Genotype | None = None
    one_hot: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights` as alpha for the supernet, else absent."""
        states = ConvNormRelu(self.init_channels, 3, self.spec, name="stem")(inputs)
        features = self.init_channels
        for stage in range(3):
            if stage > 0:
                states = halving_max_pool(states)
                features *= 2
            for index in range(self.num_cells):
                name = f"cell_{stage}_{index}"
                if weights is not None:
                    cell = _OneShotCell(
                        self.ops, self.num_vertices, features, self.spec, self.one_hot, name=name
                    )
                    states = cell(states, weights)
                else:
                    genotype = cast(Nasbench101Genotype, self.genotype)
                    cell = self.spec.of_cell(_Cell)(genotype, features, self.spec, name=name)
                    states = cell(states)
        states = ReluConvNorm(features, 1, self.spec, name="last")(states)
        return Head(self.num_classes, self.spec, name="head")(states)


class _Nasbench101Cell(nn.Module):
    genotype: Nasbench101Genotype
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        genotype = self.genotype
        output = len(genotype.ops) - 1
        channels = _vertex_channels(genotype, self.features)
        states: dict[int, jax.Array] = {}
        for vertex in range(1, output):
            parents = genotype.parents(vertex)
            layer = _Vertex(
                genotype.ops[vertex], parents, channels[vertex], self.spec, name=f"vertex_{vertex}"
            )
            states[vertex] = layer(inputs, states)
        read = genotype.parents(output)
        joined = [states[vertex] for vertex in read if vertex > 0]
        parts = [jnp.concatenate(joined, axis=-1)] if joined else []
        if 0 in read:
            projection = ConvNormRelu(self.features, 1, self.spec, name="output_projection")
            parts.append(projection(inputs))
        return functools.reduce(jnp.add, parts)


def _vertex_channels(genotype: Nasbench101Genotype, features: int) -> dict[int, int]:
    """Channels of each intermediate vertex (Ying et al., 2019).

    Those that the output reads share its channels, the first ones taking what is left over;
    every other has as many as the widest vertex that reads it.
    """
    last = len(genotype.ops) - 1
    joined = [vertex for vertex in genotype.parents(last) if vertex > 0]
    channels = {
        vertex: features // len(joined) + (rank < features % len(joined))
        for rank, vertex in enumerate(joined)
    }
    for vertex in reversed(range(1, last)):
        if vertex not in channels:
            channels[vertex] = max(
                channels[target]
                for target in range(vertex + 1, last)
                if genotype.matrix[vertex][target]
            )
    return channels


class Nasbench101Network(nn.Module):
    """The network that NAS-Bench-101 trained for a pruned cell."""

    num_classes: int
    genotype: Nasbench101Genotype
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to logits."""
        features = 128
        states = ConvNormRelu(features, 3, self.spec, name="stem")(inputs)
        for stage in range(3):
            if stage > 0:
                states = halving_max_pool(states)
                features *= 2
            for index in range(3):
                name = f"cell_{stage}_{index}"
                cell = self.spec.of_cell(_Nasbench101Cell)
                states = cell(self.genotype, features, self.spec, name=name)(states)
        return Head(self.num_classes, self.spec, name="head")(states)
