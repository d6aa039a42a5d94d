"""What each setting of a search does to the accuracy of what it selects, labels and images too.

Command:   python benchmarks/ablations.py --data CIFAR.npz --table nasbench201_cifar10.csv \
               --steps 25
Time:      a minute or two for each row of `only` on two CPU cores, with 25 steps
Expected:  labels and images make no difference beyond two standard errors (table 2 of the paper);
           of the other settings we know of no published figures to compare with

Takes the settings of `nasi search`, from which every row differs in what its label says. From
each of `seeds` seeds there is a search of `--steps` steps, whose samples serve all of T, mu, the
rule for nu and, where one search has one theta_0, their number (of n draws, step t takes the
sample t of search t mod n); the other rows have searches of their own. The accuracies are those on
validation images, so that defaults may be chosen by them: the test accuracies stand beside them
where the table has them, and decide nothing. What a part of NAS-Bench-101 lacks is estimated, see
estimates.py. Searches that are done are kept, and not done again.
Prints a table, and writes ablations.json and ablations.png.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from estimates import Reader, print_error
from matplotlib.figure import Figure
from measuring import write_record
from samples import (
    Samples,
    alphas,
    print_table,
    sampled,
    selected,
    settings,
    smallest,
    summary,
    table_of,
)

from nasi_jax import SearchConfig, adaptive, fixed, quantile
from nasi_jax.config import ResolvedSearch
from nasi_jax.report.figures import save
from nasi_jax.runs.search import constraint_of
from nasi_jax.types import SearchSpace

CHANGES: dict[str, dict[str, Any]] = {
    "labels: random": {"labels": "random"},
    "images: Gaussian, labels: random": {"data": "gaussian"},
    "batch: 8": {"batch_size": 8},
    "batch: 64": {"batch_size": 64},
    "temperature: 0.3": {"temperature": 0.3},
    "temperature: 3": {"temperature": 3.0},
    "samples: hard": {"relaxation": "hard"},
    "samples: hard operations, soft inputs": {"relaxation": "hard", "input_relaxation": "soft"},
    "samples: hard, one input": {"relaxation": "hard", "input_relaxation": "hard-one"},
    "samples: path": {"relaxation": "path"},
    "theta_0: redrawn": {"redraw": True},
    "theta_0: one": {"redraw": False},
    "channels: 4": {"init_channels": 4},
    "channels: 32": {"init_channels": 32},
    "cells: 2": {"num_cells": 2},
    "init: xavier_normal": {"init": "xavier_normal"},
    "init: pytorch": {"init": "pytorch"},
    "norm: frozen": {"norm": "frozen"},
    "norm: none": {"norm": "none"},
    "loss: mse": {"loss": "mse"},
}
"""Rows that need searches of their own."""

RULES = {
    "fixed, 1": fixed(1.0),
    "fixed, 10": fixed(10.0),
    "fixed, 100": fixed(100.0),
    "fixed, 1000": fixed(1000.0),
    "adaptive from 10": adaptive(10.0),
    "adaptive from 1000": adaptive(1000.0),
    "quantile 0.25": quantile(0.25),
    "quantile 0.4": quantile(0.4),
    "quantile 0.5": quantile(0.5),
    "quantile 0.75": quantile(0.75),
}
STEPS = (1, 5, 10, 25, 50, 100, 200, 400)
PENALTIES = (0.0, 1.0, 2.0, 5.0)
DRAWS = (2, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    table: tuple[str, ...]
    """One or more files of accuracies, as for `nasi rank`."""
    column: str = "c10valid_val_200"
    """Its column of validation accuracies."""
    test_column: str = "c10_test_200"
    """Its column of test accuracies, if it has one."""
    seeds: int = 10
    """Searches for each row."""
    only: tuple[str, ...] = tuple(CHANGES)
    """Which rows that need searches of their own."""
    out: Path = Path("runs/ablations")
    """Where samples, the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def as_given(search: ResolvedSearch) -> dict[str, Any]:
    """T, mu and the rule for nu of a search, as `alphas` takes them."""
    rule = constraint_of(search)
    return {"steps": search.steps, "penalty": search.penalty, "constraint": rule}


def reading(space: SearchSpace, samples: Samples, how: dict[str, Any]) -> Any:
    """What is selected from samples by a T, mu and rule for nu."""
    return selected(space, alphas(samples, **how), [how["steps"]])[0]


def readings(
    space: SearchSpace, found: Sequence[Samples], search: ResolvedSearch
) -> dict[str, list[Any]]:
    """What is selected from the same samples by other T, mu, rules for nu and numbers of draws."""
    given, total = as_given(search), search.steps
    rows: dict[str, dict[str, Any]] = {"as given": given}
    rows |= {f"T: {steps}": {**given, "steps": steps} for steps in STEPS if steps < total}
    rows |= {f"mu: {mu:g}": {**given, "penalty": mu} for mu in PENALTIES}
    for mu in (1.0, 2.0):
        rows |= {
            f"mu: {mu:g}, nu: {name}": {**given, "penalty": mu, "constraint": each}
            for name, each in RULES.items()
        }
    chosen = {
        name: [reading(space, samples, how) for samples in found] for name, how in rows.items()
    }
    for draws in () if search.redraw else DRAWS:
        groups = [found[start : start + draws] for start in range(0, len(found) - draws + 1, draws)]
        if groups:
            chosen[f"draws of theta_0: {draws}"] = [
                reading(space, taking_turns(group), given) for group in groups
            ]
    return chosen


def taking_turns(group: Sequence[Samples]) -> Samples:
    """As many samples as one search has: step t is that of search t mod n."""
    steps = np.arange(len(group[0].trace))
    turn = steps % len(group)

    def pick(arrays: list[np.ndarray]) -> np.ndarray:
        return np.stack(arrays)[turn, steps]

    return Samples(
        pick([each.trace for each in group]),
        {name: pick([each.gradient[name] for each in group]) for name in group[0].gradient},
        pick([each.seconds for each in group]),
        group[0].compile_seconds,
    )


def draw(rows: dict[str, dict[str, dict[str, Any]]], column: str) -> Figure:
    """Mean accuracies with two standard errors, a line for each row; the given one is marked."""
    known = {name: row[column] for name, row in rows.items() if row[column]["mean"] is not None}
    figure = Figure(figsize=(7, 0.6 + 0.22 * len(known)), layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(known.values()):
        error = 2 * (each["standard_error"] or 0.0)
        axes.errorbar(each["mean"], place, xerr=error, fmt="o", color="#08519c", markersize=4)
    if "as given" in known:
        axes.axvline(known["as given"]["mean"], color="#8c8c8c", linestyle="--")
    axes.set_yticks(range(len(known)), list(known), fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel(f"{column}, %: mean and two standard errors")
    axes.grid(alpha=0.3, axis="x")
    return figure


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    unknown = [name for name in config.only if name not in CHANGES]
    if unknown:
        print(f"no row {unknown[0]!r}; known: {', '.join(CHANGES)}", file=sys.stderr)
        raise SystemExit(2)
    search = config.search.resolved()
    if config.smoke:
        search = smallest(search)
        config = replace(config, seeds=2, only=("labels: random",))
    table = table_of(config.table, [config.column])
    readers = [
        Reader(table, each) for each in (config.column, config.test_column) if each in table.columns
    ]
    seeds = range(search.seed, search.seed + config.seeds)
    space, found = sampled(search, seeds, config.out / "samples")
    chosen = readings(space, found, search)
    for name in config.only:
        changed = replace(search, **CHANGES[name])
        if changed == search:
            continue
        space, found = sampled(changed, seeds, config.out / "samples")
        chosen[name] = [reading(space, samples, as_given(changed)) for samples in found]
    rows = {
        name: {
            column: summary(values)
            for reader in readers
            for column, values in reader(cells).items()
        }
        for name, cells in chosen.items()
    }
    print_table(search.space, rows)
    print_error(error := readers[0].error(space))
    record = {
        "config": settings(config, search),
        "rows": rows,
        "error of the estimates": error,
        "selected": {name: [cell.to_text() for cell in cells] for name, cells in chosen.items()},
    }
    write_record(config.out, "ablations", record)
    save(draw(rows, readers[0].columns[-1]), config.out / "ablations.png")


if __name__ == "__main__":
    main()
