"""The benchmarks run from end to end at their smallest size."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import selection

from nasi_jax import plot

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


def test_search_step(tmp_path):
    # One operation with a kernel is enough to go through all of it.
    settings = ["--space", "nasbench201", "--ops", "skip_connect", "nor_conv_1x1"]
    command = [sys.executable, BENCHMARKS / "search_step.py", "--smoke", *settings]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 3
    record = json.loads((tmp_path / "search_step.json").read_text())
    cold, warm = record["cold"], record["warm"]
    assert len(warm["seconds"]) == 2 and min(warm["seconds"]) > 0
    # The second process takes the program from the cache.
    assert warm["compile_seconds"] < cold["compile_seconds"]
    assert record["flops"] > 0 and record["search"]["space"] == "nasbench201"


def test_population(tmp_path):
    command = [sys.executable, BENCHMARKS / "population.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 6
    record = json.loads((tmp_path / "population.json").read_text())
    assert len(record["scores"]) == 3
    (row,) = record["rows"]
    for score in row["scores"].values():
        assert score == pytest.approx(record["scores"][0], rel=1e-4)


def test_precision(tmp_path):
    settings = ["--ops", "skip_connect", "nor_conv_1x1"]
    command = [sys.executable, BENCHMARKS / "precision.py", "--smoke", *settings]
    subprocess.run([*command, "--out", tmp_path], capture_output=True, check=True)
    record = json.loads((tmp_path / "precision.json").read_text())
    exact, rounded = (record["runs"][name]["trace"] for name in ("float32", "bfloat16"))
    assert exact != rounded == pytest.approx(exact, rel=0.2)
    assert -1 <= record["rows"]["cosine of alpha_T"] < 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """What the studies of selections are given: operations, and a table of all of their cells."""
    ops = ("none", "skip_connect", "nor_conv_1x1")
    path = tmp_path_factory.mktemp("study") / "table.csv"
    lines = ["arch_str,params,c10_test_200,c10valid_val_200"]
    for index, each in enumerate(itertools.product(ops, repeat=6)):
        cell = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*each)
        lines.append(f"{cell},{index},{index / 10},{index / 20}")
    path.write_text("\n".join(lines) + "\n")
    return ["--ops", *ops, "--table", path]


def test_selection(study, tmp_path):
    command = [sys.executable, BENCHMARKS / "selection.py", "--smoke", *study]
    command += ["--column", "c10_test_200", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "selection.json").read_text())
    assert done.stdout.count("\n") == 3 + len(record["rows"]) == 3 + 5
    rows = {name: row["c10_test_200"] for name, row in record["rows"].items()}
    assert [row["of"] for row in rows.values()] == [2, 6, 2, 2, 1]
    assert all(row["found"] == row["of"] for row in rows.values())
    # The last cell of the table has the most parameters there.
    assert rows["of the whole table the most parameters"]["mean"] == 72.8
    assert np.shape(record["accuracies"]) == (2, len(record["steps"]))
    found = rows["NASI, 3 steps"]["mean"]
    assert found == pytest.approx(np.mean([each[-1] for each in record["accuracies"]]))
    assert record["error of the estimates"] is None
    assert (tmp_path / "selection.png").read_bytes().startswith(b"\x89PNG")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout  # the searches were kept, their seconds too


def test_a_picture_of_no_accuracy_at_all(tmp_path):
    nothing = np.full((2, 2), np.nan)
    figure = selection.draw(np.array([1, 5]), nothing, dict.fromkeys("abcd", nothing), "val_108")
    plot.save(figure, tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


def test_ablations(study, tmp_path):
    command = [sys.executable, BENCHMARKS / "ablations.py", "--smoke", *study, "--out", tmp_path]
    subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "ablations.json").read_text())
    rows = record["rows"]
    # At T = 1 with nu out of reach, and at mu = 0, what is selected follows x alone.
    assert {"as given", "T: 1", "mu: 0", "mu: 2, nu: quantile 0.5", "labels: random"} <= rows.keys()
    assert "draws of theta_0: 2" not in rows  # every step has one
    selected = record["selected"]
    assert selected["mu: 0"] == selected["mu: 1, nu: fixed, 1000"] == selected["as given"]
    assert rows["as given"]["c10_test_200"]["mean"] == pytest.approx(
        2 * rows["as given"]["c10valid_val_200"]["mean"]
    )
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")


def test_ablations_refuse_an_unknown_row(study, tmp_path):
    command = [sys.executable, BENCHMARKS / "ablations.py", *study, "--out", tmp_path]
    done = subprocess.run([*command, "--only", "size"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("no row 'size'; known: labels: random, ")
    assert list(tmp_path.iterdir()) == []


def test_trained_order(tmp_path, data_file):
    command = [
        *(sys.executable, BENCHMARKS / "trained_order.py", "--smoke", "--out", tmp_path),
        *("--table", data_file("nasbench201_cifar10.csv"), "--column", "c10_test_200"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("trained ") == 3
    record = json.loads((tmp_path / "trained_order.json").read_text())
    tables = [row["table"] for row in record["rows"]]
    assert tables == sorted(tables)
    assert tables[-1] == pytest.approx(94.37, abs=0.01)  # the best cell of the benchmark
    assert all(0 <= row["trained"] <= 100 for row in record["rows"])
    assert (tmp_path / "trained_order.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_torch_peer(tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no PyTorch: pip install 'nasi-jax[peer]'")
    command = [sys.executable, BENCHMARKS / "torch_peer.py", "--smoke", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "torch_peer.json").read_text())["rows"]
    assert done.stdout.count("\n") == 2 + len(rows)
    assert [row["case"] for row in rows] == [
        "nasi_step",
        "forward_backward",
        "per_example",
        "trace",
        "condition_number",
    ]
    for row in rows:
        assert min(row["torch"]["seconds"]) > 0 and min(row["ours"]["seconds"]) > 0


def test_torch_peer_says_what_it_needs(tmp_path):
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("PyTorch is installed")
    command = [sys.executable, BENCHMARKS / "torch_peer.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "PyTorch is not installed: pip install 'nasi-jax[peer]'\n"
