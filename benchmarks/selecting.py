"""What random search and evolution select by proxies whose scores of all cells are known.

Command:   python benchmarks/selecting.py --table nasbench201_cifar10.csv
Time:      20 minutes on two busy CPU cores
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
from collections.abc import Callable, Sequence
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
from nasi_jax.search.history import History, fitness_of
from nasi_jax.types import SearchSpace

DEFAULT = SelectConfig()
SETS: dict[str, tuple[str, ...]] = {
    "default": DEFAULT.proxies,
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
    """Networks that random search looks at."""
    evolved: int = 500
    """Networks that evolution looks at: among 5,044 in all it soon finds few that are new."""
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


Score = Callable[[Sequence[Any]], np.ndarray]
"""Maps N cells to their scores `[1, K, N]`."""


def evolved(key: jax.Array, space: SearchSpace, budget: int, score: Score) -> History:
    """A whole evolution by these scores."""
    sizes = {"population": DEFAULT.population, "tournament": DEFAULT.tournament}
    history = History(key, space, regularized_evolution(space, **sizes), budget=budget)
    while chosen := history.proposed(1):
        history.add(chosen, score(chosen))
    return history


def main() -> None:
    """Searches, and looks up what is selected."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = replace(config, budget=20, evolved=10, seeds=2)
    space, table = search_space("nasbench201"), tables.load(config.table)
    known, accuracy = known_scores(config.scores), table.column(config.column)

    print("| by | method | networks | selected | best of these |")
    print("| --- | --- | --- | --- | --- |")
    keys = [
        keys_of(seed)["architectures"] for seed in range(config.seed, config.seed + config.seeds)
    ]
    # These are the same whatever they are scored by.
    drawn = [
        History(key, space, random_search(space), budget=config.budget).proposed(config.budget)
        for key in keys
    ]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, proxies in SETS.items():

        def score(cells: Sequence[Any], proxies: tuple[str, ...] = proxies) -> np.ndarray:
            rows = [known[cell.to_text()] for cell in cells]
            return np.array([[[row[proxy] for row in rows] for proxy in proxies]])

        histories = [evolved(key, space, config.evolved, score) for key in keys]
        looked_at = {
            "random": [(cells, fitness_of(score(cells))) for cells in drawn],
            "evolution": [(history.genotypes, history.fitness) for history in histories],
        }
        for method, searches in looked_at.items():
            rows = []
            for cells, fitness in searches:
                accuracies = np.asarray(accuracy[table.indices(cells)])
                best = int(np.argmax(fitness))
                row = {"accuracy": float(accuracies[best]), "best": float(np.max(accuracies))}
                rows.append({"text": cells[best].to_text(), **row})
            found.setdefault(name, {})[method] = rows
            figures = (
                f"{np.mean(values):.2f} ± {stats.sem(values):.2f}"
                for values in ([row[which] for row in rows] for which in ("accuracy", "best"))
            )
            count = len(searches[0][0])
            print(f"| {name} | {method} | {count} | {' | '.join(figures)} |", flush=True)
    values = {name: str(value) for name, value in vars(config).items()}
    write_record(config.out, "selecting", {"config": values, "sets": SETS, "found": found})


if __name__ == "__main__":
    main()
