"""Programs compiled for devices that are not there, and the benchmark that compiles all."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import compile_for
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.config import SearchConfig
from nasi_jax.devices import deviceless
from nasi_jax.devices.launches import Launches, Loop
from nasi_jax.kernels import PROXIES
from nasi_jax.runs.plan import search_step
from nasi_jax.training.recipes import RECIPES

SCRIPT = Path(compile_for.__file__)
on_gpu = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="no compiler for a GPU: pip install 'nasi-jax[aot]'",
)
on_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no compiler for a TPU: pip install 'nasi-jax[aot-tpu]'",
)


def scanned(length):
    """A function with a loop of so many iterations, in each of which nothing can be fused."""

    def function(x):
        def step(x, _):
            return jnp.sin(x @ x) @ x, None

        return jax.lax.scan(step, x, length=length)[0]

    return function


def compile_in_a_process(target, *lengths):
    """What a process of its own says of `scanned`, which finds no plugin that others loaded."""
    source = (
        "import dataclasses, json, jax, test_deviceless; from nasi_jax.devices import deviceless\n"
        "x = jax.ShapeDtypeStruct((64, 64), 'float32')\n"
        f"for length in {lengths}:\n"
        "  function = test_deviceless.scanned(length)\n"
        f"  found = deviceless.compile_for({target!r}, function, x, name='scan', samples=3)\n"
        "  print(json.dumps(dataclasses.asdict(found)))\n"
    )
    folders = [Path(__file__).parent, SCRIPT.parent, *sys.path]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()[-len(lengths) :]]


@on_gpu
def test_a_scan_for_a_gpu():
    found, longer = compile_in_a_process("h100", 7, 11)
    assert (found["name"], found["samples"]) == ("scan", 3)
    assert min(found["lower_seconds"], found["compile_seconds"], found["code_megabytes"]) > 0
    assert found["temporary_megabytes"] >= 64 * 64 * 4 / 1e6
    (loop,) = found["details"]["loops"]
    assert (loop["trips"], loop["known"]) == (7, True)
    # Two products, of which each is a launch at least; what is outside the loop stays the same.
    assert loop["launches"] >= 2
    assert longer["launches"] - found["launches"] == 4 * loop["launches"]


@on_tpu
def test_a_scan_for_a_tpu():
    (found,) = compile_in_a_process("v5e", 7)
    assert found["launches"] is None and found["details"] is None
    assert min(found["lower_seconds"], found["compile_seconds"], found["code_megabytes"]) > 0


def test_an_unknown_target():
    with pytest.raises(ValueError, match="unknown target 'h1000'; known: h100, v5e"):
        deviceless.device_of("h1000")


@pytest.mark.parametrize("target, extra", [("h100", "aot"), ("v5e", "aot-tpu")])
@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_a_missing_compiler_names_the_extra(monkeypatch, target, extra, error):
    def missing(**_):
        raise error("there is none\nof these")

    monkeypatch.setattr(deviceless.topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError) as raised:
        deviceless.device_of.__wrapped__(target)
    assert str(raised.value) == (
        f"no compiler for target {target}: pip install 'nasi-jax[{extra}]', and set "
        "JAX_PLATFORMS=cpu where there is no such device (there is none)"
    )


def test_the_description_of_a_gpu_is_in_the_package():
    described = deviceless.TARGETS["h100"].topology()["target_config"]
    assert 'name: "NVIDIA H100 80GB HBM3"' in described


class _Lowered:
    """Stands in for what is compiled for a device, as this test has none."""

    def compile(self):
        return self

    def memory_analysis(self):
        class Memory:
            temp_size_in_bytes, generated_code_size_in_bytes = 2_000_000, 3_000_000

        return Memory


def test_shapes_are_placed_and_code_that_asks_hears_of_the_target(monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setattr(deviceless, "device_of", lambda target: device)
    seen = {}

    class Jitted:
        def __call__(self):
            raise AssertionError("nothing is computed")

        def lower(self, *arguments):
            seen.update(arguments=arguments, backend=jax.default_backend())
            return _Lowered()

    state = {"a": np.zeros((2, 3), np.int8), "b": None}
    found = deviceless.compile_for("v5e", Jitted(), state, jax.random.key(0), 1.0, name="f")
    (placed, key, number) = seen["arguments"]
    assert (placed["a"].shape, placed["a"].dtype, placed["b"]) == ((2, 3), jnp.int8, None)
    assert placed["a"].sharding == jax.sharding.SingleDeviceSharding(device)
    assert key.dtype == jax.random.key(0).dtype and number.weak_type
    assert seen["backend"] == "tpu" and jax.default_backend() == "cpu"
    assert (found.temporary_megabytes, found.code_megabytes, found.samples) == (2.0, 3.0, 1)


# What follows is of the benchmark.

FULL, SMOKE = (compile_for.Sizes(smoke=smoke) for smoke in (False, True))


def test_there_is_a_program_for_each_thing_that_the_commands_run():
    names = list(compile_for.programs(FULL))
    assert names == list(compile_for.programs(SMOKE))
    assert {f"search/{space}" for space in SEARCH_SPACES} < set(names)
    assert {f"score/{space}/{proxy}" for space in SEARCH_SPACES for proxy in PROXIES} < set(names)
    assert {f"train/{name}{part}" for name in RECIPES for part in ("", "/evaluate")} < set(names)
    assert "predict" in names


def test_the_settings_of_the_searches_are_the_papers():
    search, _ = compile_for.programs(FULL)["search/darts"].args
    assert (search.batch_size, search.constraint_rule, search.constraint) == (64, "fixed", 100.0)
    assert (search.penalty, search.redraw, search.num_cells) == (2.0, False, None)
    for number in (1, 2, 3):
        search, _ = compile_for.programs(FULL)[f"search/nasbench1shot1-{number}"].args
        assert (search.batch_size, search.penalty, search.redraw) == (64, 1.0, False)


@pytest.mark.parametrize(
    "name", ["search/nasbench201", "score/nasbench1shot1-1/synflow", "train/quick", "predict"]
)
def test_programs_can_be_traced(name):
    program = compile_for.programs(SMOKE)[name]()
    jax.eval_shape(program.function, *program.arguments)
    assert program.samples == {"train/quick": 64, "predict": 64}.get(name, 1)


def test_scores_are_those_of_the_command_and_in_the_smallest_size_alone():
    name = "score/nasbench201/grad_norm"
    for config, scores in ((FULL, {"num_params", "flops", "grad_norm"}), (SMOKE, {"grad_norm"})):
        program = compile_for.programs(config)[name]()
        assert program.matmul_precision == "highest"
        assert jax.eval_shape(program.function, *program.arguments).keys() == scores


def test_several_cells_are_scored_in_one_call():
    config = dataclasses.replace(SMOKE, archs_per_call=3)
    program = compile_for.programs(config)["score/nasbench201/grad_norm"]()
    scores = jax.eval_shape(program.function, *program.arguments)
    assert program.samples == 3 and scores["grad_norm"].shape == (3,)


def test_names_are_chosen_by_their_first_parts():
    names = list(compile_for.programs(SMOKE))
    assert compile_for.chosen(names, ()) == names
    assert compile_for.chosen(names, ("train/darts-cifar10", "search/darts")) == [
        "search/darts",
        "train/darts-cifar10",
        "train/darts-cifar10/evaluate",
    ]
    for name in ("samples_per_step", "archs_per_call"):
        flag = "--" + name.replace("_", "-")
        with pytest.raises(ValueError, match=f"{flag} must be at least 1 here, got 0"):
            compile_for.programs(dataclasses.replace(SMOKE, **{name: 0}))
    with pytest.raises(ValueError, match=r"no program 'train/darts-cifar'; known: search/darts, "):
        compile_for.chosen(names, ("train/darts-cifar",))


def aborts():
    os.write(2, b"F0000 00:00:1 2 tiling.cc:43] Check failed: a == b (64 vs. 16)\n*** dies ***\n")
    os.kill(os.getpid(), signal.SIGABRT)


def raises():
    raise ValueError("it is wrong\nin two lines")


def waits():
    signal.pause()


@pytest.mark.parametrize(
    "function, limit, reason",
    [
        (aborts, 60, r"aborted: tiling\.cc Check failed: a == b \(64 vs\. 16\)"),
        (raises, 60, "it is wrong"),
        (waits, 1, "not done after 1 s"),
    ],
)
def test_what_goes_wrong_in_a_process_of_its_own(function, limit, reason):
    with pytest.raises(compile_for.Failed, match=f"^{reason}$"):
        compile_for.isolated(limit, function)


def test_a_process_of_its_own():
    pid, parent = compile_for.isolated(60, ids)
    assert pid != os.getpid() != parent


def ids():
    return os.getpid(), os.getppid()


def test_why_a_process_died_without_a_check():
    assert compile_for.reason_of("", -9) == "exit code -9"
    assert compile_for.reason_of("one\ntwo\n\n", -11) == "exit code -11, two"


def found(name, trips_known):
    loop = Loop("body", "jit(f)/while", 1, 7, 2, trips_known)
    details = Launches({"fusion": 1014}, (loop,))
    return deviceless.Compiled(name, 1.0, 2.0, 3.0, 4.0, 1014, 5, details)


def test_records_and_loops():
    config = compile_for.Config(target="h100", smoke=True, loops=1)
    record = compile_for.record_of(config, compile_for.Outcome("a", found("a", False)))
    assert {field.name for field in dataclasses.fields(deviceless.Compiled)} - {"details"} < set(
        record
    )
    assert (record["launches"], record["unknown_loops"], record["error"]) == (1014, 1, None)
    assert record["target"] == "h100" and record["smoke"] and record["versions"]["jax"]
    assert record["loops"][0]["trips"] == 7
    lost = compile_for.record_of(config, compile_for.Outcome("b", error="aborted: why"))
    assert record.keys() == lost.keys()
    assert (lost["name"], lost["launches"], lost["error"]) == ("b", None, "aborted: why")
    assert compile_for.launches_of(found("a", False)) == "≥ 1,014"
    assert compile_for.launches_of(found("a", True)) == "1,014"
    first, second = compile_for.loops_of(found("a", True), 1)
    assert first == "a: 1,014 launches, of them 1,014 fusion"
    assert " ".join(second.split()) == "14 = 1 times 7 iterations of 2: jit(f)/while"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target", "h1000"], "unknown target 'h1000'; known: h100, v5e\n"),
        (["--target", "h100", "--only", "serch"], "no program 'serch'; known: search/darts, "),
    ],
)
def test_wrong_arguments_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["compile_for.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        compile_for.main()
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1


def test_what_failed_is_a_row_and_the_rest_goes_on(monkeypatch, capsys, tmp_path):
    def isolated(limit, function, *arguments):
        if function is compile_for.compiled and arguments[1].endswith("evaluate"):
            raise compile_for.Failed("aborted: a check")
        return None if function is compile_for.check_compiler else found(arguments[1], True)

    monkeypatch.setattr(compile_for, "isolated", isolated)
    path = tmp_path / "records.json"
    only = ["search/darts", "train/quick", "predict"]
    arguments = ["--target", "h100", "--only", *only, "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["compile_for.py", *arguments])
    with pytest.raises(SystemExit, match="1"):
        compile_for.main()
    said = capsys.readouterr()
    names = ["search/darts", "train/quick", "train/quick/evaluate", "predict"]
    assert "1 of 4 programs were not compiled" in said.err
    rows = [line.split("|") for line in said.out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == names
    assert [row[-2].strip() for row in rows[1:]] == ["", "", "aborted: a check", ""]
    records = json.loads(path.read_text())
    assert [record["error"] for record in records] == [None, None, "aborted: a check", None]


def test_a_search_for_a_gpu_takes_edges_together():
    """Its scans over the six edges of a NAS-Bench-201 cell are over three steps there."""
    settings = {"init_channels": 2, "num_cells": 2, "ops": ("skip_connect", "nor_conv_1x1")}
    config = SearchConfig(space="nasbench201", redraw=False, batch_size=2, image_size=8, **settings)

    def lengths():
        program = search_step(config.resolved(), 10)
        text = str(jax.make_jaxpr(program.function)(*program.arguments))
        return set(re.findall(r"length=(\d+)", text))

    alone = lengths()
    with deviceless.chosen_as_for("h100"):
        together = lengths()
    assert "6" in alone and "6" not in together and "3" in together
