"""Estimates of what a partial table lacks: close where they can be, and honest of their error."""

import json

import estimates
import jax
import numpy as np
import pytest
from estimates import Reader, path_counts

from nasi_jax import parse_genotype, tables
from nasi_jax.cells import SEARCH_SPACES

SPACE = SEARCH_SPACES["nasbench1shot1-1"]
LINEAR = {"conv3x3-bn-relu": 0.02, "conv1x1-bn-relu": 0.004, "maxpool3x3": -0.012}


@pytest.fixture(scope="module")
def cells():
    """200 different cells, in the form in which the benchmark has them."""
    drawn = map(SPACE.sample, jax.random.split(jax.random.key(0), 300))
    return list({cell.module_hash(): cell.prune() for cell in drawn}.values())[:200]


def table(path, cells, accuracy):
    lines = ["hash,adjacency,ops,params,val_108"]
    for cell in cells:
        bits = "".join(str(bit) for row in cell.matrix for bit in row)
        lines.append(f'{cell.module_hash()},{bits},"{",".join(cell.ops)}",1,{accuracy(cell)}')
    path.write_text("\n".join(lines) + "\n")
    return tables.load(path)


def linear(cell):
    return 0.85 + sum(LINEAR[op] for op in cell.ops[1:-1])


def test_paths_are_those_of_the_matrix(cells):
    """The powers of the adjacency matrix count the paths of each length."""
    for cell in cells:
        paths, numbers = path_counts(cell)
        matrix, output = np.array(cell.matrix), len(cell.ops) - 1
        for length in range(1, output + 1):
            count = sum(count for path, count in paths.items() if len(path) == length - 1)
            assert count == np.linalg.matrix_power(matrix, length)[0, -1]
        assert sum(numbers[:3]) + 1 == numbers[3] == output
        assert {op for path in paths for op in path} == set(cell.ops[1:-1])


def test_estimates_are_close_where_the_accuracy_is_linear(tmp_path, cells):
    reader = Reader(table(tmp_path / "table.csv", cells[:150], linear), "val_108")
    assert reader.columns == ["val_108", "val_108, gaps estimated"]
    found, filled = reader(cells).values()
    truth = 100 * np.array([linear(cell) for cell in cells])
    np.testing.assert_allclose(found[:150], truth[:150])
    np.testing.assert_array_equal(filled[:150], found[:150])
    assert np.isnan(found[150:]).all()
    assert np.abs(filled[150:] - truth[150:]).max() < 0.1 * np.std(truth)


def test_trainings_that_failed_are_looked_up_and_teach_nothing(tmp_path, cells):
    failed = set(cells[:150:10])
    accuracy = {cell: 0.1 if cell in failed else linear(cell) for cell in cells}
    reader = Reader(table(tmp_path / "table.csv", cells[:150], accuracy.get), "val_108")
    found, filled = reader(cells).values()
    np.testing.assert_allclose(found[:150:10], 10)
    truth = 100 * np.array([linear(cell) for cell in cells[150:]])
    assert np.abs(filled[150:] - truth).max() < 0.1 * np.std(truth)


def test_the_error_is_of_cells_that_are_left_out(tmp_path, cells):
    """Noise has nothing to learn, so an estimate that knew its cell would give itself away."""
    noise = np.random.default_rng(0).uniform(0.76, 0.96, len(cells))
    values = dict(zip(cells, noise, strict=True))
    error = Reader(table(tmp_path / "noise.csv", cells, values.get), "val_108").error(SPACE)
    assert error["cells"] > 100
    assert abs(error["spearman"]) < 0.3
    assert error["median_size"] > 3
    error = Reader(table(tmp_path / "linear.csv", cells, linear), "val_108").error(SPACE)
    assert error["spearman"] > 0.98
    assert error["median_size"] < 0.3


def test_other_benchmarks_are_only_looked_up(tmp_path):
    path = tmp_path / "table.csv"
    cell = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    path.write_text(f"arch_str,val_1\n{cell},7\n")
    reader = Reader(tables.load(path), "val_1")
    assert reader.columns == ["val_1"]
    assert reader.error(SPACE) is None


@pytest.fixture
def study(tmp_path, cells, monkeypatch):
    """What the studies are given."""
    monkeypatch.setattr(estimates, "NUM_DRAWS", 300)
    table(tmp_path / "table.csv", cells, linear)
    named = ("--table", tmp_path / "table.csv", "--column", "val_108", "--out", tmp_path)
    return ("--smoke", "--space", SPACE.name, *named)


@pytest.mark.slow
def test_a_study_with_gaps(run, study, tmp_path):
    columns = ["val_108", "val_108, gaps estimated"]
    printed = run("selection", *study)
    record = json.loads((tmp_path / "selection.json").read_text())
    assert [list(row) for row in record["rows"].values()] == [columns] * 5
    filled = [row[columns[1]] for row in record["rows"].values()]
    assert all(row["found"] == row["of"] for row in filled)
    chosen = [100 * linear(parse_genotype(text).prune()) for text in record["selected"]]
    assert [each[-1] for each in record["accuracies"]] == pytest.approx(chosen, abs=1)
    assert f"estimates of {record['error of the estimates']['cells']} cells" in printed


@pytest.mark.slow
def test_ablations_with_gaps(run, study, tmp_path):
    printed = run("ablations", *study)
    record = json.loads((tmp_path / "ablations.json").read_text())
    for name, row in record["rows"].items():
        assert list(row) == ["val_108", "val_108, gaps estimated"]
        chosen = [100 * linear(parse_genotype(each).prune()) for each in record["selected"][name]]
        filled = row["val_108, gaps estimated"]
        # Two searches, whose draws of theta_0 taking turns are one.
        assert filled["found"] == filled["of"] == (1 if name == "draws of theta_0: 2" else 2)
        assert filled["mean"] == pytest.approx(np.mean(chosen), abs=1)
    assert f"estimates of {record['error of the estimates']['cells']} cells" in printed
