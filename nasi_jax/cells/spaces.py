"""The search spaces by name, and the genotypes of their families read from text and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from nasi_jax import plugins
from nasi_jax.cells.darts import Darts
from nasi_jax.cells.genotype import check_sizes, shown, stripped_text
from nasi_jax.cells.nasbench1shot1 import Nasbench1Shot1
from nasi_jax.cells.nasbench201 import Nasbench201
from nasi_jax.cells.transnas101 import Transnas101
from nasi_jax.types import Genotype, SearchSpace

SEARCH_SPACES: dict[str, SearchSpace] = {
    "darts": Darts(),
    "nasbench201": Nasbench201(),
    "nasbench1shot1-1": Nasbench1Shot1(1),
    "nasbench1shot1-2": Nasbench1Shot1(2),
    "nasbench1shot1-3": Nasbench1Shot1(3),
    "transnas101": Transnas101(),
}
"""The search spaces by name, at their default size."""

GROUP = "nasi_jax.spaces"
"""The entry points by which packages bring search spaces."""


def search_space(name: str, **fields: Any) -> SearchSpace:
    """The search space of a name, with other values in some of its fields.

    Args:
      name: a key of `SEARCH_SPACES`, the name of an entry point of `GROUP`, or `module:name` of a
        `SearchSpace`, or of a class of them.
      **fields: `ops`, `init_channels`, `num_cells`; a field that is `None` keeps its default.

    Returns:
      The space.

    Raises:
      ValueError: for an unknown name, an unknown or a repeated op, or a size below the least.
    """
    space = _space(plugins.find(name, SEARCH_SPACES, GROUP, "space"), name)
    given = {field: value for field, value in fields.items() if value is not None}
    ops = given.get("ops", space.ops)
    for op in ops:
        if op not in space.ops:
            raise ValueError(
                f"unknown op {op!r} in {space.name}; known: {', '.join(space.ops)}"
                f"{plugins.did_you_mean(op, space.ops)}"
            )
    if len(set(ops)) != len(ops) or not set(ops) - {"none"}:
        raise ValueError(f"ops must differ, and one must be other than none; got {', '.join(ops)}")
    check_sizes(
        space.genotype,
        space.name,
        init_channels=given.get("init_channels"),
        num_cells=given.get("num_cells"),
    )
    return dataclasses.replace(space, **given)  # type: ignore[type-var]


def _space(found: Any, name: str) -> SearchSpace:
    """A search space that others wrote, or an instance of their class."""
    try:
        space = found() if isinstance(found, type) else found
    except Exception as error:  # whatever a class of others raises
        raise ValueError(f"cannot make {name} without arguments: {error}") from error
    if not isinstance(space, SearchSpace):
        members = [member for member in SearchSpace.__dict__ if not member.startswith("_")]
        missing = [member for member in members if not hasattr(space, member)]
        raise ValueError(f"{name} is not a search space: it has no {', '.join(missing)}")
    return space


def families(space: str | None = None) -> dict[str, type[Genotype]]:
    """The classes of genotypes by the names of their families.

    Args:
      space: the name of a space whose genotypes come first, such as one of your own.

    Returns:
      The classes, those of `space` first.
    """
    kinds: dict[str, type[Genotype]] = {}
    for kind in _kinds(space):
        kinds.setdefault(kind.family, kind)
    return kinds


def _kinds(space: str | None) -> Iterator[type[Genotype]]:
    """The classes of genotypes one by one: looking for packages that bring some takes longest."""
    if space is not None:
        yield search_space(space).genotype
    yield from (each.genotype for each in SEARCH_SPACES.values())
    yield from (_space(found, GROUP).genotype for found in plugins.brought(GROUP))


def parse_genotype(text: str, space: str | None = None) -> Genotype:
    """Reads a genotype in any of the text forms or in the JSON form.

    Args:
      text: `Genotype(...)` (DARTS), an `arch_str` (NAS-Bench-201), `ModelSpec(...)`
        (NAS-Bench-101), the text form of another family, or the JSON of `genotype_to_dict`.
        Nothing in it is executed.
      space: the name of a space whose genotypes are read too, such as one of your own.

    Returns:
      The genotype, of the class of its family.

    Raises:
      ValueError: if the text is none of these; the message says what was wrong.
    """
    stripped = stripped_text(text)
    if stripped.startswith("{"):
        try:
            fields = json.loads(stripped)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {shown(stripped)}") from error
        return genotype_from_dict(fields, space)
    for kind in _kinds(space):
        if stripped.startswith(kind.prefix):
            return kind.from_text(stripped)
    forms = ", ".join(kind.text_form for kind in families(space).values())
    raise ValueError(f"not a genotype: {shown(text)}; accepted are {forms}, and JSON")


def genotype_from_dict(fields: Any, space: str | None = None) -> Genotype:
    """Reads the JSON form.

    Args:
      fields: as `genotype_to_dict` gives them.
      space: the name of a space whose genotypes are read too, such as one of your own.

    Returns:
      The genotype, of the class of its family.

    Raises:
      ValueError: for an unknown format, a missing or an unknown field, or a wrong value.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), str):
        known = ", ".join(families(space))
        raise ValueError(f"a genotype in JSON is an object whose 'format' is one of: {known}")
    values = dict(fields)
    name = values.pop("format")
    kind = next((kind for kind in _kinds(space) if kind.family == name), None)
    if kind is None:
        known = ", ".join(families(space))
        raise ValueError(f"unknown genotype format {shown(name)}; known: {known}")
    expected = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(values) != expected:
        raise ValueError(
            f"a {name} genotype in JSON has the fields {', '.join(sorted(expected))}, "
            f"not {shown(', '.join(sorted(map(str, values))))}"
        )
    return kind(**values)
