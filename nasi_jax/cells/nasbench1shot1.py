"""NAS-Bench-1Shot1 (Zela et al., 2020): three one-shot spaces inside NAS-Bench-101."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import NASBENCH101_OPS, Nasbench101Genotype
from nasi_jax.cells.ops import (
    ConvNormRelu,
    Head,
    LayerSpec,
    ReluConvNorm,
    halving_max_pool,
    max_pool,
)
from nasi_jax.types import Alpha, Choice, Initializer, NormMode

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
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        return self._one_shot(
            num_classes,
            (self.ops,) * self.num_vertices,
            tuple(tuple(range(vertex)) for vertex in range(1, self.num_vertices + 2)),
            LayerSpec(norm, affine=True, init=init, param_dtype=param_dtype),
        )

    def network(
        self,
        genotype: Nasbench101Genotype,
        num_classes: int,
        *,
        form: Literal["search", "evaluation"] = "evaluation",
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
    ) -> nn.Module:
        """One cell's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters. Form `evaluation` is the network that NAS-Bench-101 trained: the pruned cell,
        3 stages of 3 cells from 128 channels on, whatever this space's fields say.
        """
        spec = LayerSpec(norm, affine=True, init=init, param_dtype=param_dtype)
        if form == "evaluation":
            return Nasbench101Network(num_classes, genotype.prune(), spec)
        self.one_hot(genotype)
        ops = tuple((op,) for op in genotype.ops[1:-1])
        parents = tuple(genotype.parents(vertex) for vertex in range(1, self.num_vertices + 2))
        return self._one_shot(num_classes, ops, parents, spec)

    def _one_shot(
        self,
        num_classes: int,
        ops: tuple[tuple[str, ...], ...],
        parents: tuple[tuple[int, ...], ...],
        spec: LayerSpec,
    ) -> OneShotNetwork:
        return OneShotNetwork(num_classes, self.init_channels, self.num_cells, ops, parents, spec)


def _op(name: str, inputs: jax.Array, features: int, spec: LayerSpec, label: str) -> jax.Array:
    if name == "maxpool3x3":
        return max_pool(inputs)
    return ConvNormRelu(features, int(name[4]), spec, name=label)(inputs)


class _OneShotCell(nn.Module):
    ops: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha | None) -> jax.Array:
        num_vertices = len(self.ops)
        states: dict[int, jax.Array] = {}
        for vertex in range(1, num_vertices + 1):
            read = [
                self._weight(weights, f"inputs_{vertex}", 0, source)
                * (self._projected(inputs, vertex) if source == 0 else states[source])
                for source in self.parents[vertex - 1]
            ]
            total = sum(read[1:], start=read[0])
            mixed = [
                self._weight(weights, "ops", vertex - 1, column)
                * _op(op, total, self.features, self.spec, f"vertex_{vertex}_{op}")
                for column, op in enumerate(self.ops[vertex - 1])
            ]
            states[vertex] = sum(mixed[1:], start=mixed[0])
        joined = jnp.concatenate(
            [
                self._weight(weights, "inputs_output", 0, vertex) * state
                if vertex in self.parents[-1]
                else jnp.zeros_like(state)
                for vertex, state in states.items()
            ],
            axis=-1,
        )
        if 0 in self.parents[-1]:
            projected = self._projected(inputs, "output", num_vertices * self.features)
            joined += self._weight(weights, "inputs_output", 0, 0) * projected
        return joined

    @staticmethod
    def _weight(weights: Alpha | None, name: str, row: int, column: int) -> jax.Array | int:
        return 1 if weights is None or name not in weights else weights[name][row, column]

    def _projected(self, inputs: jax.Array, vertex: int | str, features: int = 0) -> jax.Array:
        name = f"projection_{vertex}"
        return ConvNormRelu(features or self.features, 1, self.spec, name=name)(inputs)


class OneShotNetwork(nn.Module):
    """Supernet and network in one: `ops` and `parents` name what each vertex has."""

    num_classes: int
    init_channels: int
    num_cells: int
    ops: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, weights: Alpha | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to logits; `weights` as alpha, or absent for a network."""
        states = ConvNormRelu(self.init_channels, 3, self.spec, name="stem")(inputs)
        features = self.init_channels
        for stage in range(3):
            if stage > 0:
                states = halving_max_pool(states)
                features *= 2
            for index in range(self.num_cells):
                name = f"cell_{stage}_{index}"
                cell = _OneShotCell(self.ops, self.parents, features, self.spec, name=name)
                states = cell(states, weights)
        states = ReluConvNorm(features, 1, self.spec, name="last")(states)
        return Head(self.num_classes, self.spec, name="head")(states)


class _Nasbench101Cell(nn.Module):
    genotype: Nasbench101Genotype
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        genotype = self.genotype
        last = len(genotype.ops) - 1
        channels = _vertex_channels(genotype, self.features)
        states: dict[int, jax.Array] = {}
        for vertex in range(1, last):
            width = channels[vertex]
            read = [
                self._projected(inputs, vertex, width)
                if source == 0
                else states[source][..., :width]
                for source in genotype.parents(vertex)
            ]
            total = sum(read[1:], start=read[0])
            op = genotype.ops[vertex]
            states[vertex] = _op(op, total, width, self.spec, f"vertex_{vertex}_{op}")
        joined = [states[vertex] for vertex in genotype.parents(last) if vertex > 0]
        parts = [jnp.concatenate(joined, axis=-1)] if joined else []
        if 0 in genotype.parents(last):
            parts.append(self._projected(inputs, last, self.features))
        return sum(parts[1:], start=parts[0])

    def _projected(self, inputs: jax.Array, vertex: int, features: int) -> jax.Array:
        return ConvNormRelu(features, 1, self.spec, name=f"projection_{vertex}")(inputs)


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
                states = _Nasbench101Cell(self.genotype, features, self.spec, name=name)(states)
        return Head(self.num_classes, self.spec, name="head")(states)
