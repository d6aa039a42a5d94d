"""What the README and docs tell a reader to type works."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from nasi_jax import cli, parse_genotype

ROOT = Path(__file__).parent.parent


def blocks(language, name="README.md"):
    text = (ROOT / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    text = capsys.readouterr().out.split(" ")[0]
    assert parse_genotype(text).to_text() == text


KERNELS = blocks("python", "docs/kernels.md")


@pytest.mark.parametrize(
    "example", KERNELS, ids=["flax", "equinox", "function", "thousands", "memory", "names"]
)
def test_models_of_ones_own(example, capsys):
    """In about ten lines each, with numbers that are finite and above 0."""
    lines = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(lines) <= 10
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "docs/kernels.md", "exec"), {})
    numbers = re.findall(r"[-+\d.]+(?:e[-+]\d+)?", capsys.readouterr().out)
    assert len(numbers) >= 3 and all(float(number) > 0 for number in numbers)


COMMANDS = [
    line.split("#")[0].split("&&")[-1].strip()
    for block in blocks("sh")
    for line in block.splitlines()
    if "nasi " in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    program, *arguments = shlex.split(command)
    assert program.endswith("nasi")
    cli._command(arguments)


def test_there_are_commands():
    assert len(COMMANDS) >= 4
