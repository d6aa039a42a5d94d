"""Spaces and proxies of others: from one file, by `module:name` or from an installed package."""

import csv
import importlib.metadata
import json
import sys

import pytest
import toy
from PIL import Image

from nasi_jax import plugins
from nasi_jax.cells import SEARCH_SPACES, parse_genotype, search_space
from nasi_jax.cli import main
from nasi_jax.kernels import PROXIES, proxy_named

SPACE = "toy:Chains"
pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = ("--data", "digits", "--image-size", "8", "--batch-size", "8")


def nasi(*arguments):
    main([*map(str, arguments)])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The directory of a search in the toy space."""
    out = tmp_path_factory.mktemp("toy") / "search"
    nasi("search", "--space", SPACE, *DATA, "--out", out)
    return out


def test_a_space_of_one_file_is_searched(found):
    result = json.loads((found / "result.json").read_text())
    assert result["space"] == "chains" and result["config"]["space"] == SPACE
    assert result["config"]["steps"] == 2  # the space's own setting
    assert result["config"]["penalty"] == 1.0  # a general one
    chosen = [max(row, key=row.get) for row in result["alpha"]["chain"].values()]
    assert result["genotype"] == {"format": "chain", "ops": chosen}
    assert result["text"] == f"chain:{','.join(chosen)}"
    assert (found / "cells.svg").exists() and (found / "history.png").exists()


def test_its_cells_are_scored_by_our_proxies_and_by_one_of_another_file(tmp_path):
    out = tmp_path / "scores.csv"
    proxies = ("naswot", "grad_norm", "synflow", "ntk_trace", "toy:output_sum")
    nasi(
        *("score", "--space", SPACE, *DATA, "--num-archs", 4, "--out", out),
        *("--proxies", *proxies),
    )
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["genotype"] for row in rows} == {
        f"chain:{first},{second}" for first in toy.OPS for second in toy.OPS
    }
    assert all(float(row["num_params"]) > 0 for row in rows)
    assert len({row["toy:output_sum"] for row in rows}) > 1


def test_its_genotypes_are_shown_drawn_and_exported(found, tmp_path, capsys):
    for form in ("text", "json"):
        nasi("show", found / "result.json", "--space", SPACE, "--format", form)
        shown = capsys.readouterr().out
        assert parse_genotype(shown, SPACE).family == "chain"
        nasi("export", shown.strip(), "--space", SPACE, "--format", form)
        assert parse_genotype(capsys.readouterr().out, SPACE) == parse_genotype(shown, SPACE)
    drawing = tmp_path / "chain.svg"
    nasi("show", "chain:skip,conv", "--space", SPACE, "--format", "svg", "--out", drawing)
    assert drawing.read_text().startswith("<?xml")


def test_its_networks_are_trained_and_predict(found, tmp_path, capsys):
    out = tmp_path / "train"
    nasi(
        *("train", found / "result.json", "--space", SPACE, "--epochs", 1, "--image-size", 8),
        *("--batch-size", 500, "--no-flip", "--out", out),
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["genotype"]["format"] == "chain" and summary["parameters"] > 0
    nasi("train", "--resume", "--out", out)  # whose config.json names the space
    capsys.readouterr()
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    nasi("predict", out, tmp_path / "white.png")
    path, name, probability = capsys.readouterr().out.rstrip("\n").split("\t")
    assert path.endswith("white.png") and name in map(str, range(10))
    assert 0 < float(probability) <= 1


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        nasi(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    return line


def test_there_is_no_module_for_it(capsys):
    line = refused(capsys, "export", "chain:skip,conv", "--space", SPACE, "--format", "flax")
    assert line == (
        "nasi: error: there is no flax module for a chain genotype, which can be written as json "
        "or text"
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("absent", "unknown space 'absent'; known: darts, nasbench201, "),
        ("absent:Space", "cannot import absent:Space: ModuleNotFoundError"),
        ("toy:Absent", "cannot import toy:Absent: AttributeError"),
        ("toy:Chain", "cannot make toy:Chain without arguments: "),
        ("toy:OPS", "toy:OPS is not a search space: it has no "),
    ],
)
def test_what_is_no_space_is_one_line(space, message, tmp_path, capsys):
    line = refused(capsys, "search", "--space", space, "--out", tmp_path / "out")
    assert message in line


def test_what_is_no_proxy_is_one_line(tmp_path, capsys):
    out = tmp_path / "scores.csv"
    for name in ("absent", "toy:OPS"):
        line = refused(capsys, "score", "--proxies", name, "--out", out)
        assert name in line and "proxy" in line
    assert not out.exists()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that brings the toy, as pip would have installed it."""
    info = tmp_path / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[nasi_jax.spaces]\nchains = toy:Chains\n\n[nasi_jax.proxies]\ntotal = toy:output_sum\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_an_installed_package_needs_no_line():
    assert search_space("chains", num_cells=2).num_cells == 2
    assert parse_genotype("chain:conv,skip") == toy.Chain(("conv", "skip"))
    assert proxy_named("total") is toy.output_sum
    with pytest.raises(ValueError, match=r"unknown space 'x'; known: darts, .*, chains, and"):
        search_space("x")


def test_without_it_there_is_no_such_name():
    with pytest.raises(ValueError, match="unknown space 'chains'"):
        search_space("chains")
    with pytest.raises(ValueError, match="not a genotype: 'chain:conv,skip'"):
        parse_genotype("chain:conv,skip")


def test_our_own_come_first():
    for known, name in ((SEARCH_SPACES, "darts"), (PROXIES, "snip")):
        assert plugins.find(name, known, "nasi_jax.spaces", "space") is known[name]
