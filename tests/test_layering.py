"""Imports between the rooms point only downward."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "nasi_jax"

ALLOWED = {
    "types": set(),
    "files": set(),
    "directory": {"files"},
    "augment": set(),
    "cache": set(),
    "conv": {"types"},
    "config": {"types"},
    "recipe": {"types", "config"},
    "kernels": {"types", "conv"},
    "cells": {"types", "conv"},
    "search": {"types", "config", "kernels"},
    "data": {"types", "config"},
    "plot": {"types", "config", "cells", "files"},
    "tables": {"cells", "files"},
    "correlation": set(),
    "experiment": {
        *("types", "files", "directory", "config", "kernels", "cells", "search", "data", "plot"),
    },
    "population": {
        *("types", "files", "directory", "config", "kernels", "cells", "search", "experiment"),
    },
    "ranking": {
        *("types", "files", "config", "kernels", "plot"),
        *("correlation", "tables", "experiment", "population"),
    },
    "export": {"types", "config", "cells"},
    "train": {"types", "recipe", "kernels", "cells", "augment"},
    "training_run": {"files", "directory", "config", "recipe", "cells", "data", "plot", "train"},
    "predict": {"data", "train", "training_run"},
    "cli": {
        *("files", "config", "search", "cache", "correlation", "experiment", "population"),
        *("ranking", "recipe", "export", "train", "training_run", "predict"),
    },
}
"""What each room may import from the package, besides itself."""


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


def test_the_table_has_no_cycle():
    for room, below in ALLOWED.items():
        assert all(room not in ALLOWED[other] for other in below)


def test_a_forbidden_import_is_seen():
    assert rooms_imported("from nasi_jax.cells.darts import Darts") == {"cells"}
    assert rooms_imported("def f():\n    import nasi_jax.cells.ops") == {"cells"}
    assert rooms_imported("from nasi_jax import data, plot") == {"data", "plot"}
