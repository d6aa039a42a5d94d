"""Which operations does the gradient of log x prefer, under each relaxation?

Command:   python benchmarks/preferences.py --space nasbench1shot1-1 --data CIFAR.npz --seed 300
Time:      20 minutes a relaxation on two busy CPU cores
Expected:  soft weights prefer max-pooling to convolutions by many standard errors, hard ones do
           not

The search without its constraint: d log x / d alpha = (1/x) dx/d alpha at alpha_0, so that steps of
large x count no more than others, averaged over the steps of each seed. With one theta_0 a seed
the standard error is over seeds, and counts the draw of theta_0. Takes the settings of `nasi
search`; searches that are done are kept, as by ablations.py. Prints a table, and writes
preferences.json and preferences.png.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from measuring import write_record
from samples import Samples, sampled, settings, smallest

from nasi_jax import SearchConfig
from nasi_jax.report.figures import save
from nasi_jax.types import Relaxation

COLORS = ("#08519c", "#6baed6", "#d94801", "#74c476", "#756bb1", "#969696", "#fdae6b")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: SearchConfig(space="nasbench1shot1-1")
    )
    relaxations: tuple[Relaxation, ...] = ("soft", "hard")
    """Of operations and inputs."""
    seeds: int = 10
    """Searches for each."""
    out: Path = Path("runs/preferences")
    """Where samples, the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def slopes(found: list[Samples]) -> np.ndarray:
    """d log x / d alpha of operations, mean over the steps: `[seeds, rows, operations]`."""
    of_seeds = []
    for samples in found:
        names = sorted(name for name in samples.gradient if not name.startswith("inputs"))
        gradient = np.concatenate([samples.gradient[name] for name in names], axis=1)
        of_seeds.append(np.mean(gradient / samples.trace[:, None, None], axis=0))
    return np.stack(of_seeds)


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis."""
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    return np.mean(values, axis=0), error


def draw(found: dict[str, np.ndarray], rows: tuple[str, ...], ops: tuple[str, ...]) -> Figure:
    """The mean slope of each operation in each row, with two standard errors."""
    figure = Figure(figsize=(4 * len(found), 3.5), layout="constrained")
    every = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(every, found.items(), strict=True):
        mean, error = mean_and_error(values)
        for column, op in enumerate(ops):
            places = np.arange(len(rows)) + 0.15 * (column - (len(ops) - 1) / 2)
            color = COLORS[column % len(COLORS)]
            axes.errorbar(
                places, mean[:, column], yerr=2 * error[:, column], fmt="o", color=color, label=op
            )
        axes.axhline(0, color="#8c8c8c", linewidth=1)
        axes.set_xticks(range(len(rows)), rows)
        axes.set(title=name, xlabel="row of alpha")
        axes.grid(alpha=0.3, axis="y")
    every[0].set_ylabel("d log x / d alpha")
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    search = config.search.resolved()
    if config.smoke:
        search, config = smallest(search), replace(config, seeds=2)
    seeds = range(search.seed, search.seed + config.seeds)
    found: dict[str, np.ndarray] = {}
    for relaxation in config.relaxations:
        space, samples = sampled(
            replace(search, relaxation=relaxation), seeds, config.out / "samples"
        )
        found[relaxation] = slopes(samples)
    print(f"| {search.space} | {' | '.join(space.ops)} |")
    print("| --- " * (len(space.ops) + 1) + "|")
    summary: dict[str, Any] = {}
    for name, values in found.items():
        mean, error = mean_and_error(np.mean(values, axis=1))
        figures = (f"{m:+.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True))
        print(f"| {name} | {' | '.join(figures)} |")
        first, second = np.argsort(-mean)[[0, -1]]
        gaps = values[:, :, first] - values[:, :, second]
        center, spread = mean_and_error(gaps)
        ratios = ", ".join(f"{ratio:+.1f}" for ratio in center / spread)
        print(f"  {space.ops[first]} less {space.ops[second]}, by row, in s.e.: {ratios}")
        summary[name] = {"mean": mean.tolist(), "standard_error": error.tolist()}
    rows = tuple(
        row
        for name, (labels, _) in sorted(space.labels().items())
        if not name.startswith("inputs")
        for row in labels
    )
    record = {
        "config": settings(config, search),
        "ops": space.ops,
        "rows": rows,
        "relaxations": summary,
        "slopes": {name: values.tolist() for name, values in found.items()},
    }
    write_record(config.out, "preferences", record)
    save(draw(found, rows, space.ops), config.out / "preferences.png")


if __name__ == "__main__":
    main()
