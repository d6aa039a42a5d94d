"""The documentation: every public name has a whole entry, and what pages show can be typed."""

import ast
import importlib
import inspect
import re
import shlex
import textwrap

import jax
import pytest
from test_readme import ROOT, blocks

from nasi_jax import cli

API = (ROOT / "docs" / "api.md").read_text()
PAGES = [
    str(page.relative_to(ROOT))
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if "_build" not in page.parts
]

ROOMS = [
    "nasi_jax",
    *(
        f"nasi_jax.{room}"
        for room in ("kernels", "kernels.proxies", "search", "cells", "tables", "export", "data")
    ),
]
PUBLIC = {
    (room, name): getattr(importlib.import_module(room), name)
    for room in ROOMS
    for name in importlib.import_module(room).__all__
}
FUNCTIONS = {each for each in PUBLIC.values() if inspect.isfunction(each)}


def documented():
    """What the directives of the page stand for, by their full names."""
    room, found = "", []
    for directive, name in re.findall(r"^\.\. (\w+):: ([\w.]+)", API, re.MULTILINE):
        if directive == "currentmodule":
            room = name
        else:
            found.append(name if name.startswith("nasi_jax.") else f"{room}.{name}")
    return found


def resolve(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_public_name_has_an_entry_and_all_entries_are_there():
    entries = documented()
    assert len(entries) == len({*entries})
    described = {id(resolve(name)) for name in entries}
    assert [key for key, each in PUBLIC.items() if id(each) not in described] == []


@pytest.mark.parametrize(
    "function", sorted(FUNCTIONS, key=lambda each: each.__name__), ids=lambda each: each.__name__
)
def test_a_docstring_is_whole(function):
    """What it does in a first line, and sections for arguments, for what it returns and raises."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    text = inspect.getdoc(function)
    assert text.splitlines()[0].endswith((".", ":"))
    # Proxies that are computed together, or differ in a matrix.
    if same := re.search(r"Arguments, errors and .* are those of `(\w+)`\.", text):
        assert same[1] in {each.__name__ for each in FUNCTIONS}
        return
    for name in inspect.signature(function).parameters:
        assert re.search(rf"^Args:\n(  .*\n|\n)*  \**{name}: ", text + "\n", re.MULTILINE), name
    assert (
        "\nReturns:\n" in text
        or "\nYields:\n" in text
        or function.__annotations__["return"] == "None"
    )
    # What a function inside of it raises is said where that function is described.
    if any(isinstance(each, ast.Raise) for each in own_statements(node)):
        assert "\nRaises:\n" in text


def own_statements(node):
    for each in ast.iter_child_nodes(node):
        if not isinstance(each, ast.FunctionDef | ast.Lambda):
            yield each
            yield from own_statements(each)


COMMANDS = [
    line.split("#")[0].strip()
    for page in PAGES
    for block in blocks("sh", page)
    for line in block.splitlines()
    if line.startswith("nasi ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    arguments = shlex.split(command)[1:]
    if arguments != ["--version"]:
        cli._command(arguments)


EXAMPLES = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("docs/getting_started.md", "docs/howto/data.md", "docs/howto/optax_loop.md")
    for number, block in enumerate(blocks("python", page))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "docs", "exec"), {})
    assert capsys.readouterr().out
