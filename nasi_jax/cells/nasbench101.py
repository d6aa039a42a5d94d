"""NAS-Bench-101 (Ying et al., 2019): cells of up to 7 vertices, and the networks it trained."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells.genotype import call_fields, check_op, genotype_to_dict, on_path, shown
from nasi_jax.cells.layers.conv import max_pool
from nasi_jax.cells.layers.ops import ConvNormRelu, Head, LayerSpec, halving_max_pool
from nasi_jax.types import BLOCK, CellEdge, CellGraph, CellNode, NetworkSpec, Sizes

NASBENCH101_OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
"""The three operations of NAS-Bench-101 (Ying et al., 2019), in the order of its hash."""


@dataclass(frozen=True)
class Nasbench101Genotype:
    """A NAS-Bench-101 cell, which is also what NAS-Bench-1Shot1 selects.

    Attributes:
      matrix: the adjacency matrix, upper triangular, of 2 to 7 vertices; `matrix[i][j]` is 1 if
        vertex j reads vertex i.
      ops: one label a vertex: `input`, the operations, `output`.

    Raises:
      ValueError: for any other form.
    """

    matrix: tuple[tuple[int, ...], ...]
    ops: tuple[str, ...]

    family: ClassVar[str] = "nasbench101"
    prefix: ClassVar[str] = "ModelSpec"
    text_form: ClassVar[str] = "ModelSpec(...) for NAS-Bench-101"
    sizes: ClassVar[Sizes] = Sizes(init_channels=128, num_cells=3, fixed=True)
    options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        matrix, ops = self.matrix, self.ops
        if not isinstance(ops, list | tuple) or not 2 <= len(ops) <= 7:
            raise ValueError("a NAS-Bench-101 cell takes a list of 2 to 7 ops")
        if ops[0] != "input" or ops[-1] != "output":
            raise ValueError(
                "the ops of a NAS-Bench-101 cell begin with 'input', end with 'output'"
            )
        for op in ops[1:-1]:
            check_op(op, NASBENCH101_OPS, "a NAS-Bench-101 genotype")
        size = len(ops)
        square = (
            isinstance(matrix, list | tuple)
            and len(matrix) == size
            and all(isinstance(row, list | tuple) and len(row) == size for row in matrix)
        )
        if not square:
            raise ValueError(f"{size} ops take a matrix of {size} rows of {size} entries")
        for row in range(size):
            for column in range(size):
                entry = matrix[row][column]
                if type(entry) is not int or entry not in (0, 1) or (entry and row >= column):
                    raise ValueError(
                        "the matrix holds 0 and 1, and no 1 on or below the diagonal; "
                        f"row {row}, column {column} holds {shown(entry)}"
                    )
        object.__setattr__(self, "matrix", tuple(tuple(row) for row in matrix))
        object.__setattr__(self, "ops", tuple(ops))

    def to_text(self) -> str:
        """`ModelSpec(matrix=[[0, 1, ...], ...], ops=['input', ..., 'output'])`."""
        matrix = [list(row) for row in self.matrix]
        return f"ModelSpec(matrix={matrix}, ops={list(self.ops)})"

    @classmethod
    def from_text(cls, text: str) -> Nasbench101Genotype:
        """Reads the text form.

        Raises:
          ValueError: if the text is anything else than one such call with literal arguments.
        """
        fields = call_fields(text, "ModelSpec", ("matrix", "ops"))
        return cls(matrix=fields["matrix"], ops=fields["ops"])

    def parents(self, vertex: int) -> tuple[int, ...]:
        """The vertices that `vertex` reads."""
        return tuple(source for source in range(vertex) if self.matrix[source][vertex])

    def prune(self) -> Nasbench101Genotype:
        """The cell without the vertices that are not on a path from input to output.

        Raises:
          ValueError: if no path leads from input to output.
        """
        used = on_path(self.matrix)
        if not used[0]:
            raise ValueError("no path leads from the cell's input to its output")
        return self._of([vertex for vertex, is_used in enumerate(used) if is_used])

    def _of(self, vertices: Sequence[int]) -> Nasbench101Genotype:
        """The cell of these vertices, in this order."""
        return Nasbench101Genotype(
            matrix=tuple(tuple(self.matrix[i][j] for j in vertices) for i in vertices),
            ops=tuple(self.ops[i] for i in vertices),
        )

    def canonical(self) -> Nasbench101Genotype:
        """The pruned cell with its vertices in the order of least matrix, and then least ops.

        Raises:
          ValueError: if no path leads from input to output.
        """
        cell = self.prune()
        first, *inner, last = range(len(cell.ops))
        orders = ((first, *order, last) for order in itertools.permutations(inner))
        return min(
            (
                cell._of(order)
                for order in orders
                if all(
                    set(cell.parents(vertex)) <= set(order[:place])
                    for place, vertex in enumerate(order)
                )
            ),
            key=lambda cell: (cell.matrix, cell.ops),
        )

    def module_hash(self) -> str:
        """The benchmark's key of the pruned cell, equal for isomorphic cells.

        Every vertex starts from its degrees and its label and is hashed with its neighbors'
        hashes as often as there are vertices (Ying et al., 2019, MD5 as in their release).
        """
        cell = self.prune()
        size = len(cell.ops)
        labels = [-1, *(NASBENCH101_OPS.index(op) for op in cell.ops[1:-1]), -2]
        sources = [cell.parents(vertex) for vertex in range(size)]
        targets = [[j for j in range(size) if cell.matrix[i][j]] for i in range(size)]
        hashes = [_md5(str((len(targets[v]), len(sources[v]), labels[v]))) for v in range(size)]
        for _ in range(size):
            hashes = [
                _md5(
                    "".join(sorted(hashes[w] for w in sources[v]))
                    + "|"
                    + "".join(sorted(hashes[w] for w in targets[v]))
                    + "|"
                    + hashes[v]
                )
                for v in range(size)
            ]
        return _md5(str(sorted(hashes)))

    def isomorphism_key(self) -> str:
        """The `module_hash`."""
        return self.module_hash()

    def evaluated(self) -> Nasbench101Genotype:
        """The pruned cell, which is what the benchmark trained."""
        return self.prune()

    def record(self) -> dict[str, Any]:
        """The pruned cell, and its key in the benchmark."""
        return {"pruned": genotype_to_dict(self.prune()), "module_hash": self.module_hash()}

    def graphs(self) -> tuple[CellGraph, ...]:
        """The cell, unpruned; what pruning drops is not used."""
        size = len(self.ops)
        # Not prune(), which renumbers the vertices, and which refuses a cell without a path.
        used = on_path(self.matrix)
        roles: dict[int, Any] = {0: "input", size - 1: "output"}
        nodes = tuple(
            CellNode(op, roles.get(vertex, "node"), f"op of {vertex}", bool(used[vertex]))
            for vertex, op in enumerate(self.ops)
        )
        edges = tuple(
            CellEdge(
                source,
                vertex,
                choice=f"inputs of {'output' if vertex == size - 1 else vertex}",
                role="op" if used[source] and used[vertex] else "unused",
            )
            for vertex in range(size)
            for source in self.parents(vertex)
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
        """The network that the benchmark trained: of the pruned cell, and of this one size."""
        del init_channels, num_cells
        return Nasbench101Network(num_classes, self.prune(), LayerSpec.of(spec, affine=True))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def vertex_op(name: str, inputs: jax.Array, *, features: int, spec: LayerSpec) -> jax.Array:
    """The operation of a vertex, one of `NASBENCH101_OPS`."""
    if name == "maxpool3x3":
        return max_pool(inputs)
    return ConvNormRelu(features, int(name[4]), spec, name=name)(inputs)


class Vertex(nn.Module):
    """One vertex of a genotype: the sum of what it reads, then its operation."""

    op: str
    parents: tuple[int, ...]
    features: int
    spec: LayerSpec

    @nn.compact
    def __call__(self, inputs: jax.Array, states: dict[int, jax.Array]) -> jax.Array:
        """The vertex, from the cell\'s input and the vertices before."""
        read = [
            ConvNormRelu(self.features, 1, self.spec, name="projection")(inputs)
            if source == 0
            else states[source][..., : self.features]
            for source in self.parents
        ]
        total = functools.reduce(jnp.add, read)
        return vertex_op(self.op, total, features=self.features, spec=self.spec)


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
            layer = Vertex(
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
        features = self.genotype.sizes.init_channels
        states = checkpoint_name(ConvNormRelu(features, 3, self.spec, name="stem")(inputs), BLOCK)
        for stage in range(3):
            if stage > 0:
                states = halving_max_pool(states)
                features *= 2
            for index in range(self.genotype.sizes.num_cells):
                name = f"cell_{stage}_{index}"
                cell = self.spec.of_cell(_Nasbench101Cell)
                states = cell(self.genotype, features, self.spec, name=name)(states)
                states = checkpoint_name(states, BLOCK)
        return Head(self.num_classes, self.spec, name="head")(states)
