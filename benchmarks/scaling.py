"""What a chip of a TPU slice computes and moves as the slice grows, without a chip.

Command:   pip install 'nasi-jax[aot-tpu]' && JAX_OPTIMIZATION_LEVEL=O1 python benchmarks/scaling.py
Time:      minutes a training, and the others with --smoke; more than that has not been compiled
Expected:  per chip the work of one with more samples or cells, and a part of it of one batch

The programs that `nasi search`, `nasi score` and `nasi train` call over and over are compiled for
meshes of chips of a v5e that are not there. A search takes a step and a scoring a cell for each
chip; a training shares a batch, and `search-data` a mini-batch. Multiply-adds and bytes are those
of one chip in one call, by the text of the compiled program, loops as often as they run.

The efficiency is what the published rates of a chip imply. The seconds of a chip are the larger of
those for its products and those for its memory, and those for what it gets from others come on top,
as if nothing overlapped; the efficiency is the share of them that one chip would take for the same
work. A forecast, which no TPU has seen: memory is an upper bound, and latencies are left out.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

if "jax" not in sys.modules:
    os.environ["JAX_PLATFORMS"] = "cpu"  # no other device is asked for

import jax
import jax.numpy as jnp
import tyro
from compile_for import NUM_CLASSES, SMALLEST, recipe_step
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measuring import write_record

from nasi_jax import SearchConfig
from nasi_jax.config import ScoreConfig, SelectConfig
from nasi_jax.devices import cache, deviceless
from nasi_jax.devices.footprint import Footprint, footprint_of
from nasi_jax.devices.launches import Traffic, traffic
from nasi_jax.devices.mesh import DATA, SAMPLE, everywhere, mesh_of, over_samples
from nasi_jax.runs.plan import Program, score_call, search_step, several
from nasi_jax.runs.score import proxies_of, together
from nasi_jax.runs.search import build
from nasi_jax.training.recipes import RECIPES

RATES = {"bfloat16": 197e12 / 2, "float32": 197e12 / 2 / 6}
"""Multiply-adds a second of a v5e, as published; a float32 product takes six passes of bfloat16."""
SLICES = {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 32: "v5e:4x8"}
"""The slice by the number of chips; collectives of a part of a slice do not compile."""

MEMORY_RATE = 819e9
"""Bytes a second between a v5e and its memory, as published."""
COLLECTIVE_RATE = 1600e9 / 8
"""Bytes a second between a v5e and the other chips of its slice, as published (1,600 Gbit/s)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    chips: tuple[int, ...] = (1, 4, 16)
    """Sizes of the meshes, of `SLICES`."""
    only: tuple[str, ...] = ()
    """Some of search, search-data, score, train; all if not given."""
    smoke: bool = False
    """The smallest networks and batches."""
    out: Path = Path("runs/scaling")
    """A folder for scaling.json, with a record of each program."""


class Spread(NamedTuple):
    """A program and how its arguments lie on a mesh.

    Attributes:
      program: what is compiled.
      axes: of each argument, what its first axes are spread over.
    """

    program: Program
    axes: tuple[tuple[str, ...], ...]


def search(config: Config, mesh: Mesh) -> Spread:
    """Steps of a search in NAS-Bench-201: one for each chip, or one that all share."""
    smallest = SMALLEST["nasbench201"] if config.smoke else {}
    settings = SearchConfig(batch_size=16 if config.smoke else 64).resolved()
    resolved = replace(settings, **smallest)
    step = search_step(resolved, NUM_CLASSES)
    key, state, batch = step.arguments
    keys, batches = several(mesh.shape[SAMPLE], (key, batch))
    _, algorithm = build(resolved, NUM_CLASSES)
    function = jax.jit(
        functools.partial(algorithm.steps, mesh=mesh),
        donate_argnums=1,
        out_shardings=everywhere(mesh),
    )
    arguments = (keys, state, batches, jax.ShapeDtypeStruct((), jnp.int32))
    program = Program(function, arguments, step.matmul_precision)
    return Spread(program, ((SAMPLE,), (), (SAMPLE, DATA), ()))


def score(config: Config, mesh: Mesh) -> Spread:
    """The default scores of `nasi select`, of a NAS-Bench-201 cell a chip."""
    smallest = SMALLEST["nasbench201"] if config.smoke else {}
    settings = replace(ScoreConfig(archs_per_call=1), **smallest)
    names = ("naswot",) if config.smoke else SelectConfig().proxies
    one = score_call(settings, proxies_of(settings, names), NUM_CLASSES)
    key, params, weights, batch = one.arguments
    arguments = (key, params, several(mesh.shape[SAMPLE], weights), batch)
    function = over_samples(one.function, together(one.function), mesh, (None, None, 0, None))
    program = Program(jax.jit(function), arguments, one.matmul_precision)
    return Spread(program, ((), (), (SAMPLE,), ()))


def train(config: Config, mesh: Mesh) -> Spread:
    """A training step of a NAS-Bench-201 cell, of one batch of 256 images for all chips."""
    recipe = RECIPES["nasbench201"]
    if config.smoke:
        recipe = replace(recipe, num_cells=1, batch_size=32)
    step = recipe_step(recipe)
    function = jax.jit(
        lambda *arguments: step.function(*arguments),
        donate_argnums=1,
        out_shardings=everywhere(mesh),
    )
    program = Program(function, step.arguments, step.matmul_precision)
    return Spread(program, ((), (), (DATA,), (DATA,)))


PROGRAMS: dict[str, tuple[str, Callable[[Config, Mesh], Spread]]] = {
    "search": (SAMPLE, search),
    "search-data": (DATA, search),
    "score": (SAMPLE, score),
    "train": (DATA, train),
}
"""By name: the axis that all chips are along, and the program for a mesh."""


def chips_along(axis: str, chips: int) -> Mesh:
    """A mesh of all chips of a v5e slice that is not there, or of one chip.

    Raises:
      ValueError: without libtpu.
    """
    deviceless.device_of("v5e")  # says what to install
    topology = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[chips])
    return mesh_of(topology.devices[:chips], **{DATA: 1, SAMPLE: 1, axis: chips})


class Costs(NamedTuple):
    """What a program takes of each chip."""

    footprint: Footprint
    traffic: Traffic


def costs_of(spread: Spread, mesh: Mesh) -> Costs:
    """Compiles a program for all chips of a mesh."""

    def placed(tree: Any, axes: tuple[str, ...]) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    arguments = map(placed, spread.program.arguments, spread.axes)
    jitted: Any = spread.program.function
    compiled = jitted.lower(*arguments).compile()
    return Costs(footprint_of(compiled), traffic(compiled.as_text() or ""))


def seconds_of(costs: Costs, precision: str) -> tuple[float, float]:
    """Those of a chip for itself, and for what it gets from others, by the published rates."""
    rate = RATES["float32" if precision == "highest" else "bfloat16"]
    own = max(costs.footprint.work.multiply_adds / rate, costs.traffic.memory / MEMORY_RATE)
    return own, sum(costs.traffic.collectives.values()) / COLLECTIVE_RATE


def main() -> None:
    """The command."""
    config = tyro.cli(Config, description=__doc__)
    names = config.only or tuple(PROGRAMS)
    if unknown := [name for name in names if name not in PROGRAMS]:
        sys.exit(f"no program {unknown[0]!r}; known: {', '.join(PROGRAMS)}")
    if strange := [chips for chips in config.chips if chips not in SLICES]:
        sys.exit(f"no slice of {strange[0]} chips; known: {', '.join(map(str, SLICES))}")
    cache.turn_off()
    records = []
    print("| program | chips | multiply-adds | memory | collectives | temporaries | efficiency |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        axis, make = PROGRAMS[name]
        shared, first = axis == DATA, None  # else each chip has work of its own
        for chips in config.chips:
            mesh = chips_along(axis, chips)
            with deviceless.chosen_as_for("v5e"):
                spread = make(config, mesh)
                precision = spread.program.matmul_precision
                with jax.default_matmul_precision(precision):
                    costs = costs_of(spread, mesh)
            own, others = seconds_of(costs, precision)
            first = first or (own + others) * (chips if shared else 1)
            efficiency = first / (own + others) / (chips if shared else 1)
            collective = sum(costs.traffic.collectives.values())
            record = {
                "program": name,
                "chips": chips,
                "shared": shared,
                "precision": precision,
                "efficiency": efficiency,
                "seconds": {"own": own, "collectives": others},
                "collectives": costs.traffic.collectives,
                "memory": costs.traffic.memory,
                "footprint": costs.footprint.to_dict(),
            }
            records.append(record)
            print(
                f"| {name} | {chips} | {costs.footprint.work.multiply_adds / 1e9:.4g} G | "
                f"{costs.traffic.memory / 1e6:.4g} MB | {collective / 1e6:.3g} MB | "
                f"{costs.footprint.temporaries / 1e6:.4g} MB | {efficiency:.2f} |",
                flush=True,
            )
    write_record(config.out, "scaling", {"programs": records})


if __name__ == "__main__":
    main()
