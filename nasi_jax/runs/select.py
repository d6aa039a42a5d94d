"""`nasi select`: the architecture that several proxies rank highest, of those that it looks at."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from nasi_jax import config as configuration
from nasi_jax.cells import genotype_to_dict
from nasi_jax.config import SelectConfig
from nasi_jax.devices.mesh import SAMPLE, along, require_only, sizes
from nasi_jax.report.cells import draw_genotype
from nasi_jax.report.curves import draw_fitness
from nasi_jax.report.figures import save
from nasi_jax.runs import limits, score
from nasi_jax.runs.score import (
    SPREAD,
    Row,
    Scorer,
    at_once,
    keys_of,
    known_rows,
    norms_of,
    proxies_of,
)
from nasi_jax.runs.search import datasets_of, space_of
from nasi_jax.search.evolution import Propose, random_search, regularized_evolution
from nasi_jax.search.history import History, fitness_of
from nasi_jax.search.pruning import Masks, mixed_weights, num_supernets, perturb, prune, text_of
from nasi_jax.storage.directory import RunDirectory, provenance
from nasi_jax.storage.files import csv_text, finite, json_text
from nasi_jax.types import Alpha, Batch, Genotype, OnProgress, Progress, SearchSpace

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


def run_directory(out: Path) -> RunDirectory:
    """The run directory of a selection."""
    return RunDirectory(out, "selection", FILES, added=limits.NONE)


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
    mesh: Mesh | None = None,
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
      mesh: as for `nasi_jax.runs.score.score`. Evolution takes no more devices than it proposes
        networks from the same history, which are `archs_per_call` whatever the mesh, so that what
        is selected does not depend on it.
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
    proxies, is_within = proxies_of(config, config.proxies), limits.within(config, space)
    num_classes = datasets(config.seed).num_classes
    columns = ("seed", "genotype", *proxies, "seconds")
    seeds = range(config.seed, config.seed + config.seeds)

    @functools.cache
    def batch_of(seed: int) -> Batch:
        return datasets(seed).batch(keys_of(seed)["data"], 0, config.batch_size)

    batch_of(config.seed)
    of_supernets = config.method in _OF_SUPERNETS
    total = num_supernets(space, config.method, config.walks) or config.budget
    # What evolution proposes next depends on what it has seen: not on how many devices there are.
    most = at_once(config.archs_per_call, total) if config.method == "evolution" else total
    mesh = mesh or along(SAMPLE, most)
    require_only(SAMPLE, mesh, SPREAD)
    if config.method == "evolution" and sizes(mesh)[SAMPLE] > most:
        raise ValueError(
            f"evolution takes at most {most} devices along {SAMPLE}, as many as it proposes "
            f"networks at a time (--archs-per-call), got {sizes(mesh)[SAMPLE]}"
        )
    directory = run_directory(out)
    settings = configuration.to_dict(config)
    with (
        directory.begun(settings, resume=resume, overwrite=overwrite),
        jax.default_matmul_precision(config.matmul_precision),
    ):
        table = directory.folder / "scores.csv"
        known = known_rows(table, columns, proxies) if table.exists() else {}
        on_progress(Progress("compiling", total, 0))
        scorer = Scorer(
            config,
            proxies,
            num_classes,
            batch_of,
            seed=config.seed,
            weights=space.one_hot(space.sample(jax.random.key(0))),  # any
            there_are=most,
            mesh=mesh,
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
            genotypes, fitness = _from_supernets(config, space, is_within, rows_of, scorer)
        else:
            key = keys_of(config.seed)["architectures"]
            propose = _method(config, space)
            looked_at = History(key, space, propose, budget=config.budget, is_within=is_within)
            while chosen := looked_at.proposed(min(scorer.num_at_once, most)):
                looked_at.add(chosen, _scores(config, rows_of(_one_hot(space, chosen))))
            genotypes, fitness = looked_at.genotypes, looked_at.fitness
        directory.write("scores.csv", _csv(columns, rows))
        number = int(np.argmax(fitness)) + 1
        result = {
            **_result(config, space, genotypes[number - 1], num_classes, rows),
            "fitness": float(fitness[number - 1]),
            "number": number,
            "mesh": sizes(mesh),
            "seconds": {
                "compile": scorer.compile_seconds,
                "score": float(sum(row.seconds for row in rows)),
            },
        }
        _draw(directory, result, genotypes[number - 1], fitness)
        # Last: where it stands, all stand.
        directory.write("result.json", json_text(result))
    return result


def _one_hot(space: SearchSpace, genotypes: Sequence[Any]) -> dict[str, Alpha]:
    return {genotype.to_text(): space.one_hot(genotype) for genotype in genotypes}


def _scores(config: SelectConfig, rows: Sequence[Row]) -> np.ndarray:
    """The scores `[S, K, N]` by the proxies of the configuration, of rows seed by seed."""
    names = dict.fromkeys(config.proxies)
    values = np.array([[row.values[name] for name in names] for row in rows])
    return np.swapaxes(values.reshape(config.seeds, -1, len(names)), 1, 2)


def _from_supernets(
    config: SelectConfig,
    space: SearchSpace,
    is_within: Callable[[Any], bool],
    rows_of: Callable[[Mapping[str, Alpha]], list[Row]],
    scorer: Scorer,
) -> tuple[list[Any], np.ndarray]:
    """The architectures that `prune` or walks of `perturb` come to, and their fitness."""
    count = scorer.num_at_once

    def scores_of(named: Mapping[str, Alpha]) -> np.ndarray:
        items = list(named.items())
        parts = [dict(items[at : at + count]) for at in range(0, len(items), count)]
        return np.concatenate([_scores(config, rows_of(part)) for part in parts], axis=2)

    def fitness(candidates: Sequence[Masks]) -> np.ndarray:
        return fitness_of(
            scores_of({text_of(space, masks): mixed_weights(space, masks) for masks in candidates})
        )

    if config.method == "prune":
        found = [prune(space, fitness)]
    else:
        keys = jax.random.split(keys_of(config.seed)["architectures"], config.walks)
        found = [perturb(key, space, fitness) for key in keys]
    kept = [genotype for genotype in dict.fromkeys(found) if is_within(genotype)]
    if not kept:
        raise ValueError(
            f"max_params and max_multiply_adds must be kept within by what {config.method} comes "
            f"to, which {found[0].to_text()} is not: evolution looks at nothing else"
        )
    return kept, fitness_of(scores_of(_one_hot(space, kept)))


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
    genotype: Genotype,
    num_classes: int,
    rows: Sequence[Row],
) -> dict[str, Any]:
    text = genotype.to_text()
    return {
        "space": space.name,
        "text": text,
        "genotype": genotype_to_dict(genotype),
        "scores": {
            str(row.seed): {name: finite(value) for name, value in row.values.items()}
            for row in rows
            if row.genotype == text
        },
        "num_scored": len({row.genotype for row in rows}),
        "norm": dict(norms_of(config, proxies_of(config, config.proxies))),
        "num_classes": num_classes,
        "seed": config.seed,
        "config": configuration.to_dict(config),
        **provenance(),
        **genotype.record(),
        **limits.record(config, genotype),
    }


def _draw(
    directory: RunDirectory, result: Mapping[str, Any], genotype: Genotype, fitness: np.ndarray
) -> None:
    config = result["config"]
    title = f"{config['method']} in {result['space']} by {', '.join(config['proxies'])}"
    cells = draw_genotype(genotype, title=title)
    save(cells, directory.folder / "cells.svg")
    save(cells, directory.folder / "cells.png")
    save(draw_fitness(fitness, title=title), directory.folder / "history.png")
