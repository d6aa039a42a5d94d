"""What the package declares: what it uses and no more, its licence, its types."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"orbax-checkpoint": "orbax", "pillow": "PIL", "scikit-learn": "sklearn"}
"""The modules of packages whose name is another."""


def imported():
    names = set()
    for path in (ROOT / "nasi_jax").rglob("*.py"):
        if path.parent.name == "templates":  # text that is given away
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names


def names_of(requirements):
    return {re.match(r"[\w-]+", each)[0] for each in requirements}


def test_dependencies_are_used():
    for name in names_of(PROJECT["dependencies"]):
        assert MODULES.get(name, name) in imported(), f"no file imports {name}"


def test_every_dependency_has_a_lower_bound():
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", each) for each in PROJECT["dependencies"])


def test_extras_of_accelerators_are_those_of_jax():
    extras = PROJECT["optional-dependencies"]
    assert all(extras[name] == [f"jax[{name}]"] for name in ("cuda12", "cuda13", "tpu"))


def test_licence_and_types():
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert (ROOT / "nasi_jax" / "py.typed").exists()


def test_the_package_is_imported_without_what_only_the_commands_need():
    code = (
        "import sys, nasi_jax; print({'matplotlib', 'orbax.checkpoint', 'grain'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
