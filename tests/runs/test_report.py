"""`nasi report`: what it reads of the files of runs, refuses and writes."""

import json
import math
import re

import pytest
from helpers import assert_one_line

from nasi_jax import cli
from nasi_jax.config import SearchConfig, to_dict
from nasi_jax.report import page as pages
from nasi_jax.runs.report import report
from nasi_jax.storage import files

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"
OTHER = "|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"
OPS = ["nor_conv_3x3", "nor_conv_3x3", "avg_pool_3x3", "skip_connect", "none", "none"]
COMMON = {
    "genotype": {"format": "nasbench201", "ops": OPS},
    "text": CELL,
    "device": "cpu: cpu",
    "peak_memory_megabytes": None,
    "versions": {"jax": "0.0.1"},
}


@pytest.fixture(autouse=True)
def without_library(monkeypatch):
    """The script of Vega-Lite takes seconds to come, and the browser's tests have it."""
    monkeypatch.setattr(pages, "_library", lambda: "")


def a_search(folder, seed=0, margin=1.0, **changes):
    """The files of a search of two steps, of which one has no number."""
    folder.mkdir(exist_ok=True)
    config = to_dict(SearchConfig(seed=seed).resolved())
    choice = {"name": "0->1", "winner": "nor_conv_3x3", "runner_up": "none", "margin": 0.5}
    choice |= {"standard_error": 0.5, "margin_in_standard_errors": margin}
    result = {
        **COMMON,
        "choices": [{**choice, "sure": False, "steps_to_sure": None}],
        "alpha": {"cell": {"0->1": {"none": 0.25, "nor_conv_3x3": 0.75}}},
        "steps": 2,
        "seed": seed,
        "config": config,
        "seconds": {"compile": 1.0, "search": 2.0},
        **changes,
    }
    columns = ("step", "x", "nu", "gradient_norm", "selected")
    history = [[1, 1.5, 2.0, 3.0, OTHER], [2, math.nan, 2.0, 3.0, CELL]]
    (folder / "config.json").write_text(files.json_text(config))
    (folder / "result.json").write_text(files.json_text(result))
    (folder / "history.csv").write_text(files.csv_text(columns, history))
    return folder


def a_ranking(folder):
    """The files of a ranking of two cells by two seeds, as an earlier version left them."""
    folder.mkdir()
    found = {"value": 0.5, "low": None, "high": None, "deviation": None, "num": 2}
    none = dict.fromkeys(found)
    config = {"space": "nasbench201", "seed": 7, "table": ["t.csv"]}
    result = {
        **COMMON,
        "reference": "acc",
        "correlations": {
            "naswot": {"pearson": {**found, "low": 0.25, "high": 0.75}},
            "log_rank": {"pearson": none},
        },
        "config": config,
        "num_archs": 2,
        "seconds": {"compile": 1.0, "score": 2.0},
    }
    rows = [
        [7, CELL, 90.0, 1.0, 0.1],
        [7, OTHER, 10.0, 3.0, 0.1],
        [8, CELL, 90.0, 2.0, 0.1],
        [8, OTHER, 10.0, math.inf, 0.1],
    ]
    columns = ("seed", "genotype", "table_acc", "naswot", "seconds")
    (folder / "scores.csv").write_text(files.csv_text(columns, rows))
    (folder / "scores.json").write_text(files.json_text({"config": config}))
    (folder / "rank.json").write_text(files.json_text(result))
    return folder


def data_of(out):
    (found,) = re.findall(r'id="data">(.*?)</script>', out.read_text())
    return json.loads(found)


def test_a_search(tmp_path):
    report([a_search(tmp_path / "run")], tmp_path / "report.html")
    text, data = (tmp_path / "report.html").read_text(), data_of(tmp_path / "report.html")
    assert f"<code>{CELL}</code>" in text and "stroke-dasharray" in text
    assert "<td>0.5 ± 0.5</td><td>1</td><td>no</td><td>never</td>" in text
    alpha, margins, history, _ = (chart["data"]["values"] for chart in data["charts"])
    assert {row["column"]: row["value"] for row in alpha} == {"none": 0.25, "nor_conv_3x3": 0.75}
    assert [row["margin"] for row in margins] == [1.0]
    # x of the second step is no number.
    points = [(row["series"], row["x"], row["y"], row["cell"]) for row in history]
    assert points == [
        ("trace estimate x", 1, 1.5, 0),
        ("constraint nu", 1, 2.0, 0),
        ("constraint nu", 2, 2.0, 1),
    ]
    assert [cell["text"] for cell in data["cells"]] == [OTHER, CELL]
    assert all(cell["svg"].startswith("<svg") for cell in data["cells"])


def test_a_choice_beyond_noise_is_not_dashed(tmp_path):
    report([a_search(tmp_path / "run", margin=3.0)], tmp_path / "report.html")
    page, _, _ = (tmp_path / "report.html").read_text().partition('id="data"')
    assert "stroke-dasharray" not in page


def test_a_ranking(tmp_path):
    report([a_ranking(tmp_path / "run")], tmp_path / "report.html")
    text, data = (tmp_path / "report.html").read_text(), data_of(tmp_path / "report.html")
    (chart,) = data["charts"]  # the aggregate has no scores of its own
    assert chart["data"]["values"] == [{"x": 90.0, "y": 1.5, "cell": 0}]
    assert "1 architectures; 1 have no finite number." in text
    assert '<th scope="row">naswot</th><td>0.5 [0.25, 0.75]</td>' in text
    assert '<th scope="row">log_rank</th><td>undefined</td>' in text
    assert text.index(f'<th scope="row">{CELL}') < text.index(f'<th scope="row">{OTHER}')


def test_a_selection_by_several_seeds(tmp_path):
    """Its rows come batch by batch, those of a seed after another."""
    folder, third = tmp_path / "run", CELL.replace("skip_connect", "none")
    folder.mkdir()
    config = {"space": "nasbench201", "seed": 0, "budget": 3, "proxies": ["swap"]}
    scores = {str(seed): {"swap": 2.0} for seed in (0, 1)}
    result = {**COMMON, "config": config, "scores": scores, "num_scored": 3, "number": 1}
    result |= {"fitness": 0.5, "seconds": {"score": 1.0}}
    rows = [
        [0, CELL, 10.0, 2.0],
        [0, OTHER, 20.0, 3.0],
        [1, CELL, 10.0, 4.0],
        [1, OTHER, 20.0, 5.0],
        [0, third, 30.0, 6.0],
        [1, third, 30.0, 9.0],
        [0, "cell 0->1: none+skip_connect", 30.0, 7.0],  # a supernet
        [1, "cell 0->1: none+skip_connect", 30.0, 8.0],
    ]
    (folder / "config.json").write_text(files.json_text(config))
    (folder / "result.json").write_text(files.json_text(result))
    columns = ("seed", "genotype", "num_params", "swap")
    (folder / "scores.csv").write_text(files.csv_text(columns, rows))
    report([folder], tmp_path / "report.html")
    fitness, swap = (
        chart["data"]["values"] for chart in data_of(tmp_path / "report.html")["charts"]
    )
    assert [(row["x"], row["y"], row["cell"]) for row in swap] == [
        (10.0, 3.0, 0),
        (20.0, 4.0, 1),
        (30.0, 7.5, 2),
    ]
    points = [row["y"] for row in fitness if row["series"] == "architecture"]
    assert points == sorted(points) and len(set(points)) == 3
    best = [row["y"] for row in fitness if row["series"] == "best so far"]
    assert best == points


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / name / "run" for name in "ab"]
    for seed, folder in enumerate(folders):
        folder.parent.mkdir()
        a_search(folder, seed)
    report(folders, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert all(f'<th scope="col">{folder}</th>' in text for folder in folders)
    assert '<tr class="differs"><th scope="row">seed</th><td>0</td><td>1</td></tr>' in text
    assert '<tr><th scope="row">steps</th><td>2</td><td>2</td></tr>' in text


def test_settings_that_would_be_code_are_text(tmp_path):
    evil = "<script>alert(1)</script>"
    folder = a_search(tmp_path / "run", versions={"jax": evil}, device=evil)
    report([folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert evil not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_a_file_is_not_replaced_unasked(tmp_path):
    folder, out = a_search(tmp_path / "run"), tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(ValueError) as error:
        report([folder], out)
    assert_one_line(error, str(out), "--overwrite")
    assert out.read_text() == "mine"
    report([folder], out, overwrite=True)
    assert out.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", None, "holds no finished run: nasi resume"),
        ("result.json", "{", "result.json"),
        ("result.json", "[]", "an object"),
        ("result.json", '{"config": {}}', "KeyError"),
        ("history.csv", None, "history.csv"),
        ("history.csv", "step,x", "there is no row"),
        ("history.csv", "step,x\n1,2", "selected"),
        ("config.json", None, "there is no run at"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(tmp_path, name, content, said):
    folder = a_search(tmp_path / "run")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ValueError) as error:
        report([folder], tmp_path / "report.html")
    assert_one_line(error, str(folder), said)
    assert not (tmp_path / "report.html").exists()


def test_the_command(tmp_path, capsys):
    folder, out = a_search(tmp_path / "run"), tmp_path / "report.html"
    cli.main(["report", str(folder), "--out", str(out)])
    assert capsys.readouterr().out == f"wrote {out}\n" and out.exists()
    for arguments, said in (
        ([str(folder), "--out", str(out)], f"{out} is there already: replace it with --overwrite"),
        (["--out", str(tmp_path / "x")], "name at least one directory of a run to report"),
        ([str(folder), "--out", str(tmp_path / "no" / "x")], f"cannot write {tmp_path}/no/x: "),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["report", *arguments])
        err = capsys.readouterr().err
        assert caught.value.code == 2 and err.startswith(f"nasi: error: {said}")
        assert err.count("\n") == 1


def test_a_run_with_limits_has_the_size_that_they_are_of(tmp_path):
    network = {"for": "imagenet", "params": 4_917_952, "multiply_adds": 543_110_976}
    folder = a_search(tmp_path / "run", network=network, place=3)
    report([folder], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for name, shown in (("parameters", "4.92"), ("multiply-adds", "543.11")):
        assert re.search(rf"{name} for imagenet, millions</th>\s*<td[^>]*>{shown}</td>", page)
    report([a_search(tmp_path / "other")], tmp_path / "other.html")
    assert "for imagenet" not in (tmp_path / "other.html").read_text()
