"""What scoring many architectures through one compiled supernet costs beside their own networks.

Command:   python benchmarks/population.py
Time:      about five minutes on two CPU cores
Expected:  one compilation, and about half the time of a supernet that computes every operation;
           the goal, 1.3 times the time of the networks themselves, is not reached

Scores random cells as `nasi score` does, all through one supernet that computes only the operations
that its one-hot weights choose. The first few are scored in two more ways, after one another for
each cell: through the supernet that computes all operations, and as the network of that cell alone,
compiled for it. Seconds of a score are the smallest of the repeats, those of the whole population
are as they come. Prints a table and writes population.json.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measuring import write_record

from nasi_jax import data, kernels, search_space
from nasi_jax.search import init_params, score_fn
from nasi_jax.types import NetworkSpec


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    space: str = "nasbench201"
    """The search space."""
    data: str = "digits"
    """A data set, as for `nasi search`."""
    num_archs: int = 1000
    """Random architectures in the population."""
    num_networks: int = 12
    """How many of them are compiled as networks of their own."""
    batch_size: int = 16
    """Images in the batch."""
    init_channels: int = 16
    """Channels of the first cells."""
    num_cells: int = 1
    """Cells (a stage)."""
    image_size: int = 32
    """Height and width of the images."""
    norm: str = "frozen"
    """The norm mode."""
    repeats: int = 5
    """Timed runs of each way, for the architectures that are scored in all of them."""
    seed: int = 0
    """Seed of the parameters, the batch and the architectures."""
    out: Path = Path("runs/population")
    """Where the record goes."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def measure(config: Config) -> dict[str, Any]:
    """The figures."""
    sizes = {"init_channels": config.init_channels, "num_cells": config.num_cells}
    space = search_space(config.space, **sizes)
    dataset = data.load(config.data, image_size=config.image_size, seed=config.seed)
    params_key, data_key, key = jax.random.split(jax.random.key(config.seed), 3)
    batch = dataset.batch(data_key, 0, config.batch_size)
    genotypes = [space.sample(each) for each in jax.random.split(key, config.num_archs)]
    norm: Any = config.norm
    spec = NetworkSpec(norm=norm)
    supernet = space.supernet(dataset.num_classes, spec)
    params = jax.jit(init_params, static_argnums=1)(
        params_key, supernet, batch.inputs, space.init_alpha()
    )

    def scorer(**how: Any) -> Callable[[Any], jax.Array]:
        through = space.supernet(dataset.num_classes, spec, **how)
        score = score_fn(space, through, proxy=kernels.batch_gradient, norm=norm)
        return lambda genotype: score(key, params, genotype, batch)

    chosen, everything = scorer(one_hot=True), scorer()
    compile_seconds, _ = _timed(chosen, genotypes[0])
    _timed(everything, genotypes[0])
    rows = []
    for genotype in genotypes[: config.num_networks]:
        network = space.network(genotype, dataset.num_classes, spec, form="search")
        inherited = space.inherit({"params": params})["params"]
        alone = jax.jit(functools.partial(_score, network, norm))
        ways: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]] = {
            "one_hot": (chosen, (genotype,)),
            "supernet": (everything, (genotype,)),
            "network": (alone, (inherited, batch)),
        }
        network_compile, _ = _timed(alone, inherited, batch)
        values: dict[str, float] = {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(config.repeats):
            for name, (way, args) in ways.items():
                taken, values[name] = _timed(way, *args)
                seconds[name].append(taken)
        rows.append(
            {
                "genotype": genotype.to_text(),
                "network_compile_seconds": network_compile,
                "seconds": seconds,
                "scores": values,
            }
        )
    begin = time.perf_counter()
    scores = [float(chosen(genotype)) for genotype in genotypes]
    return {
        "rows": rows,
        "compile_seconds": compile_seconds,
        "population_seconds": time.perf_counter() - begin,
        "scores": scores,
    }


def _score(network: Any, norm: str, params: Any, batch: Any) -> jax.Array:
    statistics = {}
    if norm == "frozen":
        _, statistics = network.apply({"params": params}, batch.inputs, mutable=["batch_stats"])

    def apply_fn(params: Any, inputs: jax.Array) -> Any:
        return network.apply({"params": params, **jax.lax.stop_gradient(statistics)}, inputs)

    return kernels.batch_gradient(jax.random.key(0), apply_fn, params, batch)


def _timed(way: Callable[..., jax.Array], *args: Any) -> tuple[float, float]:
    begin = time.perf_counter()
    value = float(way(*args))
    return time.perf_counter() - begin, value


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(
            num_archs=3,
            num_networks=1,
            batch_size=2,
            init_channels=2,
            image_size=8,
            repeats=2,
            out=config.out,
        )
    result = measure(config)
    sums = {
        name: sum(min(row["seconds"][name]) for row in result["rows"])
        for name in ("network", "one_hot", "supernet")
    }
    print("| scored as | s each | over the networks' own |")
    print("| --- | --- | --- |")
    for name, total in sums.items():
        each = total / len(result["rows"])
        print(f"| {name} | {each:.3g} | {total / sums['network']:.3g} |")
    compiles = np.mean([row["network_compile_seconds"] for row in result["rows"]])
    print(
        f"{config.num_archs} scored in {result['population_seconds']:.1f} s after one compilation "
        f"of {result['compile_seconds']:.1f} s; a network's own compilation takes {compiles:.1f} s"
    )
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        **result,
    }
    write_record(config.out, "population", record)


if __name__ == "__main__":
    main()
