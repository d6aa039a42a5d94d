"""Search spaces and the flax modules that they are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from nasi_jax.cells.darts import Darts
from nasi_jax.cells.genotype import (
    AnyGenotype,
    DartsGenotype,
    Nasbench101Genotype,
    Nasbench201Genotype,
    genotype_from_dict,
    genotype_to_dict,
    parse_genotype,
)
from nasi_jax.cells.nasbench1shot1 import Nasbench1Shot1
from nasi_jax.cells.nasbench201 import Nasbench201
from nasi_jax.types import SearchSpace

SEARCH_SPACES: dict[str, SearchSpace] = {
    "darts": Darts(),
    "nasbench201": Nasbench201(),
    "nasbench1shot1-1": Nasbench1Shot1(1),
    "nasbench1shot1-2": Nasbench1Shot1(2),
    "nasbench1shot1-3": Nasbench1Shot1(3),
}
"""The search spaces by name, at their default size."""

__all__ = [
    "SEARCH_SPACES",
    "AnyGenotype",
    "Darts",
    "DartsGenotype",
    "Nasbench1Shot1",
    "Nasbench101Genotype",
    "Nasbench201",
    "Nasbench201Genotype",
    "genotype_from_dict",
    "genotype_to_dict",
    "parse_genotype",
    "search_space",
]


def search_space(name: str, **fields: Any) -> SearchSpace:
    """The registered search space of that name with other values in some of its fields.

    Args:
      name: a key of `SEARCH_SPACES`.
      **fields: `ops`, `init_channels`, `num_cells`; a field that is `None` keeps its default.

    Raises:
      ValueError: for an unknown name, an unknown or a repeated op, or a size below the least.
    """
    if name not in SEARCH_SPACES:
        raise ValueError(f"unknown space {name!r}; known: {', '.join(SEARCH_SPACES)}")
    space = SEARCH_SPACES[name]
    given = {field: value for field, value in fields.items() if value is not None}
    _check_fields(space, given)
    return dataclasses.replace(space, **given)  # type: ignore[type-var]


def _check_fields(space: SearchSpace, given: dict[str, Any]) -> None:
    ops = given.get("ops", space.ops)
    for op in ops:
        if op not in space.ops:
            raise ValueError(f"unknown op {op!r} in {space.name}; known: {', '.join(space.ops)}")
    if len(set(ops)) != len(ops) or not set(ops) - {"none"}:
        raise ValueError(f"ops must differ, and one must be other than none; got {', '.join(ops)}")
    for field, least in (("init_channels", 1), ("num_cells", 3 if space.name == "darts" else 1)):
        if given.get(field, least) < least:
            raise ValueError(
                f"{field} of {space.name} must be at least {least}, got {given[field]}"
            )
