"""`nasi compare` and `nasi rank`: their figures, from what they wrote; resume; refusals."""

import csv
import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from nasi_jax import cli, parse_genotype, runs, tables
from nasi_jax.cells.genotype import is_live
from nasi_jax.config import RankConfig, ScoreConfig
from nasi_jax.search.aggregate import AGGREGATES

SIZES = {
    "ops": ("none", "skip_connect", "nor_conv_1x1"),
    "norm": "frozen",
    "init_channels": 2,
    "num_cells": 1,
    "image_size": 8,
    "batch_size": 4,
    "seed": 2,
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.compare.importlib.util, "find_spec", lambda name: None)
    toy = {**SIZES, "ops": None, "space": "toy:Chains", "norm": "none"}
    config = ScoreConfig(**toy, num_archs=4, proxies=("grad_norm",))
    result = runs.compare.compare(config, tmp_path / "out")
    assert result["reference"] == "ntk_trace" and result["num_compilations"] == 1
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    rows = rows_of(tmp_path / "out" / "compare.csv")
    for proxy in ("num_params", "batch_gradient", "per_example_gradient", "random_cotangent"):
        found = result["correlations"][proxy]["pearson"]["value"]
        pairs = [[float(row["ntk_trace"]), float(row[proxy])] for row in rows]
        expected = np.corrcoef(np.array(pairs).T)[0, 1]
        assert math.isclose(found, expected, rel_tol=1e-6)
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 40 of the cells with three operations, every fourth without an accuracy."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rng = np.random.default_rng(0)
    lines = ["index,arch_str,params,c10_test_200,c10valid_val_200"]
    cells = list(itertools.product(SIZES["ops"], repeat=6))
    for index, cell in enumerate(rng.choice(len(cells), 40, replace=False)):
        a, b, c, d, e, f = cells[cell]
        text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        accuracy = f"{60 + 30 * rng.random():.2f}" if index % 4 else ""
        lines.append(f"{index},{text},1000,{accuracy},{50 + index}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def ranked(table, tmp_path_factory):
    config = RankConfig(
        **SIZES,
        table=(str(table),),
        column="c10_test_200",
        num_archs=6,
        seeds=2,
        proxies=("batch_gradient", "naswot"),
    )
    out = tmp_path_factory.mktemp("ranked") / "out"
    return config, out, runs.rank.rank(config, out)


def test_rank(ranked, table):
    config, out, result = ranked
    assert result == json.loads((out / "rank.json").read_text())
    assert result["reference"] == "c10_test_200" and result["num_compilations"] == 1
    assert list(result["correlations"]) == ["table_params", "num_params", "flops", *config.proxies]
    accuracies = {
        row["arch_str"]: float(row["c10_test_200"]) for row in rows_of(table) if row["c10_test_200"]
    }
    rows = rows_of(out / "scores.csv")
    for row in rows:  # those that are not in the table are isomorphic to one that is
        accuracy = tables.load(table).look_up(parse_genotype(row["genotype"]), "c10_test_200")
        assert float(row["table_c10_test_200"]) == accuracy in accuracies.values()
    assert accuracies.keys() & {row["genotype"] for row in rows}
    assert len(rows) == 12 and len({row["genotype"] for row in rows}) == 6
    for proxy, found in result["correlations"].items():
        if proxy == "table_params":
            assert found["spearman"]["value"] is None  # they are all 1000 there
            continue
        rhos = []
        for seed in ("2", "3"):
            of_seed = [row for row in rows if row["seed"] == seed]
            truth = [float(row["table_c10_test_200"]) for row in of_seed]
            scores = [float(row[proxy]) for row in of_seed]
            rhos.append(stats.spearmanr(truth, scores).statistic)
        assert found["spearman"]["value"] == pytest.approx(np.mean(rhos))
        assert found["spearman"]["deviation"] == pytest.approx(np.std(rhos, ddof=1), abs=1e-12)
    lines = {row["proxy"]: row for row in rows_of(out / "rank.csv")}
    assert list(lines) == list(result["correlations"])
    kendall = result["correlations"]["naswot"]["kendall"]
    assert float(lines["naswot"]["kendall_low"]) == kendall["low"]
    assert (out / "rank.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_ranking_keeps_the_record_of_its_scores(ranked):
    """Which says how they came about."""
    config, out, result = ranked
    before = (out / "scores.json").read_bytes()
    again = runs.rank.rank(config, out, resume=True)
    assert again["num_compilations"] == 0
    assert again["correlations"] == result["correlations"]
    assert (out / "scores.json").read_bytes() == before


def test_scores_of_canonical_forms(ranked, table, tmp_path):
    """One each, which all cells of that form have; its cells have accuracies of their own."""
    config = dataclasses.replace(ranked[0], num_archs=20, seeds=1, proxies=("naswot",))
    result = runs.rank.rank(config, tmp_path / "out")
    scores = {}
    for row in rows_of(tmp_path / "out" / "scores.csv"):
        form = parse_genotype(row["genotype"]).canonical()
        scores.setdefault(form, []).append((row["naswot"], row["num_params"]))
    assert all(len(set(each)) == 1 for each in scores.values())
    assert result["num_scored"] == len(scores) < result["num_archs"] == 20
    assert result["config"]["canonical"] is True


def test_a_ranking_from_before_canonical_forms_is_of_the_cells_as_they_are(ranked, tmp_path):
    config, out = dataclasses.replace(ranked[0], canonical=False), tmp_path / "out"
    result = runs.rank.rank(config, out)
    record = json.loads((out / "scores.json").read_text())
    del record["config"]["canonical"]
    (out / "scores.json").write_text(json.dumps(record))
    assert runs.score.saved(runs.rank.run_directory(out), RankConfig) == config
    with pytest.raises(ValueError, match="the ranking to resume has canonical False not True"):
        runs.rank.rank(ranked[0], out, resume=True)
    again = runs.rank.rank(config, out, resume=True)
    assert again["num_compilations"] == 0
    assert again["correlations"] == result["correlations"]


def test_best_and_ndcg(ranked):
    """Of 6 architectures the first alone has a gain."""
    _, out, result = ranked
    columns = ("naswot", "table_c10_test_200")
    pairs = [[float(row[column]) for column in columns] for row in rows_of(out / "scores.csv")]
    best = np.array([max(seed)[1] for seed in (pairs[:6], pairs[6:])])
    largest = max(accuracy for _, accuracy in pairs)
    coefficients = result["correlations"]["naswot"]
    assert coefficients["best"]["value"] == pytest.approx(best.mean())
    assert coefficients["best"]["deviation"] == pytest.approx(best.std(ddof=1))
    gains = (2**best - 1) / (2**largest - 1)
    assert coefficients["ndcg"]["value"] == pytest.approx(gains.mean())


def test_aggregates_are_of_each_seed_over_all_architectures(ranked, tmp_path, monkeypatch):
    """Their proxies are scored once, those asked for among them."""
    monkeypatch.setitem(AGGREGATES, "az_nas", ("grad_norm", "naswot", "flops"))
    asked = {"aggregate": ("log_rank", "az_nas"), "proxies": ("naswot", "batch_gradient", "naswot")}
    config, out = dataclasses.replace(ranked[0], **asked), tmp_path / "out"
    result = runs.rank.rank(config, out)
    rows = rows_of(out / "scores.csv")
    proxies = ["num_params", "flops", "naswot", "batch_gradient", "grad_norm"]
    assert list(rows[0]) == ["seed", "genotype", "table_c10_test_200", *proxies, "seconds"]
    assert list(result["correlations"]) == ["table_params", *proxies, "log_rank", "az_nas"]
    assert [row["proxy"] for row in rows_of(out / "rank.csv")] == list(result["correlations"])
    for name, taken in (
        ("log_rank", ("naswot", "batch_gradient")),
        ("az_nas", ("grad_norm", "naswot", "flops")),
    ):
        rhos = []
        for seed in ("2", "3"):
            of_seed = [row for row in rows if row["seed"] == seed]
            truth, *scores = (
                [float(row[column]) for row in of_seed] for column in ("table_c10_test_200", *taken)
            )
            aggregate = np.prod([stats.rankdata(each) for each in scores], axis=0)
            rhos.append(stats.spearmanr(truth, aggregate).statistic)
        found = result["correlations"][name]["spearman"]
        assert found["value"] == pytest.approx(np.mean(rhos))
        assert found["deviation"] == pytest.approx(np.std(rhos, ddof=1), abs=1e-12)


def test_live_architectures_alone(ranked, table, tmp_path):
    config = dataclasses.replace(ranked[0], population="live", seeds=1, proxies=("naswot",))
    runs.rank.rank(config, tmp_path / "out")
    genotypes = [
        parse_genotype(row["genotype"]) for row in rows_of(tmp_path / "out" / "scores.csv")
    ]
    assert len(genotypes) == 6 and all(map(is_live, genotypes))
    listed = [row["arch_str"] for row in rows_of(table) if row["c10_test_200"]]
    live = [text for text in listed if is_live(parse_genotype(text))]
    assert 0 < len(live) < len(listed)
    (tmp_path / "genotypes.txt").write_text("\n".join(listed))
    config = dataclasses.replace(config, genotypes=str(tmp_path / "genotypes.txt"))
    runs.rank.rank(config, tmp_path / "listed")
    assert [row["genotype"] for row in rows_of(tmp_path / "listed" / "scores.csv")] == live


def test_a_ranking_of_an_earlier_version_goes_on(ranked, tmp_path):
    """Without a population and aggregates: it ran over all, and without any."""
    config, out, result = ranked
    shutil.copytree(out, tmp_path / "out")
    record = json.loads((out / "scores.json").read_text())
    del record["config"]["population"], record["config"]["aggregate"]
    (tmp_path / "out" / "scores.json").write_text(json.dumps(record))
    again = runs.rank.rank(config, tmp_path / "out", resume=True)
    assert again["num_compilations"] == 0
    assert again["correlations"] == result["correlations"]
    (tmp_path / "out" / "scores.json").write_text(json.dumps(record))
    other = dataclasses.replace(config, population="live", aggregate=("log_rank",))
    with pytest.raises(ValueError, match=r"has population all not live, aggregate \[\] not \['log"):
        runs.rank.rank(other, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregate": ("log_rank",), "proxies": ("naswot",)}, "log_rank takes at least two"),
        (
            {"aggregate": ("rank",)},
            "aggregate must be a list of one of az_nas, vkdnw_agg, log_rank",
        ),
        ({"population": "dead"}, "population must be one of all, live, got 'dead'"),
    ],
)
def test_settings_that_are_refused(ranked, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ranked[0], **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": ("/nowhere.csv",)}, "/nowhere.csv"),
        ({"column": "accuracy"}, "c10_test_200"),
        ({"num_archs": 31}, "num_archs must be within what there is to draw from, got 31"),
        ({"space": "darts", "ops": None, "num_cells": 3}, "nasbench201"),
    ],
)
def test_rank_refuses(ranked, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        runs.rank.rank(dataclasses.replace(ranked[0], **change), tmp_path)


def test_rank_of_listed_genotypes(ranked, table, tmp_path):
    config = ranked[0]
    rows = rows_of(table)
    listed = tmp_path / "genotypes.txt"
    listed.write_text("\n".join(row["arch_str"] for row in rows[1:4]))
    chosen = dataclasses.replace(config, genotypes=str(listed), seeds=1)
    assert runs.rank.rank(chosen, tmp_path / "out")["num_archs"] == 3
    listed.write_text(rows[0]["arch_str"])  # it has no accuracy
    with pytest.raises(ValueError, match=r"line 1 of .* is not in the table, or has no number"):
        runs.rank.rank(chosen, tmp_path / "other")
    listed.write_text("\n".join(row["arch_str"] for row in (rows[1], rows[2], rows[1])))
    with pytest.raises(ValueError, match=r"line 3 of .* is the architecture of line 1 again"):
        runs.rank.rank(chosen, tmp_path / "other")


def test_the_command(table, tmp_path, capsys):
    sizes = "--ops none skip_connect nor_conv_1x1 --norm frozen --init-channels 2 --num-cells 1"
    sizes += " --image-size 8 --batch-size 4 --seed 2 --num-archs 4 --seeds 2 --proxies naswot snip"
    sizes += " --aggregate log_rank --population live"
    # A table beside it that has two of its cells, each 1.5 points worse.
    beside = tmp_path / "beside.csv"
    known = [row for row in rows_of(table) if row["c10_test_200"]][:2]
    worse = [f"{row['arch_str']},{float(row['c10_test_200']) - 1.5:.2f}" for row in known]
    beside.write_text("\n".join(["arch_str,c10_test_200", *worse]) + "\n")
    files = ["--table", str(table), str(beside), "--column", "c10_test_200"]
    flags = [*sizes.split(), *files]
    out = tmp_path / "out"
    cli.main(["rank", *flags, "--out", str(out)])
    printed, progress = capsys.readouterr()
    assert "2 cells have c10_test_200 in two tables, whose difference is 1.50 in the" in printed
    assert "correlation with c10_test_200 over 4 architectures without dead operations" in printed
    correlations = json.loads((out / "rank.json").read_text())["correlations"]
    names = [line.split("│")[1].strip() for line in printed.splitlines() if line[:1] == "│"]
    assert [name for name in names if name] == list(correlations)
    assert "log_rank" in names
    found = correlations["naswot"]["spearman"]
    assert f"{found['value']:.3f} ± {found['deviation']:.3f} " in printed
    assert f"[{found['low']:.3f}, {found['high']:.3f}] " in printed
    assert f"{correlations['naswot']['best']['value']:.2f} ± " in printed
    assert "4 architectures of nasbench201, frozen norm, 2 seeds: compiled 1 program" in printed
    assert "compiling the scores of nasbench201" in progress and "scoring  1/8" in progress
    for again, message in (([], "--resume"), (["--resume", "--overwrite"], "exclude each other")):
        with pytest.raises(SystemExit) as caught:
            cli.main(["rank", *flags, "--out", str(out), *again])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    cli.main(["rank", *flags, "--out", str(out), "--resume"])
    assert capsys.readouterr().out.splitlines()[:-2] == printed.splitlines()[:-2]
