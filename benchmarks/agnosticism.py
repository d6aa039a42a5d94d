"""Is NASI's trace estimate label- and data-agnostic? (Section 4.2 and figure 1 of the paper.)

Command:   python benchmarks/agnosticism.py --data CIFAR.npz
Time:      23 minutes on two busy CPU cores
Expected:  Pearson correlation near 1 between true and random labels, and above 0.9 between real
           and Gaussian images (the paper, on NAS-Bench-1Shot1, whose figure is all we have)

Scores random cells of a space by x = ||b^-1 sum grad L||^2 on one batch: as one-hot weights of one
compiled supernet with shared parameters. Prints the correlations with 95% bootstrap intervals,
and writes agnosticism.json and agnosticism.png.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measuring import write_record
from rich.console import Console
from rich.progress import track

from nasi_jax import batch_gradient, correlations, data, score_fn, search_space
from nasi_jax.report.curves import draw_scatter
from nasi_jax.report.figures import save
from nasi_jax.search import init_params
from nasi_jax.types import InitialNormMode, NetworkSpec

TRUTH = "real images, true labels"
SETTINGS: dict[str, dict[str, Any]] = {
    "real images, random labels": {"labels": "random"},
    "Gaussian images, random labels": {"name": "gaussian"},
}


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    data: str = "digits"
    """A data set, as for `nasi search`."""
    space: str = "nasbench201"
    """A search space."""
    num_archs: int = 50
    """Random architectures to score."""
    batch_size: int = 64
    """Examples in the batch."""
    init_channels: int = 16
    """Channels of the supernet's first cells."""
    num_cells: int | None = None
    """Cells of the supernet (a stage), the space's default if not given."""
    norm: InitialNormMode = "batch"
    """Norm mode."""
    seed: int = 0
    """Seed of the parameters, the architectures and the batch."""
    out: Path = Path("runs/agnosticism")
    """Where the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def scores_of(config: Config) -> dict[str, np.ndarray]:
    """x of every architecture in every setting, on the same parameters."""
    space = search_space(
        config.space, init_channels=config.init_channels, num_cells=config.num_cells
    )
    params_key, archs_key, data_key, proxy_key = jax.random.split(jax.random.key(config.seed), 4)
    genotypes = [space.sample(key) for key in jax.random.split(archs_key, config.num_archs)]
    real = data.load(config.data, seed=config.seed)
    supernet = space.supernet(real.num_classes, NetworkSpec(norm=config.norm))
    inputs = real.batch(data_key, 0, config.batch_size).inputs
    weights = space.one_hot(genotypes[0])
    params = jax.jit(init_params, static_argnums=1)(params_key, supernet, inputs, weights)
    score = score_fn(space, supernet, proxy=batch_gradient, norm=config.norm)
    results = {}
    for name, change in {TRUTH: {}, **SETTINGS}.items():
        dataset = data.load(**{"name": config.data, "seed": config.seed, **change})
        batch = dataset.batch(data_key, 0, config.batch_size)
        results[name] = np.array(
            [
                float(score(proxy_key, params, genotype, batch))
                for genotype in track(genotypes, description=name, console=Console(stderr=True))
            ]
        )
    return results


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(num_archs=8, batch_size=8, init_channels=2, num_cells=1, out=config.out)
    begin = time.perf_counter()
    scores = scores_of(config)
    truth = scores[TRUTH]
    figures = {name: correlations(truth, scores[name], seed=config.seed) for name in SETTINGS}
    for name, figure in figures.items():
        found = ", ".join(
            f"{each.title()} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
            for each, value in figure.items()
        )
        print(f"{name} against true labels on real images: {found}")
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        "correlations": {
            name: {each: value._asdict() for each, value in figure.items()}
            for name, figure in figures.items()
        },
        "scores": {name: list(map(float, values)) for name, values in scores.items()},
        "seconds": time.perf_counter() - begin,
    }
    write_record(config.out, "agnosticism", record)
    titles = {name: f"Pearson {figure['pearson'].value:.3f}" for name, figure in figures.items()}
    others = {name: scores[name] for name in SETTINGS}
    picture = draw_scatter((f"x: {TRUTH}", truth), others, titles)
    save(picture, config.out / "agnosticism.png")


if __name__ == "__main__":
    main()
