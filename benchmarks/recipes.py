"""Which proxies rank cells best together: chosen on some cells, reported on others.

Command:   nasi rank --table nasbench201_cifar10.csv --column c10valid_val_200 --num-archs 1000 \
               --data CIFAR.npz --num-cells 1 --batch-size 16 --proxies ... --out runs/chosen
           nasi rank ... --column c10_test_200 --genotypes all.txt --out runs/all
           python benchmarks/recipes.py --chosen-on runs/chosen --reported-on runs/all
Time:      some minutes, after two rankings of half an hour each on two CPU cores
Expected:  benchmarks/README.md, (i)

Takes all sets of up to `most` proxies that read no labels, and of them the one whose log_rank has
the highest Kendall correlation with the first ranking's column. Prints the correlations of every
proxy, of the aggregates of the literature and of this one over the cells of the second ranking that
the first has not; and the accuracy of what each ranks first among `budget` of these cells, the mean
over `draws` draws. Writes recipes.json.
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from measuring import write_record
from scipy import stats

from nasi_jax.report.correlation import OF_ACCURACY, correlations
from nasi_jax.search.aggregate import AGGREGATES, log_rank

LABELLED = ("zico", "gradsign", "lswag", "grad_norm", "snip", "grasp", "fisher", "batch_gradient")
"""Proxies that read labels."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    chosen_on: Path
    """The directory of the `nasi rank` that the proxies are chosen on."""
    reported_on: Path
    """That of other cells, with the same proxies."""
    most: int = 4
    """The most proxies of a set."""
    budget: int = 3000
    """Among how many cells each selects one."""
    draws: int = 10
    """How often."""
    resamples: int = 200
    """Of cells, for the intervals."""
    shown: int = 5
    """How many of the best sets of each size to print."""
    out: Path = Path("runs/recipes")
    """Where the record goes."""


class Cells(NamedTuple):
    """Cells with their accuracies `[N]` and, by proxy, their scores `[N]`."""

    texts: np.ndarray
    accuracies: np.ndarray
    scores: dict[str, np.ndarray]


def read(folder: Path) -> Cells:
    """The cells of a ranking of one seed."""
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    (truth,) = (name for name in columns if name.startswith("table_"))
    accuracies = columns.pop(truth).astype(float)
    texts = columns.pop("genotype")
    if len(set(columns.pop("seed"))) > 1:
        raise ValueError(f"the ranking in {folder} must be of one seed")
    del columns["seconds"]
    return Cells(texts, accuracies, {name: each.astype(float) for name, each in columns.items()})


def chosen(cells: Cells, most: int) -> dict[int, list[tuple[float, tuple[str, ...]]]]:
    """For each number of proxies all sets of them, the best first, with Kendall's tau of each."""
    names = [name for name in cells.scores if name not in LABELLED]
    # A sum of these is the log_rank of the proxies.
    logs = {name: log_rank(cells.scores[name][None]) for name in names}
    found = {}
    for count in range(1, most + 1):
        sets = (
            (
                float(
                    stats.kendalltau(cells.accuracies, sum(logs[name] for name in each)).statistic
                ),
                each,
            )
            for each in itertools.combinations(names, count)
        )
        found[count] = sorted(sets, reverse=True)
    return found


def main() -> None:
    """Chooses and reports."""
    config = tyro.cli(Config, description=__doc__)
    first, second = read(config.chosen_on), read(config.reported_on)
    sets = chosen(first, config.most)
    for count, best in sets.items():
        for tau, names in best[: config.shown]:
            print(f"{count}: tau {tau:.4f}  {' '.join(names)}", flush=True)
    _, recipe = max(best[0] for best in sets.values() if best)
    others = ~np.isin(second.texts, first.texts)
    scores = {name: values[others] for name, values in second.scores.items()}
    together = {**AGGREGATES, "recipe": recipe}
    for name, members in together.items():
        if set(members) <= scores.keys():
            scores[name] = log_rank([scores[member] for member in members])
    truth = second.accuracies[others]
    print(f"recipe: {' '.join(recipe)}; over {len(truth)} other cells:")
    rng = np.random.default_rng(0)
    budget = min(config.budget, len(truth))
    drawn = [rng.permutation(len(truth))[:budget] for _ in range(config.draws)]
    picks = np.array([np.max(truth[each]) for each in drawn])
    print(f"the best of {budget}: {picks.mean():.2f} ± {stats.sem(picks):.2f}")
    table, selected = {}, {"optimum": picks.tolist()}
    for name, values in scores.items():
        parts = np.stack([scores[member] for member in together.get(name, (name,))])
        # Ranks are among what is drawn.
        first_of = [each[np.argmax(log_rank(parts[:, each]))] for each in drawn]
        picks = truth[first_of]
        selected[name] = picks.tolist()
        found = correlations(
            truth, values, coefficients=OF_ACCURACY, num_resamples=config.resamples
        )
        table[name] = {coefficient: each._asdict() for coefficient, each in found.items()}
        figures = (
            f"{coefficient} {each.value:.3f} [{each.low:.3f}, {each.high:.3f}]"
            for coefficient, each in found.items()
        )
        pick = f"selected {picks.mean():.2f} ± {stats.sem(picks):.2f}"
        print(f"| {name} | {' | '.join(figures)} | {pick} |", flush=True)
    record = {
        "chosen_on": str(config.chosen_on),
        "reported_on": str(config.reported_on),
        "recipe": recipe,
        "sets": {count: best[: config.shown] for count, best in sets.items()},
        "num_cells": int(others.sum()),
        "correlations": table,
        "selected": selected,
    }
    write_record(config.out, "recipes", record)


if __name__ == "__main__":
    main()
