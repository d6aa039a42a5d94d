"""Genotypes of the three families and their text formats, read without `eval`."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nasi_jax.types import Edge

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

NASBENCH201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The five operations of NAS-Bench-201 (Dong and Yang, 2020), in its own order."""

NASBENCH101_OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
"""The three operations of NAS-Bench-101 (Ying et al., 2019), in the order of its hash."""

_MAX_TEXT = 10_000
_DARTS_NODES = 4


def _check_op(op: object, known: Sequence[str], where: str) -> str:
    if not isinstance(op, str) or op not in known:
        raise ValueError(f"unknown op {_shown(op)} in {where}; known: {', '.join(known)}")
    return op


def _shown(value: object) -> str:
    """A value as an error message quotes it: on one line, and cut to 60 characters."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits; lists nested too deep
        shown = f"a value of type {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _stripped(text: str) -> str:
    stripped = text.strip()
    if len(stripped) > _MAX_TEXT:
        raise ValueError(f"a genotype has at most {_MAX_TEXT} characters, this has {len(stripped)}")
    return stripped


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", self._checked(self.normal, "normal"))
        object.__setattr__(self, "reduce", self._checked(self.reduce, "reduce"))

    @staticmethod
    def _checked(edges: Any, cell: str) -> tuple[Edge, ...]:
        num_edges = 2 * _DARTS_NODES
        if not isinstance(edges, list | tuple) or len(edges) != num_edges:
            raise ValueError(f"the {cell} cell takes a list of {num_edges} (op, node) pairs")
        ordered: list[Edge] = []
        for node in range(_DARTS_NODES):
            pair = []
            for edge in edges[2 * node : 2 * node + 2]:
                if not isinstance(edge, list | tuple) or len(edge) != 2:
                    raise ValueError(f"an edge of the {cell} cell is not an (op, node) pair")
                op = _check_op(edge[0], DARTS_OPS[1:], f"the {cell} cell of a DARTS genotype")
                source = edge[1]
                if type(source) is not int or not 0 <= source < node + 2:
                    raise ValueError(
                        f"node {node + 2} of the {cell} cell reads a node from 0 to {node + 1}, "
                        f"not {_shown(source)}"
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
        concat = f"range(2, {2 + _DARTS_NODES})"
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
        fields = _call_fields(
            text, "Genotype", ("normal", "normal_concat", "reduce", "reduce_concat")
        )
        for cell in ("normal", "reduce"):
            concat = fields[f"{cell}_concat"]
            integers = isinstance(concat, list) and all(type(node) is int for node in concat)
            if not integers or concat != list(range(2, 2 + _DARTS_NODES)):
                raise ValueError(
                    f"{cell}_concat must be range(2, {2 + _DARTS_NODES}): this search space "
                    "concatenates every intermediate node"
                )
        return cls(normal=fields["normal"], reduce=fields["reduce"])


@dataclass(frozen=True)
class Nasbench201Genotype:
    """A NAS-Bench-201 cell.

    Attributes:
      ops: the operations of the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3, in this order.

    Raises:
      ValueError: for another number of operations or an unknown one.
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.ops, list | tuple) or len(self.ops) != 6:
            raise ValueError("a NAS-Bench-201 cell takes a list of 6 ops")
        where = "a NAS-Bench-201 genotype"
        checked = tuple(_check_op(op, NASBENCH201_OPS, where) for op in self.ops)
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
        match = re.fullmatch(form, _stripped(text))
        if match is None:
            raise ValueError(
                f"not a NAS-Bench-201 arch_str: {_shown(text)}; "
                "the form is |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
            )
        return cls(ops=match.groups())


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

    def __post_init__(self) -> None:
        matrix, ops = self.matrix, self.ops
        if not isinstance(ops, list | tuple) or not 2 <= len(ops) <= 7:
            raise ValueError("a NAS-Bench-101 cell takes a list of 2 to 7 ops")
        if ops[0] != "input" or ops[-1] != "output":
            raise ValueError(
                "the ops of a NAS-Bench-101 cell begin with 'input', end with 'output'"
            )
        for op in ops[1:-1]:
            _check_op(op, NASBENCH101_OPS, "a NAS-Bench-101 genotype")
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
                        f"row {row}, column {column} holds {_shown(entry)}"
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
        fields = _call_fields(text, "ModelSpec", ("matrix", "ops"))
        return cls(matrix=fields["matrix"], ops=fields["ops"])

    def parents(self, vertex: int) -> tuple[int, ...]:
        """The vertices that `vertex` reads."""
        return tuple(source for source in range(vertex) if self.matrix[source][vertex])

    def prune(self) -> Nasbench101Genotype:
        """The cell without the vertices that are not on a path from input to output.

        Raises:
          ValueError: if no path leads from input to output.
        """
        size = len(self.ops)
        reached = {0}
        for vertex in range(1, size):
            if reached.intersection(self.parents(vertex)):
                reached.add(vertex)
        useful = {size - 1}
        for vertex in reversed(range(size)):
            if vertex in useful:
                useful.update(self.parents(vertex))
        kept = sorted(reached & useful)
        if not {0, size - 1} <= set(kept):
            raise ValueError("no path leads from the cell's input to its output")
        return Nasbench101Genotype(
            matrix=tuple(tuple(self.matrix[i][j] for j in kept) for i in kept),
            ops=tuple(self.ops[i] for i in kept),
        )

    def module_hash(self) -> str:
        """The benchmark's key of the pruned cell, equal for isomorphic cells.

        Every vertex starts from its degrees and its label and is hashed with its neighbours'
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


AnyGenotype = DartsGenotype | Nasbench201Genotype | Nasbench101Genotype

FORMATS: dict[str, type[AnyGenotype]] = {
    "darts": DartsGenotype,
    "nasbench201": Nasbench201Genotype,
    "nasbench101": Nasbench101Genotype,
}


def format_name(genotype: AnyGenotype) -> str:
    """The name in `FORMATS` of the genotype's text form."""
    return next(name for name, kind in FORMATS.items() if isinstance(genotype, kind))


def parse_genotype(text: str) -> AnyGenotype:
    """Reads a genotype in any of the three text forms or in the JSON form.

    Args:
      text: `Genotype(...)` (DARTS), an `arch_str` (NAS-Bench-201), `ModelSpec(...)`
        (NAS-Bench-101), or the JSON of `genotype_to_dict`. Nothing in it is executed.

    Raises:
      ValueError: if the text is none of these; the message says what was wrong.
    """
    stripped = _stripped(text)
    if stripped.startswith("Genotype"):
        return DartsGenotype.from_text(stripped)
    if stripped.startswith("ModelSpec"):
        return Nasbench101Genotype.from_text(stripped)
    if stripped.startswith("|"):
        return Nasbench201Genotype.from_text(stripped)
    if stripped.startswith("{"):
        try:
            fields = json.loads(stripped)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {_shown(stripped)}") from error
        return genotype_from_dict(fields)
    raise ValueError(
        f"not a genotype: {_shown(text)}; accepted are Genotype(...) for DARTS, "
        "|op~0|+|op~0|op~1|+... for NAS-Bench-201, ModelSpec(...) for NAS-Bench-101, and JSON"
    )


def genotype_to_dict(genotype: AnyGenotype) -> dict[str, Any]:
    """The JSON form: `format`, and the fields of the genotype."""
    name = format_name(genotype)
    if isinstance(genotype, DartsGenotype):
        edges = {"normal": genotype.normal, "reduce": genotype.reduce}
        return {"format": name} | {cell: [list(edge) for edge in edges[cell]] for cell in edges}
    if isinstance(genotype, Nasbench201Genotype):
        return {"format": name, "ops": list(genotype.ops)}
    return {
        "format": name,
        "matrix": [list(row) for row in genotype.matrix],
        "ops": list(genotype.ops),
    }


def genotype_from_dict(fields: Any) -> AnyGenotype:
    """Reads the JSON form.

    Raises:
      ValueError: for an unknown format, a missing or an unknown field, or a wrong value.
    """
    known = ", ".join(FORMATS)
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), str):
        raise ValueError(f"a genotype in JSON is an object whose 'format' is one of: {known}")
    values = dict(fields)
    name = values.pop("format")
    if name not in FORMATS:
        raise ValueError(f"unknown genotype format {_shown(name)}; known: {known}")
    kind = FORMATS[name]
    expected = set(kind.__dataclass_fields__)
    if set(values) != expected:
        raise ValueError(
            f"a {name} genotype in JSON has the fields {', '.join(sorted(expected))}, "
            f"not {_shown(', '.join(sorted(map(str, values))))}"
        )
    return kind(**values)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _call_fields(text: str, name: str, expected: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments of the text `name(key=literal, ...)`; `range(a, b)` is a list."""
    form = f"{name}({', '.join(f'{key}=...' for key in expected)})"
    wrong = f"not a genotype of the form {form}: {_shown(text)}"
    stripped = _stripped(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on the text, as on an escape in it
            node = ast.parse(stripped, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(wrong) from error
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(wrong)
    keys = [keyword.arg for keyword in node.keywords]
    if node.func.id != name or node.args or sorted(map(str, keys)) != sorted(expected):
        raise ValueError(wrong)
    return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of `range(a, b)` over small numbers."""
    if isinstance(node, ast.Call):
        is_range = isinstance(node.func, ast.Name) and node.func.id == "range"
        bounds: list[Any] = [a.value for a in node.args if isinstance(a, ast.Constant)]
        small = len(bounds) == len(node.args) == 2 and all(
            type(b) is int and 0 <= b <= 100 for b in bounds
        )
        if not is_range or node.keywords or not small:
            raise ValueError("the only call inside a genotype is range(first, last + 1)")
        return list(range(*bounds))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            "a genotype takes nothing but literals: lists, tuples, strings and integers"
        ) from error
