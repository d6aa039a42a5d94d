"""`nasi score`: one compilation, seeds, resume, and what it refuses."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers import report_memory

from nasi_jax import data, runs
from nasi_jax.cells import search_space
from nasi_jax.cells.nasbench201 import Nasbench201Genotype
from nasi_jax.config import ScoreConfig
from nasi_jax.kernels import PROXIES
from nasi_jax.search import init_params
from nasi_jax.types import NetworkSpec

CONFIG = ScoreConfig(
    ops=("none", "skip_connect", "nor_conv_1x1"),
    norm="frozen",
    init_channels=2,
    num_cells=1,
    image_size=8,
    batch_size=4,
    num_archs=5,
    proxies=("grad_norm", "random_cotangent"),
    seed=2,
)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def without_seconds(path):
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "scores.csv"
    return out, runs.score.score(CONFIG, out)


def test_table_and_record(finished):
    out, scores = finished
    rows = without_seconds(out)
    assert [row["genotype"] for row in rows] == list(scores.genotypes)
    assert list(rows[0]) == ["seed", "genotype", "num_params", "flops", *CONFIG.proxies]
    assert len(set(scores.genotypes)) == 5
    for row, value in zip(rows, scores.values["grad_norm"][0], strict=True):
        assert float(row["grad_norm"]) == value
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["num_compilations"] == scores.num_compilations == 1
    assert set(record["norm"].values()) == {"frozen"} and record["config"]["seed"] == 2
    assert {"device", "versions", "seconds"} <= record.keys()


def test_scores_are_those_of_the_networks(finished):
    _, scores = finished
    keys = jax.random.split(jax.random.key(CONFIG.seed), 4)
    space = search_space("nasbench201", ops=CONFIG.ops, init_channels=2, num_cells=1)
    dataset = data.load("digits", image_size=8, seed=2)
    batch = dataset.batch(keys[2], 0, 4)
    genotypes = runs.score.genotypes_of(CONFIG)
    assert tuple(genotype.to_text() for genotype in genotypes) == scores.genotypes
    supernet = space.supernet(10, NetworkSpec(norm="frozen"))
    weights = space.one_hot(genotypes[0])
    params = jax.jit(init_params, static_argnums=1)(keys[0], supernet, batch.inputs, weights)
    params = space.inherit({"params": params})["params"]
    for index in (0, 3):
        network = space.network(genotypes[index], 10, NetworkSpec(norm="frozen"), form="search")

        @jax.jit
        def expected(params, batch, network=network):
            _, statistics = network.apply({"params": params}, batch.inputs, mutable=["batch_stats"])
            return {
                name: PROXIES[name](
                    jax.random.key(0),
                    lambda params, x: network.apply({"params": params, **statistics}, x),
                    params,
                    batch,
                )
                for name in ("num_params", "flops", "grad_norm")
            }

        for name, value in expected(params, batch).items():
            np.testing.assert_allclose(scores.values[name][0, index], value, rtol=1e-4)


def test_scores_of_an_earlier_version_go_on(finished, tmp_path):
    """Without the precision of matrix products, the number of cells in a call, and whether the
    scores are those of canonical forms, which they weren't."""
    out = tmp_path / "scores.csv"
    out.write_bytes(finished[0].read_bytes())
    record = json.loads(finished[0].with_suffix(".json").read_text())
    for name in ("matmul_precision", "archs_per_call", "canonical"):
        del record["config"][name]
    out.with_suffix(".json").write_text(json.dumps(record))
    canonical = dataclasses.replace(CONFIG, canonical=True)
    with pytest.raises(ValueError, match="the scoring to resume has canonical False not True"):
        runs.score.score(canonical, out, resume=True)
    assert not runs.score.saved(runs.score.run_directory(out), ScoreConfig).canonical
    scores = runs.score.score(CONFIG, out, resume=True)
    assert scores.num_compilations == 0 and scores.rows == finished[1].rows


def test_seeds_share_architectures_and_the_program(finished, tmp_path):
    """A seed after the first has the scores that it has as the first, of the same architectures."""
    config = dataclasses.replace(CONFIG, seeds=2, num_archs=3)
    scores = runs.score.score(config, tmp_path / "scores.csv")
    assert scores.num_compilations == 1
    assert {name: values.shape for name, values in scores.values.items()} == dict.fromkeys(
        scores.values, (2, 3)
    )
    assert [row["seed"] for row in without_seconds(tmp_path / "scores.csv")] == ["2"] * 3 + [
        "3"
    ] * 3
    listed = tmp_path / "genotypes.txt"
    listed.write_text("\n".join(scores.genotypes))
    alone = dataclasses.replace(CONFIG, seed=3, genotypes=str(listed))
    expected = runs.score.score(alone, tmp_path / "alone.csv").values
    for name, (first, second) in scores.values.items():
        np.testing.assert_allclose(first, finished[1].values[name][0, :3], rtol=1e-5)
        np.testing.assert_allclose(second, expected[name][0], rtol=1e-5)
    assert not np.allclose(*scores.values["grad_norm"], rtol=0.01)


def test_a_run_killed_in_a_later_seed_goes_on(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, seeds=2, num_archs=2, proxies=())
    whole = runs.score.score(config, tmp_path / "whole.csv")
    monkeypatch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", 0.0)

    def stop(progress):
        if progress.stage == "scoring" and progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.score.score(config, tmp_path / "scores.csv", on_progress=stop)
    assert len(without_seconds(tmp_path / "scores.csv")) == 3
    runs.score.score(config, tmp_path / "scores.csv", resume=True)
    assert whole.num_compilations == 1
    assert without_seconds(tmp_path / "scores.csv") == without_seconds(tmp_path / "whole.csv")


def test_several_architectures_in_a_call(finished, tmp_path, monkeypatch):
    """Wherever the run goes on, and where fewer are left than a call takes."""
    monkeypatch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", 0.0)
    config, done = dataclasses.replace(CONFIG, archs_per_call=4, proxies=("grad_norm",)), []

    def stop(progress):
        if progress.stage == "scoring":
            done.append(progress.done)
            if progress.done > 3:
                raise KeyboardInterrupt

    out = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        runs.score.score(config, out, on_progress=stop)
    assert done == [3, 5]  # of one size
    scores = runs.score.score(config, out, resume=True)
    assert scores.num_compilations == 1
    runs.score.score(config, tmp_path / "unbroken.csv")
    assert without_seconds(out) == without_seconds(tmp_path / "unbroken.csv")
    assert scores.genotypes == finished[1].genotypes
    for name, values in scores.values.items():
        np.testing.assert_allclose(values, finished[1].values[name], rtol=1e-5)


@pytest.mark.parametrize(("memory", "expected"), [(0.7, [2, 3]), (2, [3])])
def test_as_many_architectures_as_fit_into_the_memory(tmp_path, monkeypatch, memory, expected):
    """In shares of what three take."""
    config = dataclasses.replace(CONFIG, proxies=(), num_archs=3)
    needed = call_of(config, 3).memory_analysis().temp_size_in_bytes
    limit = int(memory * needed / 0.8)
    stats = {"bytes_limit": limit, "bytes_in_use": 0, "peak_bytes_in_use": 0}
    report_memory(monkeypatch, stats)
    done = []

    def report(progress):
        if progress.stage == "scoring":
            done.append(progress.done)

    scores = runs.score.score(config, tmp_path / "scores.csv", on_progress=report)
    assert done == expected
    assert scores.num_compilations == len(expected)


def call_of(config, count):
    """The program of a call of so many architectures."""
    proxies = runs.score.proxies_of(config, config.proxies)
    draw, score_weights = runs.score.functions_of(config, proxies, 10)
    space = search_space("nasbench201", ops=CONFIG.ops, init_channels=2, num_cells=1)
    weights = space.one_hot(runs.score.genotypes_of(config)[0])
    batch = data.load("digits", image_size=8, seed=2).batch(jax.random.key(0), 0, 4)
    params = jax.eval_shape(draw, jax.random.key(0), batch.inputs, weights)
    several = {name: np.stack(count * [array]) for name, array in weights.items()}
    function = jax.jit(runs.score.together(score_weights))
    return function.lower(jax.random.key(0), params, several, batch).compile()


def test_one_proxy_changes_nothing_in_another(finished, tmp_path):
    """Not even in one that draws random numbers."""
    config = dataclasses.replace(CONFIG, proxies=("naswot", "random_cotangent"), num_archs=2)
    scores = runs.score.score(config, tmp_path / "scores.csv")
    for name in ("random_cotangent", "num_params"):
        np.testing.assert_allclose(scores.values[name], finished[1].values[name][:, :2], rtol=1e-5)


def test_genotypes_from_a_file(finished, tmp_path):
    _, scores = finished
    listed = tmp_path / "genotypes.txt"
    listed.write_text("\n".join([scores.genotypes[3], "", scores.genotypes[1]]) + "\n")
    config = dataclasses.replace(CONFIG, genotypes=str(listed))
    found = runs.score.score(config, tmp_path / "scores.csv")
    assert found.genotypes == (scores.genotypes[3], scores.genotypes[1])
    for name, values in found.values.items():
        np.testing.assert_allclose(values, scores.values[name][:, [3, 1]], rtol=1e-5)


SKIP, CONV, POOL = "skip_connect", "nor_conv_1x1", "avg_pool_3x3"
CANONICAL = ("none", "none", "none", CONV, "none", "none")
ALIKE = (
    (SKIP, "none", "none", "none", CONV, "none"),
    (SKIP, SKIP, CONV, "none", "none", CONV),
    (CONV, "none", CONV, "none", SKIP, "none"),
    (SKIP, CONV, "none", SKIP, CONV, CONV),
    (CONV, SKIP, "none", SKIP, CONV, CONV),
)
"""The first and the third cell compute what `CANONICAL` does, the last two the same as well."""


def score_cells(cells, out, **changes):
    """The scores of cells that are given by their operations."""
    listed = out.with_suffix(".txt")
    listed.write_text("\n".join(Nasbench201Genotype(ops).to_text() for ops in cells))
    config = dataclasses.replace(CONFIG, genotypes=str(listed), **changes)
    return runs.score.score(config, out)


def test_scores_of_canonical_forms(tmp_path):
    """Each is computed once, and stands for all architectures that have that form."""
    scores = score_cells(ALIKE, tmp_path / "scores.csv", canonical=True)
    assert [row.seconds > 0 for row in scores.rows] == [True, True, False, True, False]
    record = json.loads((tmp_path / "scores.json").read_text())
    assert record["num_scored"] == scores.num_scored == 3 and record["num_archs"] == 5
    assert record["config"]["canonical"] is True
    plain = score_cells((CANONICAL, *ALIKE), tmp_path / "plain.csv")
    assert plain.num_scored == 6 and all(row.seconds for row in plain.rows)
    for name, (values,) in scores.values.items():
        assert values[0] == values[2] and values[3] == values[4]
        np.testing.assert_allclose(values[0], plain.values[name][0, 0], rtol=1e-5)
    values = plain.values["grad_norm"][0]
    assert not np.isclose(values[0], values[1], rtol=1e-3)


def test_the_first_architecture_stands_for_a_form_that_the_space_has_not(tmp_path):
    cells = [
        (one, other, "none", "none", POOL, POOL) for one, other in ((POOL, CONV), (CONV, POOL))
    ]
    form = Nasbench201Genotype(cells[0]).canonical()
    assert form == Nasbench201Genotype(cells[1]).canonical() and SKIP in form.ops
    changes = {"ops": ("none", CONV, POOL), "proxies": ("grad_norm",)}
    plain = score_cells(cells, tmp_path / "plain.csv", **changes).values["grad_norm"][0]
    scores = score_cells(cells, tmp_path / "scores.csv", **changes, canonical=True)
    assert scores.num_scored == 1
    np.testing.assert_allclose(scores.values["grad_norm"][0], plain[0], rtol=1e-5)
    assert not np.isclose(*plain, rtol=1e-3)


def test_scores_of_canonical_forms_go_on_where_they_were_killed(tmp_path, monkeypatch):
    changes = {"canonical": True, "seeds": 2, "proxies": ("grad_norm",)}
    whole = score_cells(ALIKE, tmp_path / "whole.csv", **changes)
    monkeypatch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", 0.0)
    config = dataclasses.replace(CONFIG, genotypes=str(tmp_path / "whole.txt"), **changes)
    out, done = tmp_path / "scores.csv", []

    def stop(progress):
        if progress.stage == "scoring":
            done.append(progress.done)
            if len(done) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.score.score(config, out, on_progress=stop)
    assert len(without_seconds(out)) == 7
    again = runs.score.score(config, out, resume=True, on_progress=stop)
    assert done == [2, 3, 5, 7, 8, 8, 10]
    assert without_seconds(out) == without_seconds(tmp_path / "whole.csv")
    assert again.num_scored == whole.num_scored == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2 of .* is no genotype of nasbench201"),
        ("|a~0|+|a~0|a~1|+|a~0|a~1|a~2|", "line 2 of .* is no genotype of nasbench201"),
        (search_space("darts").sample(jax.random.key(0)).to_text(), "line 2 .* nasbench201"),
    ],
)
def test_wrong_genotypes(line, message, finished, tmp_path):
    listed = tmp_path / "genotypes.txt"
    listed.write_text(finished[1].genotypes[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        runs.score.score(
            dataclasses.replace(CONFIG, genotypes=str(listed)), tmp_path / "scores.csv"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genotypes": "/nowhere"}, "cannot read genotypes from /nowhere"),
        ({"proxies": ("accuracy",)}, "unknown proxy 'accuracy'; known: batch_gradient"),
        (
            {"num_archs": 65, "ops": ("none", "skip_connect")},
            "num_archs must be within what there is to draw from, got 65",
        ),
        ({"batch_size": 10**6}, "1000000"),
    ],
)
def test_refusals(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.score.score(dataclasses.replace(CONFIG, **change), tmp_path / "scores.csv")


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"go to a \.csv file"):
        runs.score.score(CONFIG, tmp_path / "scores.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="there is no genotype in"):
        runs.score.score(
            dataclasses.replace(CONFIG, genotypes=str(tmp_path / "empty.txt")),
            tmp_path / "other.csv",
        )


def test_batch_statistics_are_gone_through(tmp_path):
    """Under `batch`, the trace is that of the rows of the whole batch."""
    changes = {"proxies": ("ntk_trace",), "batch_size": 2, "num_archs": 2}
    config = dataclasses.replace(CONFIG, norm="batch", **changes)
    scores = runs.score.score(config, tmp_path / "scores.csv")
    other = dataclasses.replace(config, norm="frozen")
    frozen = runs.score.score(other, tmp_path / "frozen.csv")
    assert np.all(scores.values["ntk_trace"] > 0)
    assert not np.allclose(scores.values["ntk_trace"], frozen.values["ntk_trace"], rtol=0.01)
