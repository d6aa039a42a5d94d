"""The benchmarks run from end to end at their smallest size, most of them as slow tests."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import selection
import turns

from nasi_jax import parse_genotype
from nasi_jax.report.figures import save

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_agnosticism(run, tmp_path):
    assert run("agnosticism", "--smoke", "--out", tmp_path).count("Pearson") == 2
    record = json.loads((tmp_path / "agnosticism.json").read_text())
    assert {len(values) for values in record["scores"].values()} == {8}
    for figure in record["correlations"].values():
        pearson = figure["pearson"]
        assert pearson["low"] <= pearson["value"] <= pearson["high"]
    assert (tmp_path / "agnosticism.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_agreement(run, tmp_path, capsys):
    """Of one version with itself, and of scores that another one would not have."""
    first, second = tmp_path / "first", tmp_path / "second"
    run("agreement", "--smoke", "--out", first)
    again = ("agreement", "--smoke", "--out", second, "--against", first)
    printed = run(*again)
    assert "batch_gradient" in printed and "0e+00" in printed
    record = json.loads((first / "agreement.json").read_text())
    record["scores"]["nasbench201"]["num_params"][1] *= 1.01
    (first / "agreement.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="differs by more than"):
        run(*again)
    assert "1e-02" in capsys.readouterr().out


@pytest.mark.slow
def test_estimators(run, tmp_path):
    printed = run("estimators", "--smoke", "--out", tmp_path)
    rows = json.loads((tmp_path / "estimators.json").read_text())["rows"]
    assert printed.count("\n") == 2 + len(rows)
    assert all(len(row["seconds"]) == 2 for row in rows)
    traces = {row["quantity"]: row["trace"] for row in rows}
    assert 0 < traces["batch_gradient"] <= 4 * traces["per_example_gradient"]
    assert traces["per_example_gradient"] <= traces["ntk_trace"]
    for name in ("random_cotangent over classes, 1 probe", "ntk_trace"):
        assert traces[f"{name} by vmap(grad)"] == pytest.approx(traces[name], rel=1e-5)


@pytest.mark.slow
def test_norm_modes(run, tmp_path):
    assert run("norm_modes", "--smoke", "--out", tmp_path).count("Kendall") == 3
    record = json.loads((tmp_path / "norm_modes.json").read_text())
    assert all(len(values) == 4 for values in record["traces"].values())


def test_proposition1(run, tmp_path):
    assert run("proposition1", "--smoke", "--out", tmp_path).count("bound held") == 2
    record = json.loads((tmp_path / "proposition1.json").read_text())
    for runs in record["runs"].values():
        assert len(runs) == 2
        assert all(len(run["actual"]) == len(run["predicted"]) == 21 for run in runs)
        assert all(run["actual"][0] == pytest.approx(run["predicted"][0]) for run in runs)
    assert (tmp_path / "proposition1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_size_of_x(run, tmp_path):
    """One space: x of each candidate, positive and different from the others'."""
    printed = run("size_of_x", "--smoke", "--out", tmp_path)
    assert "hard, squared error: nu within in " in printed
    record = json.loads((tmp_path / "size_of_x.json").read_text())
    (rows,) = record["spaces"].values()
    values = [row["x"] for row in rows.values()]
    assert len(values) == 11 and np.min(values) > 0
    assert len({each[0] for each in values}) == len(values)
    # Three of each convolution, of which a vertex has three, a cell one, and the network two.
    assert record["tensors"]["nasbench1shot1-1"] == 3 * (3 * (4 * 3 + 1) + 2) + 2
    assert (tmp_path / "size_of_x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_darts_cells(run, tmp_path):
    printed = run("darts_cells", "--smoke", "--classes", 12, "--out", tmp_path)
    assert printed.count("of the edges agree") == 3
    record = json.loads((tmp_path / "darts_cells.json").read_text())
    for variant in ("nasi-fix", "nasi-ada"):
        texts = (tmp_path / f"{variant}.txt").read_text().splitlines()
        assert texts == [row["genotype"] for row in record["rows"][variant]]
        assert len({parse_genotype(text) for text in texts}) == 2
    images = np.load(tmp_path / "12_random_classes.npz")
    assert np.unique(images["y_train"]).tolist() == list(range(12))


@pytest.mark.slow
def test_preferences(run, tmp_path):
    printed = run("preferences", "--smoke", "--relaxations", "soft", "path", "--out", tmp_path)
    assert printed.count("in s.e.:") == 2
    record = json.loads((tmp_path / "preferences.json").read_text())
    for values in record["slopes"].values():
        assert np.shape(values) == (2, 4, 3)
        # The weights of a row sum to one, or the derivative is that of weights that do.
        np.testing.assert_allclose(np.sum(values, axis=-1), 0, atol=1e-5)
    assert record["slopes"]["soft"] != record["slopes"]["path"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_population(run, tmp_path):
    assert run("population", "--smoke", "--out", tmp_path).count("\n") == 6
    record = json.loads((tmp_path / "population.json").read_text())
    assert len(record["scores"]) == 3
    (row,) = record["rows"]
    for score in row["scores"].values():
        assert score == pytest.approx(record["scores"][0], rel=1e-4)


def test_compile_for(tmp_path):
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("no compiler for a GPU: pip install 'nasi-jax[aot]'")
    path = tmp_path / "records.json"
    command = [sys.executable, BENCHMARKS / "compile_for.py", "--smoke", "--target", "h100"]
    command += ["--only", "score/nasbench201/init", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (record,) = json.loads(path.read_text())
    assert record["name"] == "score/nasbench201/init"
    assert record["launches"] > 0 and record["error"] is None
    assert f" {record['launches']:,} | 1 |" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_precision(run, tmp_path):
    settings = ("--ops", "skip_connect", "nor_conv_1x1")
    run("precision", "--smoke", *settings, "--out", tmp_path)
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


@pytest.mark.slow
def test_selection(run, study, tmp_path):
    command = ("selection", "--smoke", *study, "--column", "c10_test_200", "--out", tmp_path)
    printed = run(*command)
    record = json.loads((tmp_path / "selection.json").read_text())
    assert printed.count("\n") == 3 + len(record["rows"]) == 3 + 5
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
    assert run(*command) == printed  # the searches were kept, their seconds too


TIMED = """
import pathlib, sys, time
print("compiling this", flush=True)
time.sleep(float(sys.argv[1]))
print("compiled in 0.1 s", flush=True)
begin = time.monotonic()
time.sleep(float(sys.argv[2]))
pathlib.Path(sys.argv[3]).write_text(f"{begin} {time.monotonic()}")
"""
TICKING = """
import pathlib, sys, time
with open(sys.argv[1], "w", buffering=1) as file:
    while True:
        print(time.monotonic(), file=file)
        time.sleep(0.01)
"""
UNTOUCHED = 0.2
"""Seconds at the ends of a turn in which others may still run, on a busy machine."""


def turn_of(path):
    begin, end = map(float, path.read_text().split())
    return begin + UNTOUCHED, end


def took_turns(programs, seconds=60.0, jobs=4):
    ended, lines = {}, []
    turns.run(
        programs,
        jobs=jobs,
        seconds=seconds,
        log=lines.append,
        on_end=lambda program, outcome: ended.setdefault(program.name, outcome),
    )
    return ended, lines


def python(name, source, *arguments, limit=60.0, timed=True):
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return turns.Program(name, command, limit, timed)


def test_what_is_timed_runs_alone(tmp_path):
    ticks = tmp_path / "ticks"
    programs = [
        python("first", TIMED, 0.5, 2.0, tmp_path / "first"),
        python("second", TIMED, 1.5, 1.0, tmp_path / "second"),
        python("ticking", TICKING, ticks, limit=3.0, timed=False),
    ]
    ended, lines = took_turns(programs)
    assert [outcome.code for outcome in ended.values()].count(0) == 2
    assert ended["ticking"].code is None and 3.0 <= ended["ticking"].seconds < 4.0
    first, second = (turn_of(tmp_path / name) for name in ("first", "second"))
    assert first[1] < second[0]  # it was compiling when the other's turn began
    times = np.array([float(line) for line in ticks.read_text().split()])
    for begin, end in (first, second):
        assert not np.any((begin < times) & (times < end))
    assert np.any(times > second[1]), "it goes on"
    assert ended["first"].stopped_compiling == 0
    assert 1.5 < ended["second"].stopped_compiling < 3.0
    assert ended["second"].seconds < 4.5  # without those
    assert any(line.startswith("first: compiled in") for line in lines)


def test_what_does_not_end_is_ended():
    ended, _ = took_turns([python("one", TIMED, 60, 0, "-"), python("two", TIMED, 0, 0, "-")], 1, 1)
    assert ended.keys() == {"one"} and ended["one"].code is None
    failing = python("failing", "raise SystemExit(3)")
    ended, _ = took_turns([python("late", TIMED, 60, 0, "-", limit=0.5), failing], jobs=1)
    assert (ended["late"].code, ended["failing"].code) == (None, 3)


def on_device(out, *arguments):
    command = [sys.executable, BENCHMARKS / "on_device.py", "--smoke", "--device", "cpu"]
    return subprocess.run([*command, "--out", out, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_on_device(tmp_path):
    done = on_device(tmp_path, "search-nasbench201", "memory", "profile")
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "table.md").read_text()
    assert found in done.stdout and "FAILED" not in found
    record = json.loads((tmp_path / "on_device.json").read_text())
    (search,), (memory,) = record["rows"]["search-nasbench201"], record["rows"]["memory"]
    step, *kernels = record["rows"]["profile"]
    assert step["what"] == "search/nasbench201" and len(step["seconds"]) == 3
    assert len(kernels) == 10 and 0 < kernels[9]["seconds"][0] <= kernels[0]["seconds"][0]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(search["seconds"]) == 3
    whole = search["compile_seconds"] + 100 * np.median(search["seconds"])
    assert search["whole"] == pytest.approx(whole)
    assert memory["says"].startswith("exit 1, ") and "Unable to allocate" in memory["says"]
    assert "compiled in" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_on_device_tells_what_failed(tmp_path):
    done = on_device(tmp_path, "search-nasbench201", "--data", tmp_path / "none.npz")
    assert done.returncode == 0
    assert "FAILED: exit 2: nasi: error: " in (tmp_path / "table.md").read_text()
    done = on_device(tmp_path, "speed")
    assert done.returncode == 1 and done.stderr.startswith("unknown part 'speed'; known: search-")


@pytest.mark.nightly
def test_on_device_whole(tmp_path):
    """All parts, but for those of PyTorch where it is not installed."""
    done = on_device(tmp_path, "--seconds", "3000")
    assert done.returncode == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    failed = [line for line in lines if "FAILED" in line]
    if importlib.util.find_spec("torch") is None:
        failed = [line for line in failed if "PyTorch is not installed" not in line]
    assert failed == []
    assert sum("| oracles |" in line for line in lines) == 6
    assert sum("| resume |" in line for line in lines) == 6


def test_a_picture_of_no_accuracy_at_all(tmp_path):
    nothing = np.full((2, 2), np.nan)
    figure = selection.draw(np.array([1, 5]), nothing, dict.fromkeys("abcd", nothing), "val_108")
    save(figure, tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_ablations(run, study, tmp_path):
    run("ablations", "--smoke", *study, "--out", tmp_path)
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


def test_ablations_refuse_an_unknown_row(run, study, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("ablations", *study, "--out", tmp_path, "--only", "size")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("no row 'size'; known: labels: random, ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_trained_order(run, tmp_path, data_file):
    table = ("--table", data_file("nasbench201_cifar10.csv"), "--column", "c10_test_200")
    assert run("trained_order", "--smoke", "--out", tmp_path, *table).count("trained ") == 3
    record = json.loads((tmp_path / "trained_order.json").read_text())
    tables = [row["table"] for row in record["rows"]]
    assert tables == sorted(tables)
    assert tables[-1] == pytest.approx(94.37, abs=0.01)  # the best cell of the benchmark
    assert all(0 <= row["trained"] <= 100 for row in record["rows"])
    assert (tmp_path / "trained_order.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_proxy_costs(run, tmp_path):
    sizes = ("--num-cells", 1, "--init-channels", 2, "--image-size", 8, "--batch-size", 4)
    printed = run(
        *("proxy_costs", *sizes, "--proxies", "jacov", "naswot", "--cells", 2, "--out", tmp_path)
    )
    costs = json.loads((tmp_path / "proxy_costs.json").read_text())["costs"]
    assert list(costs)[:3] == ["a forward pass", "jacov", "naswot"] and len(costs) == 4
    assert all(each["seconds"] > 0 and each["compile_seconds"] > 0 for each in costs.values())
    assert "| a forward pass |" in printed and "together takes" in printed


@pytest.mark.nightly
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
        "training_step",
        "five_proxies",
    ]
    for row in rows:
        assert min(row["torch"]["seconds"]) > 0 and min(row["ours"]["seconds"]) > 0


def test_torch_peer_says_what_it_needs(run, tmp_path, capsys):
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("PyTorch is installed")
    with pytest.raises(SystemExit) as stopped:
        run("torch_peer", "--out", tmp_path)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "PyTorch is not installed: pip install 'nasi-jax[peer]'\n"
