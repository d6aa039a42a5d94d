"""What searches select: its accuracy over seeds and against steps, beside rivals.

Command:   python benchmarks/selection.py --data CIFAR.npz --table nasbench201_cifar10.csv \
               --column c10_test_200 --seed 200
           python benchmarks/selection.py --data CIFAR.npz --table nasbench101_30k.csv.gz \
               --column val_108 --space nasbench1shot1-1 --seed 200
Time:      15 minutes on two busy CPU cores for either
Expected:  on NAS-Bench-201 a mean test accuracy of 93.75 (the paper: 93.55), above all rivals but
           the cell of most parameters; on NAS-Bench-1Shot1 that of random cells within two standard
           errors, mostly estimated, as the compact table has one random cell in nine

Takes the settings of `nasi search`, and searches from `seeds` seeds, the first of them `--seed`.
After each of some steps, what would be selected is looked up in the table. The rivals are, for
each seed, among as many random cells of the operations searched as the search took steps: all of
them, the one of largest x (on one theta_0 and one batch), and the one of most parameters; and the
cell of most parameters in the whole table. An x alone costs less than a step, which has its
gradient as well. While no step has moved alpha, as steps above nu do not at mu 1, a search has
selected nothing: the first option of each choice is no result of it, and is left out. Where a table
has only a part of the space, means are over what it has, and the share is printed; of NAS-Bench-101
what is missing is also estimated, see estimates.py. Searches that are done are kept, and not done
again. Prints a table, and writes selection.json and selection.png.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from estimates import Reader, print_error
from matplotlib.figure import Figure
from measuring import write_record
from samples import (
    alphas,
    print_table,
    sampled,
    selected,
    settings,
    short_hash,
    smallest,
    summary,
    table_of,
)

from nasi_jax import ScoreConfig, SearchConfig, parse_genotype, runs, tables
from nasi_jax.config import ResolvedSearch, to_dict
from nasi_jax.report.figures import save
from nasi_jax.runs.search import constraint_of

BY_PROXY = {"batch_gradient": "the largest x", "num_params": "the most parameters"}
"""The proxies that rivals choose by."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    table: tuple[str, ...]
    """One or more files of accuracies, as for `nasi rank`."""
    column: str
    """Which of its columns."""
    seeds: int = 10
    """Searches."""
    out: Path = Path("runs/selection")
    """Where samples, the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def rivals(config: Config, search: ResolvedSearch, table: tables.Table) -> dict[str, list[Any]]:
    """What is chosen among as many random cells as a search has steps, from each seed."""
    shared = ("space", "data", "data_dir", "labels", "norm", "init", "ops", "image_size")
    scoring = ScoreConfig(
        num_archs=search.steps,
        proxies=("batch_gradient",),
        batch_size=search.batch_size,
        init_channels=search.init_channels,
        num_cells=search.num_cells,
        **{name: getattr(search, name) for name in shared},
    )
    chosen: dict[str, list[Any]] = {"a random cell": []}
    chosen |= {f"of {search.steps} random cells {name}": [] for name in BY_PROXY.values()}
    for seed in range(search.seed, search.seed + config.seeds):
        own = replace(scoring, seed=seed)
        out = config.out / "random" / f"{short_hash(to_dict(own))}.csv"
        scores = runs.score.score(own, out, resume=True)
        cells = [parse_genotype(text) for text in scores.genotypes]
        chosen["a random cell"] += cells
        for proxy, name in BY_PROXY.items():
            winner = int(np.argmax(scores.values[proxy][0]))
            chosen[f"of {search.steps} random cells {name}"].append(cells[winner])
    largest = int(np.nanargmax(table.values["params"]))
    return chosen | {"of the whole table the most parameters": [table.genotype(largest)]}


def draw(
    steps: np.ndarray, accuracies: np.ndarray, others: dict[str, np.ndarray], column: str
) -> Figure:
    """The error `[seeds, steps]` of what is selected, against the steps."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    found = [summary(each) for each in accuracies.T]
    known = [index for index, each in enumerate(found) if each["mean"] is not None]
    mean = 100 - np.array([found[index]["mean"] for index in known])
    error = np.array([found[index]["standard_error"] or 0.0 for index in known])
    axes.plot(steps[known], mean, "o-", color="#08519c", label="NASI")
    axes.fill_between(steps[known], mean - error, mean + error, color="#08519c", alpha=0.2)
    styles = ("--", "-.", ":", (0, (5, 5)))
    for (name, values), style in zip(others.items(), styles, strict=True):
        if (each := summary(values))["mean"] is not None:
            axes.axhline(100 - each["mean"], color="#8c8c8c", linestyle=style, label=name)
    axes.set(
        xlabel="search steps", ylabel=f"error, % (100 - {column})", xlim=(0.9, 1.1 * steps[-1])
    )
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    search = config.search.resolved()
    if config.smoke:
        search = smallest(search)
    config = replace(config, search=search, seeds=2 if config.smoke else config.seeds)
    table = table_of(config.table, (config.column, "params"))
    reader = Reader(table, config.column)
    seeds = range(search.seed, search.seed + config.seeds)
    space, found = sampled(search, seeds, config.out / "samples")
    total = search.steps
    steps = np.unique(np.geomspace(1, total, 12).round().astype(int))
    chosen, has_moved = [], []
    for samples in found:
        history = alphas(
            samples,
            steps=total,
            penalty=search.penalty,
            constraint=constraint_of(search),
        )
        chosen.append(selected(space, history, steps.tolist()))
        moved = np.any([np.any(each != 0, axis=(1, 2)) for each in history.values()], axis=0)
        has_moved.append(moved[steps - 1])
    by_step = [
        {column: np.where(moved, values, np.nan) for column, values in reader(cells).items()}
        for cells, moved in zip(chosen, has_moved, strict=True)
    ]
    last = {column: np.array([each[column][-1] for each in by_step]) for column in reader.columns}
    others = {name: reader(cells) for name, cells in rivals(config, search, table).items()}
    accuracies = {f"NASI, {total} steps": last, **others}
    rows = {
        name: {column: summary(values) for column, values in each.items()}
        for name, each in accuracies.items()
    }
    print_table(", ".join(space.ops), rows)
    print_error(error := reader.error(space))
    seconds = [float(np.sum(samples.seconds)) for samples in found]
    print(
        f"a search took {np.mean(seconds):.1f} s, and {found[0].compile_seconds:.1f} s to compile"
    )
    complete = reader.columns[-1]
    curves = np.array([each[complete] for each in by_step])
    record = {
        "config": settings(config, search),
        "rows": rows,
        "error of the estimates": error,
        "selected": [cells[-1].to_text() for cells in chosen],
        "steps": steps.tolist(),
        "accuracies": [[None if np.isnan(x) else x for x in row] for row in curves.tolist()],
        "seconds": seconds,
        "compile_seconds": [samples.compile_seconds for samples in found],
    }
    write_record(config.out, "selection", record)
    rest = {name: row[complete] for name, row in others.items()}
    save(draw(steps, curves, rest, complete), config.out / "selection.png")


if __name__ == "__main__":
    main()
