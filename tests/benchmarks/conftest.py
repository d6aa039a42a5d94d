import importlib
import sys

import pytest


@pytest.fixture
def run(monkeypatch, capsys, unoptimized):
    """Runs a benchmark in this process, and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run
