"""What random search and evolution select by proxies whose scores of all cells are known.

Command:   python benchmarks/selecting.py --table nasbench201_cifar10.csv
Time:      half an hour on two busy CPU cores
Expected:  benchmarks/README.md, (i)

Goes through `nasi select` on NAS-Bench-201 with scores that are looked up, by the canonical form of
a cell, in a file under benchmarks/scores: the searches differ in the cells that they look at, not
in the parameters that these were scored with. Of what each selects the accuracy is looked up in the
table. Prints the mean over searches with its standard error, beside the best that each looked at.
Writes selecting.json.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measuring import write_record
from scipy import stats

from nasi_jax import SelectConfig, search_space, tables
from nasi_jax.runs.score import keys_of
from nasi_jax.search import AGGREGATES, random_search, regularized_evolution
from nasi_jax.search.history import History
from nasi_jax.types import SearchSpace

DEFAULT = SelectConfig()
SETS: dict[str, tuple[str, ...]] = {
    "recipe": DEFAULT.proxies,
    "az_nas": AGGREGATES["az_nas"],
    "flops": ("flops",),
    "synflow": ("synflow",),
}
"""What is selected by."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    table: str
    """A table of accuracies of NAS-Bench-201."""
    column: str = "c10_test_200"
    """Which of its columns."""
    scores: Path = Path(__file__).parent / "scores" / "nasbench201-1-cell-16-images-seed-0.csv.gz"
    """Scores of all networks, by canonical genotype."""
    budget: int = 3000
    """Networks that a search looks at."""
    seeds: int = 10
    """Searches."""
    seed: int = 0
    """Of the first of them."""
    out: Path = Path("runs/selecting")
    """Where the record goes."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def known_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores in a file, by genotype and proxy."""
    with gzip.open(path, "rt") as file:
        return {
            row.pop("genotype"): {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        }


def looked_at(
    key: jax.Array, space: SearchSpace, method: str, budget: int, score: Callable[[Any], np.ndarray]
) -> History:
    """A whole search by scores `[K]` of each cell."""
    if method == "random":
        propose, at_once = random_search(space), budget
    else:
        sizes = {"population": DEFAULT.population, "tournament": DEFAULT.tournament}
        propose, at_once = regularized_evolution(space, **sizes), 1
    history = History(key, space, propose, budget=budget)
    while chosen := history.proposed(at_once):
        history.add(chosen, np.stack([score(each) for each in chosen], axis=-1)[None])
    return history


def main() -> None:
    """Searches, and looks up what is selected."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = replace(config, budget=80, seeds=2)
    space, table = search_space("nasbench201"), tables.load(config.table)
    known, accuracy = known_scores(config.scores), table.column(config.column)

    def accuracies_of(genotypes: list[Any]) -> np.ndarray:
        return np.asarray(accuracy[table.indices(genotypes)])

    print(f"| by | method | selected | best of {config.budget} looked at |")
    print("| --- | --- | --- | --- |")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, proxies in SETS.items():

        def score(genotype: Any, proxies: tuple[str, ...] = proxies) -> np.ndarray:
            scores = known[genotype.to_text()]
            return np.array([scores[proxy] for proxy in proxies])

        for method in ("random", "evolution"):
            rows = []
            for seed in range(config.seed, config.seed + config.seeds):
                key = keys_of(seed)["architectures"]
                history = looked_at(key, space, method, config.budget, score)
                best = history.genotypes[int(np.argmax(history.fitness))]
                (accuracy_of_it,) = accuracies_of([best])
                most = float(np.max(accuracies_of(history.genotypes)))
                text = best.to_text()
                rows.append({"text": text, "accuracy": float(accuracy_of_it), "best": most})
            found.setdefault(name, {})[method] = rows
            figures = (
                f"{np.mean(values):.2f} ± {stats.sem(values):.2f}"
                for values in ([row[which] for row in rows] for which in ("accuracy", "best"))
            )
            print(f"| {name} | {method} | {' | '.join(figures)} |", flush=True)
    values = {name: str(value) for name, value in vars(config).items()}
    write_record(config.out, "selecting", {"config": values, "sets": SETS, "found": found})


if __name__ == "__main__":
    main()
