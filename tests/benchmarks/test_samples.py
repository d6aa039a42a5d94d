"""The studies' samples: they give the alpha that a search has, whatever its T, mu and rule."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny
from samples import accuracies_of, alphas, print_table, sampled, selected, summary

from nasi_jax import tables
from nasi_jax.cells import parse_genotype
from nasi_jax.runs.search import build, constraint_of, dataset_of
from nasi_jax.search import run

CONFIG = dataclasses.replace(tiny.CONFIG, steps=4)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("samples")
    return out, *sampled(CONFIG, (2, 3), out)


@pytest.mark.parametrize(
    ("steps", "penalty", "rule", "seed"),
    [(4, 2.0, "adaptive", 2), (4, 1.0, "fixed", 3), (3, 5.0, "fixed", 2)],
)
def test_alphas_are_those_of_a_search(kept, steps, penalty, rule, seed):
    """To float32 rounding, in sums whose terms are at most 1 / T."""
    _, space, found = kept
    between = float(np.median(found[seed - 2].trace))  # some x are above it, some below
    config = dataclasses.replace(
        CONFIG, steps=steps, penalty=penalty, constraint=between, constraint_rule=rule, seed=seed
    ).resolved()
    dataset = dataset_of(config)
    _, algorithm = build(config, dataset.num_classes)
    search_key, data_key = jax.random.split(jax.random.key(seed))
    done = run(search_key, algorithm, lambda step: dataset.batch(data_key, step, 4), steps)
    history = alphas(
        found[seed - 2], steps=steps, penalty=config.penalty, constraint=constraint_of(config)
    )
    assert history.keys() == done.state.alpha.keys()
    for name, expected in done.state.alpha.items():
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(history[name][-1], expected, atol=2e-6)
        by_step = np.cumsum(done.info.update[name], axis=0)
        np.testing.assert_allclose(history[name], by_step, atol=2e-6)
    assert selected(space, history, [steps]) == [space.discretize(done.state.alpha)]


def test_samples_are_kept(kept, monkeypatch):
    out, _, found = kept
    assert len(list(out.iterdir())) == 2
    assert not np.allclose(found[0].trace, found[1].trace)
    monkeypatch.setattr("samples._record", None)  # nothing is searched again
    _, again = sampled(dataclasses.replace(CONFIG, penalty=7.0, seed=9), (3,), out)
    np.testing.assert_array_equal(again[0].trace, found[1].trace)
    with pytest.raises(TypeError):
        sampled(dataclasses.replace(CONFIG, temperature=2.0), (3,), out)


def test_means_are_over_what_a_table_has(tmp_path, capsys):
    ops = ("none", "skip_connect")
    cells = [
        "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*each)
        for each in itertools.product(ops, repeat=6)
    ]
    path = tmp_path / "table.csv"
    path.write_text("arch_str,val_1\n" + "".join(f"{cells[row]},{row}\n" for row in (0, 5, 63)))
    table = tables.load(path)
    wanted = [parse_genotype(text) for text in (cells[0], cells[62], cells[63])]
    found = accuracies_of(table, "val_1", wanted)
    np.testing.assert_array_equal(found, [0, np.nan, 63])
    assert summary(found) == {
        "mean": 31.5,
        "standard_error": pytest.approx(np.std([0, 63], ddof=1) / np.sqrt(2)),
        "found": 2,
        "of": 3,
    }
    parts = {"none": found[1:2], "one": found[2:], "some": found}
    print_table("cells", {name: {"val_1": summary(part)} for name, part in parts.items()})
    assert capsys.readouterr().out.splitlines() == [
        "| cells | val_1 | in the table |",
        "| --- | --- | --- |",
        "| none | - | 0 of 1 |",
        "| one | 63.00 | 1 of 1 |",
        "| some | 31.50 ± 31.50 | 2 of 3 |",
    ]
