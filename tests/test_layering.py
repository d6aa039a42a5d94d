"""Imports between the rooms point only downward."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nasi_jax"

PAGE = PACKAGE.parent / "docs" / "architecture.md"


def table(text):
    """What each room may import from the package, besides itself, by the table of a page."""
    section = text.partition("\n## Imports\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {room.strip(" `"): set(re.findall(r"`(\w+)`", below)) for room, below in rows}


ALLOWED = table(PAGE.read_text())


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(source: str) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "nasi_jax":
                names = [f"nasi_jax.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("nasi_jax.")}
        assert "nasi_jax" not in names, "a room imports rooms, not the whole package"
    return rooms


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    room = room_of(path)
    assert room in ALLOWED, f"{room} has no place in the house"
    assert rooms_imported(path.read_text()) <= ALLOWED[room] | {room}


def test_the_table_has_every_room():
    assert ALLOWED.keys() == {room_of(path) for path in MODULES}
    assert table("\n## Imports\n| `a` | `b`, `c` |\n| `b` | |\n## Then\n| `d` | |\n") == {
        "a": {"b", "c"},
        "b": set(),
    }


def test_the_table_has_no_cycle():
    for room, below in ALLOWED.items():
        assert all(room not in ALLOWED[other] for other in below)


def test_a_forbidden_import_is_seen():
    assert rooms_imported("from nasi_jax.cells.darts import Darts") == {"cells"}
    assert rooms_imported("def f():\n    import nasi_jax.cells.layers.ops") == {"cells"}
    assert rooms_imported("from nasi_jax import data, plot") == {"data", "plot"}


INSIDES = {
    "cells/layers/conv.py": {
        "jax.core",
        "jax.experimental.xla_metadata",
        "jax.extend.core",
        "jax.interpreters",
    },
    "devices/deviceless.py": {"jax.experimental"},
    "devices/hosts.py": {"jax.experimental"},
    "kernels/independence.py": {"jax.core"},
    "kernels/interpreter.py": {"jax.extend.core"},
    "kernels/neural_tangents.py": {"jax.core", "jax.extend", "jax.interpreters"},
}
"""What of JAX is used that its releases may change without notice, by file."""

SEMI_PUBLIC = ("jax.core", "jax.experimental", "jax.extend", "jax.interpreters", "jax._src")


def insides_used(source: str) -> set[str]:
    """Modules of JAX's insides that are imported, or read as attributes of `jax`."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{node.value.id}.{node.attr}")
    modules = {name for name in used if name and name.startswith(SEMI_PUBLIC)}
    # `from jax.extend.core import Primitive` is one use, of the module.
    return {name for name in modules if not any(name.startswith(f"{other}.") for other in modules)}


def test_jax_is_used_from_inside_in_few_files():
    used = {
        str(path.relative_to(PACKAGE)): insides_used(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: names for path, names in used.items() if names} == INSIDES


def test_a_use_of_the_insides_is_seen():
    assert insides_used("from jax.extend.core import Jaxpr") == {"jax.extend.core"}
    assert insides_used("import jax\njax.core.Tracer") == {"jax.core"}
    assert insides_used("from jax import lax\nlax.scan") == set()
