"""The benchmarks run from end to end at their smallest size."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_agnosticism(tmp_path):
    command = [sys.executable, BENCHMARKS / "agnosticism.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("Pearson") == 2
    record = json.loads((tmp_path / "agnosticism.json").read_text())
    assert {len(values) for values in record["scores"].values()} == {8}
    for figure in record["correlations"].values():
        assert figure["low"] <= figure["pearson"] <= figure["high"]
    assert (tmp_path / "agnosticism.png").read_bytes().startswith(b"\x89PNG")
