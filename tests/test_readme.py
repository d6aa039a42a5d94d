"""What the README tells a reader to type works."""

import re
import shlex
from pathlib import Path

import pytest

from nasi_jax import cli, parse_genotype

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    text = capsys.readouterr().out.split(" ")[0]
    assert parse_genotype(text).to_text() == text


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
