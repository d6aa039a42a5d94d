"""NAS-Bench-1Shot1 (Zela et al., 2020): three one-shot spaces inside NAS-Bench-101."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.choice import indicator, random_alpha, selected
from nasi_jax.cells.genotype import evaluation_network
from nasi_jax.cells.layers.conv import widened
from nasi_jax.cells.layers.mixed import chosen_op, mixed_op, unstacked
from nasi_jax.cells.layers.ops import (
    ConvNormRelu,
    Head,
    LayerSpec,
    ReluConvNorm,
    halving_max_pool,
)
from nasi_jax.cells.nasbench101 import (
    NASBENCH101_OPS,
    Nasbench101Genotype,
    Vertex,
    vertex_op,
)
from nasi_jax.types import BLOCK, Alpha, Choice, NetworkSpec

NUM_PARENTS = {1: (1, 2, 2, 2, 2), 2: (1, 1, 2, 2, 3), 3: (1, 1, 1, 2, 2, 2)}
"""For each space how many vertices each intermediate vertex reads, and last the output."""


_SETTINGS = {"penalty": 1.0, "redraw": False, "derivative": "reverse", "relaxation": "hard"}
"""The paper's mu and its one theta_0. That samples are hard is our finding: of soft ones the
gradient prefers pools (docs/relaxation.md)."""


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

    genotype: ClassVar[type[Nasbench101Genotype]] = Nasbench101Genotype
    settings: ClassVar[dict[str, dict[str, Any]]] = {
        # Chosen on validation accuracies on CIFAR-10, for a small supernet; see
        # benchmarks/README.md. nu is where the paper has it, within the range of x.
        "nasi-fix": {
            **_SETTINGS,
            "steps": 200,
            "batch_size": 16,
            "constraint": 10.0,
            "constraint_rule": "quantile",
            "constraint_quantile": 0.4,
            "constraint_samples": 32,
            "init_channels": 8,
            "num_cells": 1,
        },
        # The paper's: one epoch, by our reading of half of CIFAR-10, on the whole supernet.
        "nasi-ada": {**_SETTINGS, "steps": 390, "batch_size": 64, "constraint": 1000.0},
    }

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
        spec: NetworkSpec = NetworkSpec(),
        *,
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`."""
        return self._one_shot(num_classes, LayerSpec.of(spec, affine=True), one_hot=one_hot)

    def network(
        self,
        genotype: Nasbench101Genotype,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        form: Literal["search", "evaluation"] = "evaluation",
    ) -> nn.Module:
        """One cell's network: `inputs -> logits [B, num_classes]`.

        Form `search` is what the supernet is with one-hot weights, and takes the supernet's
        parameters after `inherit`. Form `evaluation` is the network that NAS-Bench-101 trained:
        the pruned cell, 3 stages of 3 cells from 128 channels on, whatever this space's fields
        say.
        """
        if form == "evaluation":
            return evaluation_network(genotype, num_classes, spec)
        self.one_hot(genotype)
        return self._one_shot(num_classes, LayerSpec.of(spec, affine=True), genotype=genotype)

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

    def apply_ops(self, ops: Sequence[str], inputs: jax.Array) -> Iterator[jax.Array]:
        """The outputs of the operations of these names."""
        return (vertex_op(op, inputs, features=self.features, spec=self.spec) for op in ops)


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
            layer = Vertex(
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
        stem = ConvNormRelu(self.init_channels, 3, self.spec, name="stem")
        states = checkpoint_name(stem(inputs), BLOCK)
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
                states = checkpoint_name(states, BLOCK)
        states = ReluConvNorm(features, 1, self.spec, name="last")(states)
        return Head(self.num_classes, self.spec, name="head")(states)
