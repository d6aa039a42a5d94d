"""What every proxy costs: seconds a cell, alone and together.

Command:   python benchmarks/proxy_costs.py
Time:      half an hour on two CPU cores, most of it to compile
Expected:  benchmarks/README.md, (i)

Scores the same random cells by each proxy in a program of its own, and by those of them that are in
the recipe of `nasi select` together in one. The number of parameters and FLOPs, which all programs
of `nasi score` have, are left out of these. Prints the median seconds of a cell, and as multiples
of a forward pass of the same network. Writes proxy_costs.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import remember, write_record

from nasi_jax import PROXIES, ScoreConfig, SelectConfig
from nasi_jax.config import to_dict
from nasi_jax.kernels import proxy_named
from nasi_jax.kernels.proxies.proxy import for_norm
from nasi_jax.runs.score import functions_of, keys_of
from nasi_jax.runs.search import datasets_of, space_of
from nasi_jax.search.history import in_space
from nasi_jax.types import ApplyFn, Batch, Params, ProxyFn

RECIPE = SelectConfig().proxies


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    scoring: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: ScoreConfig(num_cells=1, batch_size=16, proxies=tuple(PROXIES))
    )
    cells: int = 10
    """Random cells."""
    out: Path = Path("runs/proxy_costs")
    """Where the record goes."""
    record: bool = False
    """Append the figures to `benchmarks/records.jsonl`."""


class Cost(NamedTuple):
    """Seconds to compile a program, and median seconds of a cell."""

    compile_seconds: float
    seconds: float


def outputs(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """The sum of all outputs: a forward pass."""
    return jnp.sum(apply_fn(params, batch.inputs))


def cost(config: ScoreConfig, cells: int, proxies: Mapping[str, ProxyFn]) -> Cost:
    """Compiles and times one program of these proxies."""
    space, dataset = space_of(config), datasets_of(config)(config.seed)
    keys = keys_of(config.seed)
    batch = dataset.batch(keys["data"], 0, config.batch_size)
    draw, score = functions_of(config, proxies, dataset.num_classes)
    genotypes = [space.sample(key) for key in jax.random.split(keys["architectures"], cells)]
    weights = [space.one_hot(in_space(space, each.canonical(), each)) for each in genotypes]
    params = draw(keys["parameters"], batch.inputs, weights[0])
    begin = time.perf_counter()
    program = jax.jit(score).lower(keys["proxies"], params, weights[0], batch).compile()
    compile_seconds = time.perf_counter() - begin

    def run(each: object) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(keys["proxies"], params, each, batch))
        return time.perf_counter() - begin

    run(weights[0])
    return Cost(compile_seconds, float(np.median([run(each) for each in weights])))


def main() -> None:
    """Times and prints."""
    config = tyro.cli(Config, description=__doc__)
    scoring = config.scoring

    def proxy(name: str) -> ProxyFn:
        return for_norm(proxy_named(name), scoring.norm)

    programs: dict[str, dict[str, ProxyFn]] = {
        "a forward pass": {"outputs": outputs},
        **{name: {name: proxy(name)} for name in scoring.proxies},
    }
    members = [name for name in RECIPE if name in scoring.proxies]
    together = f"the recipe: {', '.join(members)}"
    if members:
        programs[together] = {name: proxy(name) for name in members}
    found: dict[str, Cost] = {}
    with jax.default_matmul_precision(scoring.matmul_precision):
        for name, proxies in programs.items():
            found[name] = cost(scoring, config.cells, proxies)
            forward = found["a forward pass"].seconds
            each = found[name]
            print(
                f"| {name} | {each.seconds:.4f} | {each.seconds / forward:.1f} | "
                f"{each.compile_seconds:.1f} |",
                flush=True,
            )
    if members:
        share = found[together].seconds / sum(found[name].seconds for name in members)
        print(f"the recipe together takes {share:.2f} of what its members take alone")
    if config.record:
        remember({f"a cell by {name}": (each.seconds, "s") for name, each in found.items()})
    record = {
        "config": to_dict(scoring),
        "cells": config.cells,
        "costs": {name: each._asdict() for name, each in found.items()},
    }
    write_record(config.out, "proxy_costs", record)


if __name__ == "__main__":
    main()
