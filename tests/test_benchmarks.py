"""The benchmarks run from end to end at their smallest size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_agnosticism(tmp_path):
    command = [sys.executable, BENCHMARKS / "agnosticism.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("Pearson") == 2
    record = json.loads((tmp_path / "agnosticism.json").read_text())
    assert {len(values) for values in record["scores"].values()} == {8}
    for figure in record["correlations"].values():
        pearson = figure["pearson"]
        assert pearson["low"] <= pearson["value"] <= pearson["high"]
    assert (tmp_path / "agnosticism.png").read_bytes().startswith(b"\x89PNG")


def test_estimators(tmp_path):
    command = [sys.executable, BENCHMARKS / "estimators.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "estimators.json").read_text())["rows"]
    assert done.stdout.count("\n") == 2 + len(rows)
    assert all(len(row["seconds"]) == 2 for row in rows)
    traces = {row["quantity"]: row["trace"] for row in rows}
    assert 0 < traces["batch_gradient"] <= 4 * traces["per_example_gradient"]
    assert traces["per_example_gradient"] <= traces["ntk_trace"]


def test_norm_modes(tmp_path):
    command = [sys.executable, BENCHMARKS / "norm_modes.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("Kendall") == 3
    record = json.loads((tmp_path / "norm_modes.json").read_text())
    assert all(len(values) == 4 for values in record["traces"].values())


def test_proposition1(tmp_path):
    command = [sys.executable, BENCHMARKS / "proposition1.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("bound held") == 2
    record = json.loads((tmp_path / "proposition1.json").read_text())
    for runs in record["runs"].values():
        assert len(runs) == 2
        assert all(len(run["actual"]) == len(run["predicted"]) == 21 for run in runs)
        assert all(run["actual"][0] == pytest.approx(run["predicted"][0]) for run in runs)
    assert (tmp_path / "proposition1.png").read_bytes().startswith(b"\x89PNG")
