"""Searches from a configuration to a directory, killed and resumed."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import types

import jax
import numpy as np
import pytest
import tiny
from helpers import flat, snapshot

from nasi_jax import runs
from nasi_jax import search as nasi_search
from nasi_jax.cells import genotype_from_dict, parse_genotype
from nasi_jax.config import SearchConfig, from_dict, to_dict
from nasi_jax.kernels import PROXIES, batch_gradient
from nasi_jax.storage import directory

STEPS = tiny.CONFIG.steps


class Stopped(Exception):
    """What a test ends a search with."""


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished search: its directory, what `search` returned, and what it told of itself."""
    out = tmp_path_factory.mktemp("finished") / "made" / "here"
    told = []

    result = runs.search.search(tiny.CONFIG, out, on_progress=told.append)
    return out, result, told


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished search's directory."""
    return shutil.copytree(finished[0], tmp_path / "copy")


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


def test_pictures_are_drawn(finished):
    out, _, _ = finished
    assert (out / "cells.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "history.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (out / "cells.svg").read_bytes()


def test_progress_is_told_of_every_stage_and_step(finished):
    told = finished[2]
    assert [(stage, total, done) for stage, total, done, _, _ in told] == [
        ("compiling", STEPS, 0),
        ("compiled", STEPS, 0),
        *[("searching", STEPS, done) for done in range(1, STEPS + 1)],
        ("drawing", STEPS, STEPS),
    ]
    _, rows = read(finished[0])
    figures = [f"x {float(row['x']):.4g}  nu {float(row['nu']):.4g}" for row in rows]
    assert [progress.figures for progress in told] == ["", "", *figures, figures[-1]]
    assert [progress.seconds > 0 for progress in told] == [False, False, *STEPS * [True], True]


def test_a_whole_search_compiles_its_step_once(tmp_path):
    compiled, told = [], []

    def on_event(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    def on_progress(progress):
        told.append((progress.stage, len(compiled)))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        runs.search.search(tiny.CONFIG, tmp_path, on_progress=on_progress)
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
    assert from_dict(result["config"], SearchConfig).resolved() == tiny.CONFIG.resolved()
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
    runs.search.search(tiny.CONFIG, tmp_path)
    assert read(tmp_path) == read(finished[0])


SMALL = {
    "darts": (("skip_connect", "max_pool_3x3", "avg_pool_3x3"), 3),
    "nasbench1shot1-1": (("conv1x1-bn-relu", "maxpool3x3"), 1),
    "nasbench1shot1-2": (("conv1x1-bn-relu", "maxpool3x3"), 1),
    "nasbench1shot1-3": (("conv1x1-bn-relu", "maxpool3x3"), 1),
    "transnas101": (("skip_connect", "nor_conv_3x3"), 1),
}


@pytest.mark.parametrize(
    "space",
    [
        "nasbench1shot1-1",
        *[
            pytest.param(space, marks=pytest.mark.slow)
            for space in ("darts", "nasbench1shot1-2", "nasbench1shot1-3", "transnas101")
        ],
    ],
)
def test_each_space_is_searched_through(space, tmp_path):
    ops, num_cells = SMALL[space]
    config = dataclasses.replace(
        tiny.CONFIG,
        space=space,
        constraint_rule="fixed",
        ops=ops,
        num_cells=num_cells,
        steps=1,
        data="gaussian",
    )
    result = runs.search.search(config, tmp_path)
    written, rows = read(tmp_path)
    assert written["space"] == space
    assert result["text"] == rows[-1]["selected"] == written["text"]
    assert parse_genotype(result["text"]) == genotype_from_dict(result["genotype"])
    assert ("module_hash" in result) == ("pruned" in result) == space.startswith("nasbench1shot1")
    constraint = config.resolved().constraint
    assert column(rows, "nu").tolist() == [constraint]
    # One step says nothing of the noise.
    assert all(choice["margin_in_standard_errors"] in (None, 0) for choice in written["choices"])


def checkpoints(out):
    return sorted(os.listdir(out / "checkpoint"))


def stop(out, done, **options):
    """Ends a search by an exception after some steps."""

    def on_progress(progress):
        if progress.done == done:
            raise Stopped

    with pytest.raises(Stopped):
        runs.search.search(tiny.CONFIG, out, on_progress=on_progress, **options)


@pytest.fixture
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(runs.search, "_SECONDS_BETWEEN_CHECKPOINTS", 0)


def test_samples_taken_together_change_nothing_but_the_rounding(
    finished, tmp_path, every_step_is_kept
):
    """A row a step, and whatever is left after a stop, in calls of as many samples."""
    config = dataclasses.replace(tiny.CONFIG, samples_per_step=2)

    def on_progress(progress):
        if progress.done:
            raise Stopped

    with pytest.raises(Stopped):
        runs.search.search(config, tmp_path, on_progress=on_progress)
    assert checkpoints(tmp_path) == ["2"]
    runs.search.search(config, tmp_path, resume=True)
    (result, rows), (expected, others) = read(tmp_path), read(finished[0])
    assert result["config"]["samples_per_step"] == 2
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for name in ("x", "nu", "objective", "gradient_norm"):
        np.testing.assert_allclose(column(rows, name), column(others, name), rtol=1e-4)
    assert result["text"] == expected["text"]


@pytest.fixture
def sure_after(monkeypatch):
    """Makes every choice sure after some steps."""

    def after(steps):
        def verdicts(self):
            return [
                each._replace(sure=self.num_steps >= steps, steps_to_sure=0)
                for each in verdicts_of(self)
            ]

        verdicts_of = nasi_search.Evidence.verdicts
        monkeypatch.setattr(nasi_search.Evidence, "verdicts", verdicts)
        all_sure = property(lambda self: self.num_steps >= steps)
        monkeypatch.setattr(nasi_search.Evidence, "all_sure", all_sure)

    return after


def test_until_sure(finished, tmp_path, sure_after):
    """alpha is that of equation (18) for the steps taken, and a resumed search is the same."""
    sure_after(2)
    config = dataclasses.replace(tiny.CONFIG, until_sure=True)
    assert config.resolved().steps == STEPS > 2
    runs.search.search(config, tmp_path)
    result, rows = read(tmp_path)
    assert len(rows) == result["steps"] == 2 and all(each["sure"] for each in result["choices"])
    runs.search.search(dataclasses.replace(tiny.CONFIG, steps=2), tmp_path / "two")
    two, rows_of_two = read(tmp_path / "two")
    for name, of_rows in two["alpha"].items():
        for row, columns in of_rows.items():
            for column_, value in columns.items():
                found = result["alpha"][name][row][column_]
                np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-8)
    assert rows == rows_of_two
    (tmp_path / "result.json").unlink()
    runs.search.search(config, tmp_path, resume=True)
    assert read(tmp_path) == (result, rows)
    assert checkpoints(tmp_path) == ["2"]


def test_steps_of_a_call_after_the_last_do_not_count(tmp_path, sure_after):
    sure_after(2)
    config = dataclasses.replace(tiny.CONFIG, until_sure=True)
    for count in (1, STEPS):
        several = dataclasses.replace(config, samples_per_step=count)
        runs.search.search(several, tmp_path / str(count))
    (one, _), (all_at_once, rows) = (read(tmp_path / str(count)) for count in (1, STEPS))
    assert all_at_once["steps"] == one["steps"] == len(rows) == 2
    found, expected = (flat(each["alpha"]) for each in (all_at_once, one))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    runs.search.search(several, tmp_path / str(STEPS), resume=True)
    assert read(tmp_path / str(STEPS)) == (all_at_once, rows)


def test_what_is_never_sure_takes_all_steps(tmp_path, sure_after):
    sure_after(STEPS + 1)
    result = runs.search.search(dataclasses.replace(tiny.CONFIG, until_sure=True), tmp_path)
    assert result["steps"] == STEPS and not any(each["sure"] for each in result["choices"])


@pytest.mark.parametrize(("redraw", "of"), [(True, "all draws"), (False, "this theta_0")])
def test_a_claim_is_about_the_theta_0_of_the_samples(tmp_path, redraw, of):
    config = dataclasses.replace(tiny.CONFIG, redraw=redraw, steps=1)
    assert of in runs.search.search(config, tmp_path)["sure_of"]


def tripled(key, apply_fn, params, batch):
    return 3 * batch_gradient(key, apply_fn, params, batch)


def test_a_proxy_in_the_place_of_x(finished, tmp_path, monkeypatch):
    """Of three times x and three times nu the search is the same."""
    monkeypatch.setitem(PROXIES, "tripled", tripled)
    nu = tiny.CONFIG.resolved().constraint
    config = dataclasses.replace(tiny.CONFIG, proxy="tripled", constraint=3 * nu)
    runs.search.search(config, tmp_path)
    (result, rows), (expected, expected_rows) = read(tmp_path), read(finished[0])
    assert result["genotype"] == expected["genotype"]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert float(row["x"]) == pytest.approx(3 * float(expected_row["x"]), rel=1e-5)
    with pytest.raises(ValueError, match="norm must be none with proxy synflow, got batch"):
        runs.search.search(
            dataclasses.replace(config, proxy="synflow", norm="batch"), tmp_path / "o"
        )


def test_a_hard_search_of_an_earlier_version_goes_on(finished, copy):
    """What is now a relaxation was a switch."""
    path = copy / "config.json"
    settings = json.loads(path.read_text())
    for name in ("relaxation", "input_relaxation", "until_sure", "proxy"):
        del settings[name]
    for hard, relaxation in ((True, "hard"), (False, "soft")):
        path.write_text(json.dumps({**settings, "hard": hard}))
        assert runs.search.saved(copy).relaxation == relaxation
    (copy / "result.json").unlink()
    runs.search.search(tiny.CONFIG, copy, resume=True)
    assert read(copy) == read(finished[0])


def test_between_checkpoints_nothing_is_written(tmp_path):
    stop(tmp_path, 2)
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
def test_a_frozen_reference_and_a_quantile_survive_a_stop(tmp_path, every_step_is_kept):
    config = dataclasses.replace(
        tiny.CONFIG, norm="frozen", constraint_rule="quantile", constraint_samples=3, steps=2
    )
    runs.search.search(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")

    def on_progress(progress):
        if progress.done:
            raise Stopped

    with pytest.raises(Stopped):
        runs.search.search(config, tmp_path / "broken", overwrite=True, on_progress=on_progress)
    assert checkpoints(tmp_path / "broken") == ["1"]
    runs.search.search(config, tmp_path / "broken", resume=True)
    assert read(tmp_path / "broken") == read(tmp_path / "whole")
    nu = column(read(tmp_path / "whole")[1], "nu")
    assert nu[0] == nu[1] != tiny.CONFIG.resolved().constraint


def test_an_unresolved_configuration_is_the_same_once_resolved(copy):
    (copy / "config.json").write_text(json.dumps(to_dict(tiny.CONFIG)))
    runs.search.search(tiny.CONFIG, copy, resume=True)
    assert runs.search.saved(copy) == tiny.CONFIG.resolved()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"step": 1}', "unknown setting step; known: batch_size, "),
        (b'{"steps": "many"}', "steps must be an integer from 1 to 2147483647, got 'many'"),
        (b'{"temperature": null}', "temperature must be a number from 1e-30 to 1e+30, got None"),
        (b'{"penalty": NaN}', "penalty must be a number from 0.0 to 1e+30, got nan"),
        (b'{"ops": "skip_connect"}', "ops must be a list of text, got 'skip_connect'"),
        (b'{"variant": "nasi"}', "variant must be one of nasi-fix, nasi-ada, got 'nasi'"),
    ],
)
def test_a_spoilt_configuration_is_not_resumed(copy, content, message):
    (copy / "config.json").write_bytes(content)
    before = snapshot(copy)
    with pytest.raises(ValueError) as caught:
        runs.search.search(tiny.CONFIG, copy, resume=True)
    assert "config.json is not the configuration of a search: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(copy) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"init": "pytorch"}, {"relaxation": "hard"}, {"redraw": False}, {"labels": "random"}]
)
def test_settings_have_an_effect(finished, tmp_path, change):
    runs.search.search(dataclasses.replace(tiny.CONFIG, **change), tmp_path)
    assert read(tmp_path)[0]["alpha"] != read(finished[0])[0]["alpha"]


def test_build_follows_the_configuration():
    config = SearchConfig(
        space="nasbench1shot1-2", ops=("maxpool3x3", "conv1x1-bn-relu"), init_channels=4
    ).resolved()
    space, _ = runs.search.build(config, 10)
    assert (space.name, space.ops) == ("nasbench1shot1-2", config.ops)
    assert space.init_channels == 4
