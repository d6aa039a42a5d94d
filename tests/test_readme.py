"""What the README tells a reader to type works, and the kernels' page."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from nasi_jax import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, name="README.md"):
    text = (ROOT / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


KERNELS = blocks("python", "docs/kernels.md")


@pytest.mark.parametrize(
    "example", KERNELS, ids=["linen", "nnx", "equinox", "function", "thousands", "memory", "names"]
)
def test_models_of_ones_own(example, capsys):
    """In about ten lines each, with numbers that are finite and above 0."""
    lines = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(lines) <= 10
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "docs/kernels.md", "exec"), {})
    numbers = re.findall(r"[-+\d.]+(?:e[-+]\d+)?", capsys.readouterr().out)
    assert len(numbers) >= 3 and all(float(number) > 0 for number in numbers)


def test_it_is_of_one_screen():
    assert len(README.splitlines()) <= 70


SET_UP = [line.split("&&")[-1].strip() for block in blocks("sh") for line in block.splitlines()]
# Between backticks in the text, and with arguments: the others are names of commands.
INLINE = [
    code.replace("\n", " ")
    for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
]
COMMANDS = [
    *(line for line in SET_UP if line.split()[0].endswith("nasi")),
    *(code for code in INLINE if re.match(r"nasi \w+ ", code)),
]
SCRIPTS = [code for code in INLINE if code.startswith("python benchmarks/")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    program, *arguments = shlex.split(command)
    assert program.endswith("nasi")
    cli._command(arguments)


@pytest.mark.parametrize("command", SCRIPTS)
def test_studies_have_the_flags(command):
    _, script, *arguments = shlex.split(command)
    source = (ROOT / script).read_text() + (ROOT / "benchmarks" / "measuring.py").read_text()
    for flag in arguments:
        if flag.startswith("--"):
            name = flag[2:].replace("-", "_")
            assert flag in source or re.search(rf"\b{name}\b", source), flag


def test_there_are_commands():
    assert len(COMMANDS) >= 4 and len(SCRIPTS) >= 3
