"""Searches from a configuration to a directory, killed and resumed."""

import csv
import dataclasses
import errno
import importlib.metadata
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest
import tiny
from helpers import held

from nasi_jax import directory, experiment, files
from nasi_jax.cells import genotype_from_dict, parse_genotype
from nasi_jax.config import SearchConfig, from_dict, to_dict

STEPS = tiny.CONFIG.steps


class Stopped(Exception):
    """What a test ends a search with."""


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(tmp_path_factory):
    with tiny.quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished search: its directory, what `search` returned, and what it told of itself."""
    out = tmp_path_factory.mktemp("finished") / "made" / "here"
    told = []

    def on_progress(stage, steps, run):
        told.append((stage, steps, None if run is None else len(run.step_seconds)))

    result = experiment.search(tiny.CONFIG, out, on_progress=on_progress)
    return out, result, told


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished search's directory."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def snapshot(out):
    """The bytes and the times of all files in a directory."""
    return {
        path.relative_to(out): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file()
    }


def contents(out):
    return {name: content for name, (content, _) in snapshot(out).items()}


def read(out):
    """`result.json` and the rows of `history.csv`, without their seconds."""
    result = json.loads((out / "result.json").read_text())
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    del result["seconds"]
    for row in rows:
        del row["seconds"]
    return result, rows


def column(rows, name):
    return np.array([float(row[name]) for row in rows])


def test_all_files_are_there_and_nothing_else(finished):
    out, _, _ = finished
    assert sorted(os.listdir(out)) == sorted([".lock", *experiment.FILES])
    assert (out / "cells.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "history.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "cells.svg").read_bytes()


def test_progress_is_told_of_every_stage_and_step(finished):
    assert finished[2] == [
        ("compiling", STEPS, None),
        ("compiled", STEPS, None),
        *[("searching", STEPS, done) for done in range(1, STEPS + 1)],
        ("drawing", STEPS, STEPS),
    ]


def test_a_whole_search_compiles_its_step_once(tmp_path):
    compiled, told = [], []

    def on_event(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    def on_progress(stage, steps, run):
        told.append((stage, len(compiled)))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        experiment.search(tiny.CONFIG, tmp_path, on_progress=on_progress)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_event)
    assert compiled.count("jit(step_fn)") == 1
    assert [stage for stage, _ in told] == [
        "compiling",
        "compiled",
        *STEPS * ["searching"],
        "drawing",
    ]
    # After the first step nothing at all.
    assert len({count for stage, count in told if stage in ("searching", "drawing")}) == 1


def test_the_result_says_what_was_searched_and_how(finished):
    out, returned, _ = finished
    result = json.loads((out / "result.json").read_text())
    assert result == json.loads(json.dumps(returned))
    assert result["space"] == "nasbench201"
    assert from_dict(result["config"], SearchConfig) == tiny.CONFIG.resolved()
    assert json.loads((out / "config.json").read_text()) == result["config"]
    assert (result["seed"], result["norm"], result["num_classes"]) == (2, "none", 10)
    assert genotype_from_dict(result["genotype"]).to_text() == result["text"]
    assert parse_genotype(result["text"]).to_text() == result["text"]
    assert result["seconds"]["compile"] > 0 and result["seconds"]["search"] > 0
    assert result["device"].startswith(("cpu: ", "gpu: "))
    assert result["versions"].keys() >= {"python", "nasi-jax", "jax", "jaxlib", "flax", "numpy"}


def test_versions_of_extras_stand_there_where_they_were_used(monkeypatch):
    known = importlib.metadata.version

    def version(name):
        if name == "tensorflow-datasets":  # where the module is that of tfds-nightly
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.6" if name == "neural-tangents" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.delitem(sys.modules, "neural_tangents", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.ModuleType("tfds"))
    assert "neural-tangents" not in directory.provenance()["versions"]
    monkeypatch.setitem(sys.modules, "neural_tangents", types.ModuleType("neural_tangents"))
    versions = directory.provenance()["versions"]
    assert versions["neural-tangents"] == "0.6"
    assert "tensorflow-datasets" not in versions


def text_of(edges):
    """A NAS-Bench-201 cell from the scores of the operations on each edge, by name."""
    ops = {edge: max(scores, key=scores.get) for edge, scores in edges.items()}
    nodes = [
        [f"{ops[f'{source}->{node}']}~{source}" for source in range(node)] for node in (1, 2, 3)
    ]
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


def test_the_text_is_the_argmax_of_the_written_alpha(finished):
    result, _ = read(finished[0])
    (edges,) = result["alpha"].values()
    assert list(edges) == ["0->1", "0->2", "1->2", "0->3", "1->3", "2->3"]
    assert all(set(scores) == set(tiny.CONFIG.ops) for scores in edges.values())
    assert result["text"] == text_of(edges)


def test_the_choices_follow_from_the_written_alpha(finished):
    result, _ = read(finished[0])
    (edges,) = result["alpha"].values()
    assert [choice["name"] for choice in result["choices"]] == list(edges)
    for choice in result["choices"]:
        scores = edges[choice["name"]]
        assert scores[choice["winner"]] == max(scores.values())
        margin = scores[choice["winner"]] - scores[choice["runner_up"]]
        assert choice["margin"] == pytest.approx(margin, abs=1e-6)
        ratio = choice["margin"] / choice["standard_error"]
        assert choice["margin_in_standard_errors"] == pytest.approx(ratio)


def test_the_history_has_a_row_a_step(finished):
    result, rows = read(finished[0])
    assert [row["step"] for row in rows] == [str(step) for step in range(1, STEPS + 1)]
    assert rows[-1]["selected"] == result["text"]
    assert np.all(column(rows, "gradient_norm") > 0)
    x, nu = column(rows, "x"), column(rows, "nu")
    np.testing.assert_allclose(
        column(rows, "objective"), x - 2 * np.maximum(0, x - nu), rtol=1e-6, atol=1e-6 * x.max()
    )
    with (finished[0] / "history.csv").open() as file:
        assert all(float(row["seconds"]) > 0 for row in csv.DictReader(file))


def test_an_adaptive_nu_is_the_mean_of_what_came_before(finished):
    _, rows = read(finished[0])
    x = column(rows, "x")
    terms = np.concatenate([[1000.0], x[:-1]])
    expected = np.cumsum(terms) / np.arange(1, STEPS + 1)
    np.testing.assert_allclose(column(rows, "nu"), expected, rtol=1e-6)


def test_a_search_repeats_bit_for_bit(finished, tmp_path):
    experiment.search(tiny.CONFIG, tmp_path)
    assert read(tmp_path) == read(finished[0])


SMALL = {
    "darts": (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), 3),
    "nasbench1shot1-1": (("conv1x1-bn-relu", "maxpool3x3"), 1),
    "nasbench1shot1-2": (("conv1x1-bn-relu", "maxpool3x3"), 1),
    "nasbench1shot1-3": (("conv1x1-bn-relu", "maxpool3x3"), 1),
}


@pytest.mark.parametrize(
    "space",
    [
        "nasbench1shot1-1",
        *[
            pytest.param(space, marks=pytest.mark.slow)
            for space in ("darts", "nasbench1shot1-2", "nasbench1shot1-3")
        ],
    ],
)
def test_each_space_is_searched_through(space, tmp_path):
    ops, num_cells = SMALL[space]
    config = dataclasses.replace(
        tiny.CONFIG,
        space=space,
        variant="nasi-fix",
        ops=ops,
        num_cells=num_cells,
        steps=1,
        data="gaussian",
    )
    result = experiment.search(config, tmp_path)
    written, rows = read(tmp_path)
    assert written["space"] == space
    assert result["text"] == rows[-1]["selected"] == written["text"]
    assert parse_genotype(result["text"]) == genotype_from_dict(result["genotype"])
    assert ("module_hash" in result) == ("pruned" in result) == space.startswith("nasbench1shot1")
    constraint = config.resolved().constraint
    assert column(rows, "nu").tolist() == [constraint]
    # One step says nothing of the noise.
    assert all(choice["margin_in_standard_errors"] in (None, 0) for choice in written["choices"])


KILLED = """
    import os, signal, sys, threading
    from pathlib import Path

    import orbax.checkpoint as ocp
    import tiny
    from nasi_jax import experiment

    out, point = Path(sys.argv[1]), sys.argv[2]

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def on_progress(stage, steps, run):
        if point == (stage if run is None or stage == "drawing" else str(len(run.step_seconds))):
            die()

    def die_while_it_is_written():
        while not list((out / "checkpoint").glob("2.*")):
            pass
        die()

    if point == "writing":
        threading.Thread(target=die_while_it_is_written, daemon=True).start()
    experiment._SECONDS_BETWEEN_CHECKPOINTS = 0
    experiment.search(tiny.CONFIG, out, resume=True, on_progress=on_progress)
"""


def kill(out, point):
    """Runs a search, or goes on with one, in a process that kills itself at a point of it."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(out), point],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "result.json").exists()


def checkpoints(out):
    return sorted(os.listdir(out / "checkpoint"))


def test_a_search_killed_again_and_again_ends_as_an_unbroken_one(finished, tmp_path):
    kill(tmp_path, "compiling")
    assert checkpoints(tmp_path) == []
    kill(tmp_path, "1")
    assert checkpoints(tmp_path) == ["1"]
    kill(tmp_path, "writing")
    half, whole = sorted(checkpoints(tmp_path), key=len, reverse=True)
    assert whole == "1" and half.startswith("2.")
    kill(tmp_path, "2")
    assert checkpoints(tmp_path) == ["2"]
    kill(tmp_path, "drawing")
    assert checkpoints(tmp_path) == ["3"]
    told = []
    experiment.search(
        tiny.CONFIG,
        tmp_path,
        resume=True,
        on_progress=lambda stage, steps, run: told.append(stage),
    )
    assert told == ["drawing"]
    assert read(tmp_path) == read(finished[0])


def stop(out, done, **options):
    """Ends a search by an exception after some steps."""

    def on_progress(stage, steps, run):
        if (0 if run is None else len(run.step_seconds)) == done:
            raise Stopped

    with pytest.raises(Stopped):
        experiment.search(tiny.CONFIG, out, on_progress=on_progress, **options)


@pytest.fixture
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(experiment, "_SECONDS_BETWEEN_CHECKPOINTS", 0)


def test_a_search_goes_on_from_its_checkpoint(finished, tmp_path, every_step_is_kept):
    stop(tmp_path, 2)
    assert checkpoints(tmp_path) == ["2"]
    told = []

    def on_progress(stage, steps, run):
        told.append((stage, None if run is None else len(run.step_seconds)))

    experiment.search(tiny.CONFIG, tmp_path, resume=True, on_progress=on_progress)
    assert told == [
        *[("compiling", None), ("compiled", None)],
        *[("searching", 3), ("drawing", 3)],
    ]
    assert read(tmp_path) == read(finished[0])


def test_between_checkpoints_nothing_is_written(tmp_path):
    stop(tmp_path, 2)
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_a_frozen_reference_and_a_quantile_survive_a_stop(tmp_path, every_step_is_kept):
    config = dataclasses.replace(
        tiny.CONFIG, norm="frozen", constraint_rule="quantile", constraint_samples=3, steps=2
    )
    experiment.search(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")

    def on_progress(stage, steps, run):
        if run is not None:
            raise Stopped

    with pytest.raises(Stopped):
        experiment.search(config, tmp_path / "broken", overwrite=True, on_progress=on_progress)
    assert checkpoints(tmp_path / "broken") == ["1"]
    experiment.search(config, tmp_path / "broken", resume=True)
    assert read(tmp_path / "broken") == read(tmp_path / "whole")
    nu = column(read(tmp_path / "whole")[1], "nu")
    assert nu[0] == nu[1] != tiny.CONFIG.resolved().constraint


def test_resuming_a_finished_search_writes_the_same_again(copy, finished):
    for name in ("cells.png", "history.csv", "result.json"):
        (copy / name).unlink()
    result = experiment.search(tiny.CONFIG, copy, resume=True)
    assert contents(copy) == contents(finished[0])
    assert result == finished[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "the search to resume has seed 2 not 3"),
        (
            {"steps": 4, "temperature": 0.5},
            "the search to resume has steps 3 not 4, temperature 1.0 not 0.5",
        ),
        ({"variant": "nasi-fix"}, "variant nasi-ada not nasi-fix, constraint_rule adaptive not "),
    ],
)
def test_other_settings_are_not_resumed(copy, change, message):
    before = snapshot(copy)
    with pytest.raises(ValueError) as caught:
        experiment.search(dataclasses.replace(tiny.CONFIG, **change), copy, resume=True)
    assert message in str(caught.value)
    assert snapshot(copy) == before


def test_an_unresolved_configuration_is_the_same_once_resolved(copy):
    (copy / "config.json").write_text(json.dumps(to_dict(tiny.CONFIG)))
    experiment.search(tiny.CONFIG, copy, resume=True)
    assert experiment.saved_config(copy) == tiny.CONFIG.resolved()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b'{"seed": 1', "Expecting"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 100_000, ""),
        (b"[]", "an object of settings, got list"),
        (b'{"step": 1}', "unknown setting step; known: batch_size, "),
        (b'{"steps": "many"}', "steps must be an integer, got 'many'"),
        (b'{"temperature": null}', "temperature must be a number, got None"),
        (b'{"penalty": NaN}', "penalty must be from 0 to 1e+30, got nan"),
        (b'{"ops": "skip_connect"}', "ops must be a list of names, got 'skip_connect'"),
        (b'{"variant": "nasi"}', "unknown variant 'nasi'; known: nasi-fix, nasi-ada"),
    ],
)
def test_a_spoilt_configuration_is_not_resumed(copy, content, message):
    (copy / "config.json").write_bytes(content)
    before = snapshot(copy)
    with pytest.raises(ValueError) as caught:
        experiment.search(tiny.CONFIG, copy, resume=True)
    assert "config.json is not the configuration of a search: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(copy) == before


def test_without_its_configuration_a_search_is_not_resumed(copy):
    (copy / "config.json").unlink()
    before = snapshot(copy)
    with pytest.raises(ValueError, match=r"no search to resume: cannot read .*config\.json"):
        experiment.search(tiny.CONFIG, copy, resume=True)
    assert snapshot(copy) == before


def test_a_damaged_checkpoint_is_not_used(copy):
    metadata = copy / "checkpoint" / str(STEPS) / "default" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:100])
    (copy / "result.json").unlink()
    with pytest.raises(ValueError) as caught:
        experiment.search(tiny.CONFIG, copy, resume=True)
    message = str(caught.value)
    assert message.startswith(f"cannot read the checkpoint {copy}/checkpoint/{STEPS}: ")
    assert "\n" not in message
    assert not (copy / "result.json").exists()


def test_a_search_is_not_replaced_unasked(copy):
    before = snapshot(copy)
    with pytest.raises(ValueError, match="holds a search already") as caught:
        experiment.search(tiny.CONFIG, copy)
    assert "--resume" in str(caught.value) and "--overwrite" in str(caught.value)
    assert snapshot(copy) == before


@pytest.mark.parametrize("name", experiment.FILES)
def test_what_looks_like_a_search_is_not_replaced_unasked(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds a search already \\({name}\\)"):
        experiment.search(tiny.CONFIG, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [".lock", name]


def test_overwriting_removes_only_what_a_search_writes(copy, finished):
    (copy / "notes.txt").write_text("mine")
    (copy / "result.json").write_text("old")
    (copy / "folder").mkdir()
    stop(copy, 0, overwrite=True)
    left = [".lock", "checkpoint", "config.json", "folder", "notes.txt"]
    assert sorted(os.listdir(copy)) == left
    assert checkpoints(copy) == []
    other = dataclasses.replace(tiny.CONFIG, seed=3)
    experiment.search(other, copy, overwrite=True)
    assert (copy / "notes.txt").read_text() == "mine"
    assert read(copy)[0]["seed"] == 3
    assert read(copy)[0]["alpha"] != read(finished[0])[0]["alpha"]


def test_wrong_settings_remove_nothing(copy):
    before = snapshot(copy)
    for change in ({"batch_size": 5000}, {"ops": ("conv",)}, {"image_size": 10}):
        with pytest.raises(ValueError):
            experiment.search(dataclasses.replace(tiny.CONFIG, **change), copy, overwrite=True)
    assert snapshot(copy) == before


def test_a_directory_in_use_is_left_alone(copy):
    before = snapshot(copy)
    with held(copy):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match="is in use by another search"):
                experiment.search(tiny.CONFIG, copy, **options)
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("/proc/nasi", "No such file or directory"),
    ],
)
def test_what_cannot_be_a_directory_is_refused(tmp_path, out, reason):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=f"cannot use .* as a directory: {reason}"):
        experiment.search(tiny.CONFIG, tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_no_result(copy, monkeypatch):
    """Space for one file more, then for two, until there is enough."""
    for allowed in itertools.count():
        for name in experiment.FILES:
            if (copy / name).is_file() and name != "config.json":
                (copy / name).unlink()
        written = []

        def fsync(*_, written=written, allowed=allowed):
            written.append(1)
            if len(written) > allowed:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", fsync)
        try:
            experiment.search(tiny.CONFIG, copy, resume=True)
        except OSError:
            assert not (copy / "result.json").exists()
            assert not list(copy.glob(".*.tmp"))
        else:
            break
    assert allowed == len(experiment.FILES) - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"init": "pytorch"}, {"hard": True}, {"redraw": False}, {"labels": "random"}]
)
def test_settings_have_an_effect(finished, tmp_path, change):
    experiment.search(dataclasses.replace(tiny.CONFIG, **change), tmp_path)
    assert read(tmp_path)[0]["alpha"] != read(finished[0])[0]["alpha"]


def test_build_follows_the_configuration():
    config = SearchConfig(
        space="nasbench1shot1-2", ops=("maxpool3x3", "conv1x1-bn-relu"), init_channels=4
    ).resolved()
    space, _ = experiment.build(config, 10)
    assert (space.name, space.ops) == ("nasbench1shot1-2", config.ops)
    assert space.init_channels == 4
