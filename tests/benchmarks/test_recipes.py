"""Which proxies rank cells best together, where that is known."""

import json

import numpy as np

from nasi_jax.storage.files import csv_text


def write(folder, seed, count):
    """Cells whose accuracy is the product of what two proxies say, and other proxies."""
    rng = np.random.default_rng(seed)
    good, better, noise = rng.permuted(np.tile(np.arange(1.0, count + 1), (3, 1)), axis=1)
    texts = [f"cell {seed // 2} {number}" for number in range(count)]
    columns = ("seed", "genotype", "table_acc", "jacov", "swap", "near", "zico", "seconds")
    accuracies = good * better / count**2 * 100
    rows = zip(
        [0] * count, texts, accuracies, good, better, noise, accuracies, [1.0] * count, strict=True
    )
    folder.mkdir()
    (folder / "scores.csv").write_text(csv_text(columns, rows))
    return accuracies


def test_the_set_is_chosen_on_some_cells_and_reported_on_others(run, tmp_path):
    write(tmp_path / "chosen", 0, 40)
    accuracies = write(tmp_path / "reported", 1, 60)
    printed = run(
        *("recipes", "--chosen-on", tmp_path / "chosen", "--reported-on", tmp_path / "reported"),
        *("--out", tmp_path / "out", "--budget", 20, "--draws", 2),
    )
    # Not zico, which is the accuracy itself here: it reads labels. The first 40 cells are known.
    assert "recipe: swap jacov; over 20 other cells" in printed.replace("jacov swap", "swap jacov")
    record = json.loads((tmp_path / "out" / "recipes.json").read_text())
    assert set(record["recipe"]) == {"jacov", "swap"} and record["num_cells"] == 20
    taus = {name: each["kendall"]["value"] for name, each in record["correlations"].items()}
    assert taus["recipe"] > 0.9 > max(taus["jacov"], taus["swap"], taus["near"])
    best = accuracies[40:].max()
    assert record["selected"]["optimum"] == record["selected"]["zico"] == [best, best]
    assert record["selected"]["recipe"] == [best, best]
