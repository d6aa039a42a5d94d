"""Does the norm mode change the ranking of architectures by the exact trace of the NTK?

Command:   python benchmarks/norm_modes.py --data CIFAR.npz
Time:      6 minutes on two busy CPU cores
Expected:  batch and frozen statistics rank much alike; without normalization the ranking is another

Scores the same random cells by the exact trace, all outputs and parameters, under each norm
mode: under batch through the batch statistics, rows of the Jacobian of the whole batch. Prints
Kendall's tau with its 95% bootstrap interval for each pair of modes, and writes norm_modes.json.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import write_record
from rich.console import Console

from nasi_jax import ScoreConfig, correlations, runs
from nasi_jax.types import NORM_MODES


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    data: str = "digits"
    """A data set, as for `nasi search`."""
    space: str = "nasbench201"
    """A search space."""
    num_archs: int = 24
    """Random architectures."""
    batch_size: int = 8
    """Examples in the batch."""
    init_channels: int = 16
    """Channels of the supernet's first cells."""
    num_cells: int = 1
    """Cells of the supernet (a stage)."""
    image_size: int = 32
    """Height and width of the images."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("runs/norm_modes")
    """Where the record and the scores go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(num_archs=4, batch_size=2, init_channels=2, image_size=8, out=config.out)
    console = Console(stderr=True)
    traces = {}
    for norm in NORM_MODES:
        settings = ScoreConfig(
            space=config.space,
            data=config.data,
            proxies=("ntk_trace",),
            num_archs=config.num_archs,
            norm=norm,
            batch_size=config.batch_size,
            init_channels=config.init_channels,
            num_cells=config.num_cells,
            image_size=config.image_size,
            seed=config.seed,
        )
        with console.status(f"norm mode {norm}"):
            scores = runs.score.score(settings, config.out / f"{norm}.csv", overwrite=True)
        (traces[norm],) = scores.values["ntk_trace"]  # of one seed
    found: dict[str, dict[str, Any]] = {}
    for first, second in itertools.combinations(NORM_MODES, 2):
        kendall = correlations(traces[first], traces[second], seed=config.seed)["kendall"]
        found[f"{first}, {second}"] = kendall._asdict()
        low, high = f"{kendall.low:.2f}", f"{kendall.high:.2f}"
        print(f"{first}, {second}: Kendall {kendall.value:.2f} [{low}, {high}]")
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        "kendall": found,
        "traces": {norm: np.asarray(values).tolist() for norm, values in traces.items()},
    }
    write_record(config.out, "norm_modes", record)


if __name__ == "__main__":
    main()
