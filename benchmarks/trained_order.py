"""Does training in minutes order cells as training in full does?

Command:   python benchmarks/trained_order.py --data CIFAR.npz --table nasbench201_cifar10.csv \
               --column c10_test_200 --num-archs 6
Time:      20 to 35 minutes on two CPU cores
Expected:  a Spearman correlation of the accuracies of `nasi train` with those of the table of 0.94

Takes the settings of `nasi train`, which are those of the recipe `quick` unless they are given. The
cells are evenly spaced in the table's order of accuracies, the worst and the best included.
Trainings that are done are kept, and one that was stopped goes on. Prints each, and writes
trained_order.json and trained_order.png.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from measuring import write_record

from nasi_jax import runs, tables
from nasi_jax.config import to_dict
from nasi_jax.report.correlation import correlations
from nasi_jax.report.curves import draw_scatter
from nasi_jax.report.figures import save
from nasi_jax.training.recipes import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    table: tuple[str, ...]
    """A file of accuracies, as for `nasi rank`."""
    column: str
    """Which of its columns."""
    num_archs: int = 8
    """Cells trained."""
    out: Path = Path("runs/trained_order")
    """Where trainings, the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def main() -> None:
    """Trains the cells and reports."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        train = replace(config.train, epochs=1, init_channels=2, image_size=8)
        config = replace(config, train=train, num_archs=3)
    table, _ = tables.load_all(config.table)
    accuracies = table.column(config.column)
    known = np.flatnonzero(np.isfinite(accuracies))
    order = known[np.argsort(accuracies[known], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, config.num_archs).round().astype(int)]
    rows = []
    for index in map(int, chosen):
        genotype = table.genotype(index)
        out = config.out / f"cell-{index}"
        summary = runs.train.train(genotype, config.train, out, resume=True)
        rows.append(
            {
                "index": index,
                "genotype": genotype.to_text(),
                "table": float(accuracies[index]),
                "trained": summary["last_accuracy"],
                "seconds": summary["seconds"],
            }
        )
        print(
            f"cell {index}: table {rows[-1]['table']:.2f}, trained {rows[-1]['trained']:.2f} %, "
            f"{rows[-1]['seconds']:.0f} s  {rows[-1]['genotype']}",
            flush=True,
        )
    truth, found = (np.array([row[name] for row in rows]) for name in ("table", "trained"))
    coefficients = correlations(found, truth)
    title = f"Spearman {coefficients['spearman'].value:.2f}"
    print(f"{len(rows)} cells: {title}")
    figure = draw_scatter(
        (f"{config.column} of the table", truth),
        {f"accuracy in % after {config.train.epochs} epochs": found},
        {f"accuracy in % after {config.train.epochs} epochs": title},
    )
    settings = {**to_dict(config), "out": str(config.out)}
    figures = {name: found._asdict() for name, found in coefficients.items()}
    record = {"config": settings, "rows": rows, "correlations": figures}
    write_record(config.out, "trained_order", record)
    save(figure, config.out / "trained_order.png")


if __name__ == "__main__":
    main()
