"""`nasi compare` and `nasi rank`: their figures, from what they wrote; resume; refusals."""

import csv
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from nasi_jax import cli, parse_genotype, runs, tables
from nasi_jax.config import RankConfig, ScoreConfig

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
    config = ScoreConfig(**SIZES, num_archs=5, proxies=("grad_norm",))
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
    sizes += " --image-size 8 --batch-size 4 --seed 2 --num-archs 4 --seeds 2 --proxies naswot"
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
    found = json.loads((out / "rank.json").read_text())["correlations"]["naswot"]["spearman"]
    assert f"{found['value']:.3f} ± {found['deviation']:.3f} [{found['low']:.3f}, " in printed
    assert "4 architectures of nasbench201, frozen norm, 2 seeds: compiled 1 program" in printed
    assert "compiling the scores of nasbench201" in progress and "scoring  1/8" in progress
    for again, message in (([], "--resume"), (["--resume", "--overwrite"], "exclude each other")):
        with pytest.raises(SystemExit) as caught:
            cli.main(["rank", *flags, "--out", str(out), *again])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    cli.main(["rank", *flags, "--out", str(out), "--resume"])
    assert capsys.readouterr().out.splitlines()[:-2] == printed.splitlines()[:-2]
