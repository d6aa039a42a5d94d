"""`nasi select`: the architecture that several proxies rank highest, of those that it looks at."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nasi_jax import config as configuration
from nasi_jax.cells import genotype_to_dict
from nasi_jax.config import SelectConfig
from nasi_jax.report.cells import draw_genotype
from nasi_jax.report.curves import draw_fitness
from nasi_jax.report.figures import save
from nasi_jax.runs import score
from nasi_jax.runs.score import (
    Row,
    Scorer,
    in_space,
    keys_of,
    known_rows,
    norms_of,
    proxies_of,
)
from nasi_jax.runs.search import datasets_of, space_of
from nasi_jax.search.aggregate import log_rank
from nasi_jax.search.evolution import Propose, random_search, regularized_evolution
from nasi_jax.search.pruning import Masks, mixed_weights, num_supernets, perturb, prune, text_of
from nasi_jax.storage.directory import RunDirectory, provenance
from nasi_jax.storage.files import csv_text, finite, json_text
from nasi_jax.types import Alpha, Batch, OnProgress, Progress, SearchSpace

FILES = (
    "config.json",
    "scores.csv",
    "result.json",
    "cells.svg",
    "cells.png",
    "history.png",
)
"""The files of a selection's run directory; `overwrite` removes no others."""

_OF_SUPERNETS = ("prune", "perturb")
"""The methods that score supernets without some of their options."""

_SECONDS_BETWEEN_WRITES = 5.0
_PROPOSALS_PER_NETWORK = 50
_PROPOSALS_IN_VAIN = 20
"""In a row, after which a random one is looked at: all mutations of a parent may be known."""


def run_directory(out: Path) -> RunDirectory:
    """The run directory of a selection."""
    return RunDirectory(out, "selection", FILES, added={})


def saved(out: Path) -> SelectConfig:
    """Reads the configuration of a selection from its run directory.

    Raises:
      ValueError: if the directory holds none, or it cannot be read.
    """
    return score.saved(run_directory(out), SelectConfig)


def select(
    config: SelectConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Looks at architectures, and selects the one whose `log_rank` by all proxies is the highest.

    Ranks are over all that was looked at, so that evolution computes them anew after every network;
    of `prune` and `perturb` over the supernets that an option is chosen among, and at last over the
    architectures that they come to. With several seeds the sums over proxies are added.

    Args:
      config: the configuration.
      out: the directory for `FILES`; scores.csv has a line for each seed and network, in the order
        in which they were looked at.
      resume: whether to go on with the selection in the directory, if there is one. The result is
        that of an unbroken one.
      overwrite: whether to replace what an earlier selection left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `result.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, a directory that is in use,
        or holds another selection, or a space of fewer networks than the budget.
    """
    space, datasets = space_of(config), datasets_of(config)
    proxies = proxies_of(config, config.proxies)
    num_classes = datasets(config.seed).num_classes
    columns = ("seed", "genotype", *proxies, "seconds")
    seeds = range(config.seed, config.seed + config.seeds)

    @functools.cache
    def batch_of(seed: int) -> Batch:
        return datasets(seed).batch(keys_of(seed)["data"], 0, config.batch_size)

    batch_of(config.seed)
    directory = run_directory(out)
    settings = configuration.to_dict(config)
    with (
        directory.begun(settings, resume=resume, overwrite=overwrite),
        jax.default_matmul_precision(config.matmul_precision),
    ):
        table = directory.folder / "scores.csv"
        known = known_rows(table, columns, proxies) if table.exists() else {}
        of_supernets = config.method in _OF_SUPERNETS
        total = num_supernets(space, config.method, config.walks) or config.budget
        on_progress(Progress("compiling", total, 0))
        scorer = Scorer(
            config,
            proxies,
            num_classes,
            batch_of,
            seed=config.seed,
            weights=space.one_hot(space.sample(jax.random.key(0))),  # any
            there_are=total,
            num_kept=config.seeds,
            one_hot=not of_supernets,
        )
        on_progress(Progress("compiled", total, 0))
        written, rows = time.monotonic(), list[Row]()

        def rows_of(networks: Mapping[str, Alpha]) -> list[Row]:
            """The rows of up to `num_at_once` networks by text, those of a seed after another."""
            nonlocal written
            found, are_new = list[Row](), False
            for seed in seeds:
                if all((seed, text) in known for text in networks):
                    found += [known[seed, text] for text in networks]
                    continue
                are_new = True
                values, seconds = scorer(seed, list(networks.values()))
                found += [
                    Row(seed, text, each, seconds)
                    for text, each in zip(networks, values, strict=True)
                ]
            rows.extend(found)
            if are_new:
                each_seconds = len(seeds) * float(np.mean([row.seconds for row in rows]))
                on_progress(Progress("selecting", total, len(rows) // len(seeds), each_seconds))
                if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                    directory.write("scores.csv", _csv(columns, rows))
                    written = time.monotonic()
            return found

        if of_supernets:
            looked_at = _from_supernets(config, space, rows_of, scorer.num_at_once)
        else:
            looked_at = _History(config, space)
            while (missing := config.budget - len(looked_at.genotypes)) > 0:
                chosen = looked_at.proposed(min(scorer.num_at_once, missing))
                looked_at.add(chosen, rows_of(_one_hot(space, chosen)))
        directory.write("scores.csv", _csv(columns, rows))
        result = _result(config, space, looked_at, scorer, num_classes, rows)
        _draw(directory, result, looked_at)
        # Last: where it stands, all stand.
        directory.write("result.json", json_text(result))
    return result


def _one_hot(space: SearchSpace, genotypes: Sequence[Any]) -> dict[str, Alpha]:
    return {genotype.to_text(): space.one_hot(genotype) for genotype in genotypes}


def _from_supernets(
    config: SelectConfig,
    space: SearchSpace,
    rows_of: Callable[[Mapping[str, Alpha]], list[Row]],
    num_at_once: int,
) -> _History:
    """The architectures that `prune` or walks of `perturb` come to."""

    def fitness(candidates: Sequence[Masks]) -> np.ndarray:
        named = {text_of(space, masks): mixed_weights(space, masks) for masks in candidates}
        items = list(named.items())
        parts = [items[at : at + num_at_once] for at in range(0, len(items), num_at_once)]
        return _fitness(config, [row for part in parts for row in rows_of(dict(part))])

    if config.method == "prune":
        found = [prune(space, fitness)]
    else:
        keys = jax.random.split(keys_of(config.seed)["architectures"], config.walks)
        found = [perturb(key, space, fitness) for key in keys]
    looked_at = _History(config, space)
    for genotype in dict.fromkeys(found):
        looked_at.add([genotype], rows_of(_one_hot(space, [genotype])))
    return looked_at


def _fitness(config: SelectConfig, rows: Sequence[Row]) -> np.ndarray:
    """The sum over seeds of the `log_rank` of networks among one another."""
    names = dict.fromkeys(config.proxies)
    of_seeds: dict[int, list[Mapping[str, float]]] = {}
    for row in rows:
        of_seeds.setdefault(row.seed, []).append(row.values)
    sums: np.ndarray = np.sum(
        [
            log_rank([[each[name] for each in values] for name in names])
            for values in of_seeds.values()
        ],
        axis=0,
    )
    return sums


class _History:
    """The networks looked at, and the proposals of those to come, which depend on nothing else."""

    def __init__(self, config: SelectConfig, space: SearchSpace) -> None:
        self._config, self._space = config, space
        self._propose, self._random = _method(config, space), random_search(space)
        self._key = keys_of(config.seed)["architectures"]
        self._attempts, self._seen = 0, set[Any]()
        self.genotypes: list[Any] = []
        self.rows: list[Row] = []
        self.fitness = np.zeros(0)

    def proposed(self, count: int) -> list[Any]:
        """The next networks, none of which computes the function of another."""
        chosen: list[Any] = []
        in_vain = 0
        most = _PROPOSALS_PER_NETWORK * self._config.budget
        while len(chosen) < count:
            if self._attempts == most:
                raise ValueError(
                    f"budget must be within what there is to find, got {self._config.budget}, and "
                    f"only {len(self._seen)} different networks came up"
                )
            key = jax.random.fold_in(self._key, self._attempts)
            self._attempts += 1
            propose = self._propose if in_vain < _PROPOSALS_IN_VAIN else self._random
            genotype = propose(key, self.genotypes, self.fitness)
            form = genotype.canonical()
            in_vain += 1
            if form not in self._seen:
                in_vain = 0
                self._seen.add(form)
                chosen.append(in_space(self._space, form, genotype))
        return chosen

    def add(self, genotypes: Sequence[Any], rows: Sequence[Row]) -> None:
        """Adds networks with their rows, those of one seed after the other."""
        self.genotypes += genotypes
        self.rows += rows
        self.fitness = _fitness(self._config, self.rows)


def _method(config: SelectConfig, space: SearchSpace) -> Propose:
    if config.method == "random":
        return random_search(space)
    return regularized_evolution(space, population=config.population, tournament=config.tournament)


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = ([row.seed, row.genotype, *row.values.values(), row.seconds] for row in rows)
    return csv_text(columns, lines)


def _result(
    config: SelectConfig,
    space: SearchSpace,
    looked_at: _History,
    scorer: Scorer,
    num_classes: int,
    rows: Sequence[Row],
) -> dict[str, Any]:
    best = int(np.argmax(looked_at.fitness))
    genotype = looked_at.genotypes[best]
    text = genotype.to_text()
    return {
        "space": space.name,
        "text": text,
        "genotype": genotype_to_dict(genotype),
        "fitness": float(looked_at.fitness[best]),
        "scores": {
            str(row.seed): {name: finite(value) for name, value in row.values.items()}
            for row in looked_at.rows
            if row.genotype == text
        },
        "number": best + 1,
        "num_scored": len({row.genotype for row in rows}),
        "norm": dict(norms_of(config, proxies_of(config, config.proxies))),
        "num_classes": num_classes,
        "seed": config.seed,
        "config": configuration.to_dict(config),
        "seconds": {
            "compile": scorer.compile_seconds,
            "score": float(sum(row.seconds for row in rows)),
        },
        **provenance(),
        **genotype.record(),
    }


def _draw(directory: RunDirectory, result: Mapping[str, Any], looked_at: _History) -> None:
    config = result["config"]
    title = f"{config['method']} in {result['space']} by {', '.join(config['proxies'])}"
    cells = draw_genotype(looked_at.genotypes[result["number"] - 1], title=title)
    save(cells, directory.folder / "cells.svg")
    save(cells, directory.folder / "cells.png")
    save(draw_fitness(looked_at.fitness, title=title), directory.folder / "history.png")
