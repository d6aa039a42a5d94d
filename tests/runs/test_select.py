"""`nasi select`: what is looked at, what is selected, and where a killed selection goes on."""

import csv
import dataclasses
import itertools
import json
import math
import zlib

import jax
import numpy as np
import pytest
from helpers import assert_one_line

from nasi_jax import runs
from nasi_jax.cells import parse_genotype, search_space
from nasi_jax.config import ScoreConfig, Scoring, SelectConfig

CONFIG = SelectConfig(
    ops=("none", "skip_connect", "nor_conv_1x1"),
    norm="none",
    init_channels=2,
    num_cells=1,
    image_size=8,
    batch_size=4,
    proxies=("grad_norm", "naswot"),
    budget=8,
    population=4,
    tournament=2,
    seed=2,
    seeds=2,
)
IN_TOY = dataclasses.replace(CONFIG, space="toy:Chains", ops=None, budget=3, population=2)
SKIP, CONV = "skip_connect", "nor_conv_3x3"


pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows_of(out):
    return list(csv.DictReader((out / "scores.csv").read_text().splitlines()))


def without_seconds(content):
    if isinstance(content, list):
        return [without_seconds(each) for each in content]
    return {name: value for name, value in content.items() if name != "seconds"}


def files_of(out):
    result = json.loads((out / "result.json").read_text())
    return without_seconds(rows_of(out)), without_seconds(result)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    runs.select.select(IN_TOY, out)
    return out


@pytest.fixture
def scored_by(monkeypatch):
    """Has networks scored by functions of seed and cell, all others 0; returns the calls."""

    def scored_by(**functions):
        calls = []

        class Scorer:
            compile_seconds = 0.0

            def __init__(self, config, proxies, *_, **__):
                self.space, self.names = runs.search.space_of(config), tuple(proxies)
                self.num_at_once = config.archs_per_call or 1

            def __call__(self, seed, weights):
                cells = [self.space.discretize(each) for each in weights]
                calls.append((seed, [cell.to_text() for cell in cells]))
                return [self.scores(seed, cell) for cell in cells], 1.0

            def scores(self, seed, cell):
                given = {name: float(score(seed, cell)) for name, score in functions.items()}
                return dict.fromkeys(self.names, 0.0) | given

        monkeypatch.setattr(runs.select, "Scorer", Scorer)
        return calls

    return scored_by


def slow_sum_of_log_ranks(rows, proxies):
    """For each network, over seeds and proxies; ranks are counted pair by pair."""
    fitness = {}
    for row, name in itertools.product(rows, proxies):
        of_seed = [float(other[name]) for other in rows if other["seed"] == row["seed"]]
        own = float(row[name])
        rank = sum(other < own for other in of_seed) + (of_seed.count(own) + 1) / 2
        text = row["genotype"]
        fitness[text] = fitness.get(text, 0) + math.log(rank / len(of_seed))
    return fitness


def test_the_selected_is_the_first_in_log_rank(finished):
    rows = rows_of(finished)
    result = json.loads((finished / "result.json").read_text())
    assert [row["seed"] for row in rows] == ["2", "3"] * 3
    fitness = slow_sum_of_log_ranks(rows, CONFIG.proxies)
    assert len(fitness) == result["num_scored"] == 3
    best = max(fitness, key=fitness.get)
    assert result["text"] == best and result["number"] == list(fitness).index(best) + 1
    assert result["fitness"] == pytest.approx(fitness[best])
    assert sorted(fitness.values())[-2] < fitness[best]
    assert parse_genotype(json.dumps(result["genotype"]), "toy:Chains").to_text() == best
    for row in rows:
        if row["genotype"] == best:
            scores = result["scores"][row["seed"]]
            assert scores == {name: float(row[name]) for name in scores}
            assert scores.keys() == {"num_params", "flops", *CONFIG.proxies}


def test_scores_are_those_of_nasi_score(finished, tmp_path):
    rows = rows_of(finished)
    listed = tmp_path / "genotypes.txt"
    listed.write_text("\n".join(dict.fromkeys(row["genotype"] for row in rows)))
    fields = {field.name for field in dataclasses.fields(Scoring)}
    kept = {name: value for name, value in vars(IN_TOY).items() if name in fields}
    config = ScoreConfig(**kept, genotypes=str(listed))
    scores = runs.score.score(config, tmp_path / "scores.csv")
    expected = {(str(row.seed), row.genotype): row.values for row in scores.rows}
    for row in rows:
        for name, value in expected[row["seed"], row["genotype"]].items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("method", ["random", "evolution"])
@pytest.mark.parametrize("ops", [CONFIG.ops, ("none", "nor_conv_1x1", "avg_pool_3x3")])
def test_no_two_networks_compute_the_same(scored_by, tmp_path, method, ops):
    """Also where the space has no skip, and so not every canonical form."""
    scored_by(naswot=lambda seed, cell: sum(map(ops.index, cell.ops)))
    config = dataclasses.replace(CONFIG, method=method, ops=ops, budget=40)
    runs.select.select(config, tmp_path)
    rows = rows_of(tmp_path)
    for seed in ("2", "3"):
        cells = [parse_genotype(row["genotype"]) for row in rows if row["seed"] == seed]
        assert len({cell.canonical() for cell in cells}) == len(cells) == 40
        assert all(set(cell.ops) <= set(ops) for cell in cells)
    assert [row["genotype"] for row in rows[::2]] == [row["genotype"] for row in rows[1::2]]


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_a_budget_beyond_the_space_is_refused(scored_by, tmp_path, method):
    """Of skips alone a cell has none, or one of four numbers of copies of its input."""
    scored_by(naswot=lambda seed, cell: cell.ops.count(SKIP))
    config = dataclasses.replace(
        CONFIG, ops=("none", SKIP), method=method, proxies=("naswot",), budget=5
    )
    assert len({cell.canonical() for cell in runs.search.space_of(config).genotypes()}) == 5
    assert runs.select.select(config, tmp_path / "all")["num_scored"] == 5
    with pytest.raises(ValueError) as caught:
        runs.select.select(dataclasses.replace(config, budget=6), tmp_path / "more")
    assert_one_line(caught, "budget must be within", "got 6", "only 5 different networks")


def test_evolution_goes_on_where_all_mutations_are_known(scored_by, tmp_path):
    """The fittest of a population that no new child joins would be the parent for ever."""
    scored_by(naswot=lambda seed, cell: len(set(cell.ops)) == 1)
    config = dataclasses.replace(IN_TOY, proxies=("naswot",))
    for seed in range(4):
        each = dataclasses.replace(config, seed=seed)
        assert runs.select.select(each, tmp_path / str(seed))["num_scored"] == 3


def num_convs(seed, cell):
    return cell.ops.count(CONV)


@pytest.mark.parametrize("seeds", [1, 2])
def test_ranks_are_over_all_proxies_and_seeds(scored_by, tmp_path, seeds):
    """None of which selects alone what they do together."""

    def drawn(proxy):
        return lambda seed, cell: zlib.crc32(f"9 {proxy} {seed} {cell.to_text()}".encode()) % 10

    scored_by(naswot=drawn("naswot"), grad_norm=drawn("grad_norm"))
    config = dataclasses.replace(CONFIG, method="random", ops=None, seeds=seeds, budget=12)
    result = runs.select.select(config, tmp_path)
    rows = rows_of(tmp_path)
    fitness = slow_sum_of_log_ranks(rows, config.proxies)
    assert result["text"] == max(fitness, key=fitness.get)
    assert result["fitness"] == pytest.approx(fitness[result["text"]])
    alone = [
        slow_sum_of_log_ranks([row for row in rows if row["seed"] == seed], proxies)
        for seed in ("2", "3")[:seeds]
        for proxies in [*zip(config.proxies), *[config.proxies] * (seeds - 1)]
    ]
    assert all(each[result["text"]] < max(each.values()) for each in alone)


def test_a_score_that_is_not_finite_is_none_in_the_result(scored_by, tmp_path):
    scored_by(naswot=lambda seed, cell: -math.inf, grad_norm=lambda seed, cell: math.nan)
    result = runs.select.select(CONFIG, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    scores = result["scores"]["2"]
    assert scores["naswot"] is scores["grad_norm"] is None
    assert {(row["naswot"], row["grad_norm"]) for row in rows_of(tmp_path)} == {("-inf", "nan")}


def kill_at(count):
    def on_progress(progress):
        if progress.stage == "selecting" and progress.done >= count:
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_selection_killed_in_evolution_goes_on(scored_by, tmp_path, monkeypatch, at_once):
    """With what is known scored no second time; the last call is of fewer networks."""
    monkeypatch.setattr(runs.select, "_SECONDS_BETWEEN_WRITES", 0.0)
    config = dataclasses.replace(CONFIG, ops=None, budget=14, archs_per_call=at_once)
    calls = scored_by(naswot=num_convs, grad_norm=lambda seed, cell: cell.ops.count(SKIP) * seed)
    runs.select.select(config, tmp_path / "whole")
    unbroken = [*calls]
    with pytest.raises(KeyboardInterrupt):
        runs.select.select(config, tmp_path / "run", on_progress=kill_at(9))
    assert len(rows_of(tmp_path / "run")) == 2 * 8
    calls.clear()
    runs.select.select(config, tmp_path / "run", resume=True)
    assert calls == unbroken[2 * 8 // at_once :]
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert [len(texts) for _, texts in calls] == ([1] * 12 if at_once == 1 else [4, 4, 2, 2])


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("method", ["prune", "perturb"])
def test_what_a_supernet_is_worth_most_with_is_selected(tmp_path, monkeypatch, method, at_once):
    """By a score that adds up over options; a killed selection goes on."""
    worth = np.random.default_rng(0).normal(size=(2, 6, 5))
    calls = []

    class Scorer:
        compile_seconds = 0.0

        def __init__(self, config, proxies, *_, one_hot, **__):
            self.names, self.num_at_once = tuple(proxies), config.archs_per_call
            assert not one_hot

        def __call__(self, seed, weights):
            calls.append(len(weights))
            sums = [float(np.sum(worth[seed - 2] * each["cell"])) for each in weights]
            return [dict.fromkeys(self.names, each) for each in sums], 1.0

    monkeypatch.setattr(runs.select, "Scorer", Scorer)
    monkeypatch.setattr(runs.select, "_SECONDS_BETWEEN_WRITES", 0.0)
    config = dataclasses.replace(
        CONFIG, ops=None, method=method, walks=2, seeds=1, archs_per_call=at_once
    )
    result = runs.select.select(config, tmp_path / "whole")
    best = search_space("nasbench201").discretize({"cell": jax.numpy.asarray(worth[0])})
    assert result["text"] == best.to_text()
    # 84 supernets and one cell; or in two walks six of five each, and one.
    assert result["num_scored"] == (85 if method == "prune" else 61)
    unbroken = sum(calls)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        runs.select.select(config, tmp_path / "run", on_progress=kill_at(20))
    killed = len(rows_of(tmp_path / "run"))
    assert 15 <= killed < 20
    calls.clear()
    runs.select.select(config, tmp_path / "run", resume=True)
    assert sum(calls) == unbroken - killed
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_parameters_are_drawn_once_for_each_seed(tmp_path, monkeypatch):
    drawn, draw = [], runs.score.Scorer._draw_of

    def counted(self, seed):
        drawn.append(seed)
        return draw(self, seed)

    monkeypatch.setattr(runs.score.Scorer, "_draw_of", counted)
    runs.select.select(IN_TOY, tmp_path)
    assert drawn == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proxies": ("accuracy",)}, "unknown proxy 'accuracy'; known: batch_gradient"),
        ({"proxies": ()}, "proxies must be at least one, got none"),
        ({"tournament": 5}, "tournament must be at most population, 4, got 5"),
        ({"method": "best"}, "method must be one of random, evolution, prune, perturb, got 'best'"),
        ({"batch_size": 10**6}, "1000000"),
    ],
)
def test_refusals(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.select.select(dataclasses.replace(CONFIG, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_networks_are_those_of_random_search(tmp_path, scored_by):
    """Of one seed, as evolution begins."""
    scored_by(naswot=num_convs)
    config = dataclasses.replace(CONFIG, ops=None, budget=12, seeds=1)
    runs.select.select(config, tmp_path / "evolution")
    runs.select.select(dataclasses.replace(config, method="random"), tmp_path / "random")
    evolved, drawn = (
        [row["genotype"] for row in rows_of(tmp_path / each)] for each in ("evolution", "random")
    )
    assert evolved[:4] == drawn[:4] and not set(evolved[4:]) & set(drawn[4:])
    first = search_space("nasbench201").sample(
        jax.random.fold_in(runs.score.keys_of(2)["architectures"], 0)
    )
    assert drawn[0] == first.canonical().to_text()
