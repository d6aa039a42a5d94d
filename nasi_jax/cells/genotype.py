"""Genotypes of all families: parsing without `eval`, JSON form, evaluation networks."""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import ArrayLike

from nasi_jax.types import Genotype, NetworkSpec

_MAX_TEXT = 10_000


def genotype_to_dict(genotype: Genotype) -> dict[str, Any]:
    """The JSON form: `format`, which is the family, and the fields of the genotype.

    Args:
      genotype: of any family.

    Returns:
      What `json.dumps` takes and `genotype_from_dict` reads.
    """
    fields = dataclasses.fields(genotype)  # type: ignore[arg-type]  # a protocol has no fields
    values = {field.name: _as_json(getattr(genotype, field.name)) for field in fields}
    return {"format": genotype.family} | values


def _as_json(value: Any) -> Any:
    return [_as_json(part) for part in value] if isinstance(value, tuple) else value


def on_path(matrix: ArrayLike) -> np.ndarray:
    """Which nodes `[V]` of a graph are on a path from the first to the last, by its adjacency."""
    edges = np.asarray(matrix, int)
    reaches = np.linalg.matrix_power(np.eye(len(edges), dtype=int) + edges, len(edges)) > 0
    return reaches[0] & reaches[:, -1]


def is_live(genotype: Genotype) -> bool:
    """Whether all operations of an architecture are on paths from input to output.

    Operations are those of edges, and nodes that a choice decided. Of the 15,625 cells of
    NAS-Bench-201 9,445 are live.
    """
    return all(
        all(node.used or node.choice is None for node in cell.nodes)
        and not any(edge.op and edge.role == "unused" for edge in cell.edges)
        for cell in genotype.graphs()
    )


def evaluation_network(
    genotype: Genotype,
    num_classes: int,
    spec: NetworkSpec = NetworkSpec(),
    *,
    init_channels: int | None = None,
    num_cells: int | None = None,
    **options: Any,
) -> nn.Module:
    """Builds the evaluation network of a genotype: `inputs -> logits [B, num_classes]`.

    Args:
      genotype: of any family.
      num_classes: outputs of the network.
      spec: what its layers have in common.
      init_channels: channels of the first cells; as the family's benchmark has them if None.
      num_cells: cells, likewise.
      **options: what the networks of a family can have besides; see `Genotype.options`.

    Returns:
      The flax module, without variables.

    Raises:
      ValueError: for a size or an option of which there is no such network.
    """
    sizes = evaluation_sizes(genotype, init_channels=init_channels, num_cells=num_cells)
    for name, value in options.items():
        if name not in genotype.options:
            known = ", ".join(genotype.options) or "no options"
            raise ValueError(f"networks of {genotype.family} have {known}, got {name} {value}")
    return genotype.network(num_classes, spec, **sizes, **options)


def evaluation_sizes(
    genotype: Genotype, *, init_channels: int | None = None, num_cells: int | None = None
) -> dict[str, int]:
    """Fills in the sizes of an evaluation network by those of the family's benchmark.

    Args:
      genotype: of any family.
      init_channels: channels of the first cells, if any are given.
      num_cells: cells, if any are given.

    Raises:
      ValueError: for a size of which there is no such network.
    """
    family, sizes = genotype.family, genotype.sizes
    usual = {"init_channels": sizes.init_channels, "num_cells": sizes.num_cells}
    given = {"init_channels": init_channels, "num_cells": num_cells}
    chosen = usual | {name: size for name, size in given.items() if size is not None}
    if sizes.fixed and chosen != usual:
        raise ValueError(
            f"a {family} network has init_channels={sizes.init_channels} and "
            f"num_cells={sizes.num_cells}; got init_channels={chosen['init_channels']}, "
            f"num_cells={chosen['num_cells']}"
        )
    check_sizes(genotype, family, **chosen)
    return chosen


def check_sizes(
    kind: Genotype | type[Genotype],
    name: str,
    *,
    init_channels: int | None = None,
    num_cells: int | None = None,
) -> None:
    """Checks that sizes are no smaller than those of the smallest network of a family.

    Args:
      kind: a genotype, or a class of them.
      name: of the family or the space, for the message.
      init_channels: channels of the first cells, if any are given.
      num_cells: cells, if any are given.

    Raises:
      ValueError: if one is too small.
    """
    for field, size, least in (
        ("init_channels", init_channels, 1),
        ("num_cells", num_cells, kind.sizes.least_cells),
    ):
        if size is not None and size < least:
            raise ValueError(f"{field} of {name} must be at least {least}, got {size}")


def check_op(op: object, known: Sequence[str], where: str) -> str:
    """Validates the name of an operation.

    Raises:
      ValueError: if it is another.
    """
    if not isinstance(op, str) or op not in known:
        raise ValueError(f"unknown op {shown(op)} in {where}; known: {', '.join(known)}")
    return op


def shown(value: object) -> str:
    """Quotes a value for an error message, on one line of at most 60 characters."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits; lists nested too deep
        shown = f"a value of type {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def stripped_text(text: str) -> str:
    """Strips the text of a genotype, and limits its length.

    Raises:
      ValueError: if it is too long for a genotype.
    """
    stripped = text.strip()
    if len(stripped) > _MAX_TEXT:
        raise ValueError(f"a genotype has at most {_MAX_TEXT} characters, this has {len(stripped)}")
    return stripped


def call_fields(text: str, name: str, expected: tuple[str, ...]) -> dict[str, Any]:
    """Parses the keyword arguments of `name(key=literal, ...)`; `range(a, b)` is a list."""
    form = f"{name}({', '.join(f'{key}=...' for key in expected)})"
    wrong = f"not a genotype of the form {form}: {shown(text)}"
    stripped = stripped_text(text)
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
    """Evaluates a literal, or `range(a, b)` over small numbers."""
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
