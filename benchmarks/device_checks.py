"""What holds on a GPU as it does on the CPU: the oracles, and that a search or a training resumes.

Command:   python benchmarks/device_checks.py oracles (or resume)
Time:      a minute each on a GPU
Expected:  oracles: within 1e-9 in float64 and 1e-5 in float32 under precision `highest`;
           resume: on the CPU all the same, bit for bit

`oracles` holds per-example norms, the trace, x and random cotangents of small networks of three
spaces to the dense Jacobian in float64 on the CPU (random cotangents to themselves there, with the
same probes), then x of one NAS-Bench-201 cell under each matrix precision to float64 on the CPU.

`resume` compares alpha of an unbroken search with that of the same once more, of one that is
stopped half way and resumed, all by the programs in JAX's cache, and of one that is compiled anew,
whose kernels may be others; then the parameters of a training in the same way. A resumed run fails
if it differs where the same once more does not. Prints a line for each check, writes a JSON file,
and ends with status 1 if one of them failed.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from estimators import GENOTYPE
from measuring import alone

from nasi_jax import RECIPES, SearchConfig, data, kernels, parse_genotype, runs, search_space
from nasi_jax.devices import cache
from nasi_jax.storage import files
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.types import Batch, NetworkSpec, Progress

NASI = (sys.executable, "-c", "from nasi_jax.cli import main; main()")
"""The command `nasi`, also where it is not installed."""

SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {"num_cells": 1},
    "nasbench1shot1-1": {"num_cells": 1},
    "darts": {"num_cells": 3},
}
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
PRECISIONS = ("default", "tensorfloat32", "highest")
NUM_CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Settings of the checks."""

    check: tyro.conf.Positional[Literal["oracles", "resume"]]
    """Which of them."""
    data: str = "digits"
    """A data set, as for `nasi search`."""
    out: Path = Path("runs/device_checks.json")
    """Where the record goes."""
    seed: int = 0
    """Seed of everything random."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


class Check(NamedTuple):
    """What was looked at, what was found, and whether it is as it must be."""

    what: str
    found: str
    passed: bool


def oracles(config: Config) -> Iterator[Check]:
    """Estimates on the device against the dense Jacobian on the CPU."""
    jax.config.update("jax_enable_x64", True)
    yield from _precisions(config)
    spaces = ("nasbench201",) if config.smoke else tuple(SPACES)
    for name in spaces:
        problem = _problem(name, config.seed)
        exact = _exact(problem)
        for dtype, tolerance in TOLERANCES.items():
            with jax.default_matmul_precision("highest"):
                values = _estimates(problem, dtype, jax.devices()[0])
            errors = {key: _relative(values[key], exact[key]) for key in exact}
            found = ", ".join(f"{key} {error:.1e}" for key, error in errors.items())
            within = all(error <= tolerance for error in errors.values())
            yield Check(f"{name}, {dtype}, highest", found, within)


class _Problem(NamedTuple):
    """A network whose examples are independent, in float64 on the CPU."""

    apply_fn: Callable[[Any, Any, Any], jax.Array]
    statistics: Any
    params: Any
    batch: Batch
    cotangents: np.ndarray


def _problem(name: str, seed: int, size: int = 3) -> _Problem:
    with jax.default_device(jax.devices("cpu")[0]):
        space = search_space(name, init_channels=4, **SPACES[name])
        genotype = space.sample(jax.random.key(seed + 1))
        rng = np.random.default_rng(seed)
        inputs = jnp.asarray(rng.normal(size=(size, 8, 8, 3)))
        spec = NetworkSpec(norm="frozen", param_dtype=jnp.float64)
        network: Any = space.network(genotype, NUM_CLASSES, spec, form="search")
        variables = jax.jit(network.init)(jax.random.key(seed), inputs)
    labels = rng.integers(NUM_CLASSES, size=size).astype(np.int32)

    def apply_fn(statistics: Any, params: Any, inputs: Any) -> Any:
        return network.apply({"params": params, "batch_stats": statistics}, inputs)

    return _Problem(
        apply_fn,
        jax.device_get(variables["batch_stats"]),
        jax.device_get(variables["params"]),
        Batch(np.asarray(inputs), labels),  # type: ignore[arg-type]
        rng.normal(size=(size, 1, NUM_CLASSES)),
    )


def _estimates(problem: _Problem, dtype: str, device: jax.Device) -> dict[str, np.ndarray]:
    """The estimates of a problem in a precision on a device."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if leaf.dtype == np.float64 else leaf

    def compute(statistics: Any, params: Any, batch: Batch, cotangents: Any) -> Any:
        apply_fn, key = functools.partial(problem.apply_fn, statistics), jax.random.key(5)
        norms = kernels.squared_gradient_norms(
            apply_fn, params, batch.inputs, cotangents, coupled=False
        )
        return {
            "norms": norms[:, 0],
            "trace": kernels.ntk_trace(key, apply_fn, params, batch, coupled=False),
            "x": kernels.batch_gradient(key, apply_fn, params, batch),
            "cotangents": kernels.random_cotangent(key, apply_fn, params, batch, coupled=False),
        }

    arguments = jax.tree.map(cast, tuple(problem)[1:])
    return jax.device_get(jax.jit(compute)(*jax.device_put(arguments, device)))


def _exact(problem: _Problem) -> dict[str, np.ndarray]:
    """The same by the dense Jacobian, in float64 on the CPU."""
    cpu = jax.devices("cpu")[0]
    arguments = jax.device_put((problem.statistics, problem.params, problem.batch.inputs), cpu)
    outputs, tree = jax.device_get(
        (
            jax.jit(problem.apply_fn)(*arguments),
            jax.jit(jax.jacrev(problem.apply_fn, 1))(*arguments),
        )
    )
    size = len(outputs)
    rows = np.concatenate(
        [leaf.reshape(size, NUM_CLASSES, -1) for leaf in jax.tree.leaves(tree)], axis=-1
    )
    probabilities = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    slopes = (probabilities - np.eye(NUM_CLASSES)[problem.batch.labels]) / size
    return {
        "norms": np.square(np.einsum("bk,bkp->bp", problem.cotangents[:, 0], rows)).sum(axis=1),
        "trace": np.square(rows).sum(),
        "x": np.square(np.einsum("bk,bkp->p", slopes, rows)).sum(),
        "cotangents": _estimates(problem, "float64", cpu)["cotangents"],
    }


def _relative(value: Any, exact: Any) -> float:
    return float(np.max(np.abs(value - exact) / np.abs(exact)))


def _precisions(config: Config) -> Iterator[Check]:
    """x of one cell under batch statistics, of each matrix precision on the device."""
    space = search_space("nasbench201", init_channels=2 if config.smoke else 16, num_cells=1)
    images = data.load(config.data, image_size=8 if config.smoke else 32, seed=config.seed)
    genotype: Any = parse_genotype(GENOTYPE)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]

    def network(dtype: Any) -> Any:
        spec = NetworkSpec(param_dtype=dtype)
        return space.network(genotype, images.num_classes, spec, form="search")

    with jax.default_device(cpu):
        batch = images.batch(jax.random.key(config.seed), 0, 8 if config.smoke else 64)
        init = jax.jit(network(np.float32).init)
        params = init(jax.random.key(config.seed), batch.inputs)["params"]
    given = jax.device_get((params, batch))

    def of(where: jax.Device, precision: str, dtype: Any = np.float32) -> float:
        def compute(params: Any, batch: Batch) -> jax.Array:
            def apply_fn(params: Any, inputs: Any) -> Any:
                return network(dtype).apply({"params": params}, inputs)

            return kernels.batch_gradient(jax.random.key(0), apply_fn, params, batch)

        arguments = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if leaf.dtype == np.float32 else leaf, given
        )
        with jax.default_matmul_precision(precision):
            return float(jax.jit(compute)(*jax.device_put(arguments, where)))

    exact = of(cpu, "highest", np.float64)
    for precision in PRECISIONS:
        error = _relative(of(device, precision), exact)
        # The others are for information: what they may round is not ours to bound.
        passed = precision != "highest" or error <= 1e-4
        what = f"x of a NAS-Bench-201 cell, float32, {precision}"
        yield Check(what, f"{error:.1e} from float64 on the CPU", passed)
    error = _relative(of(cpu, "default"), exact)
    yield Check("the same on the CPU", f"{error:.1e} from float64 on the CPU", True)


class _Stopped(Exception):
    """What ends a run in its middle."""


def resume(config: Config) -> Iterator[Check]:
    """Runs that are stopped and resumed, and runs that are compiled anew, against unbroken ones."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _searches(config, Path(folder))
        yield from _trainings(config, Path(folder))


def _searches(config: Config, folder: Path) -> Iterator[Check]:
    steps = 4 if config.smoke else 10
    search = SearchConfig(data=config.data, steps=steps, seed=config.seed)
    flags = ["search", "--data", config.data, "--steps", str(steps), "--seed", str(config.seed)]
    if config.smoke:
        ops = ("skip_connect", "avg_pool_3x3")
        sizes: dict[str, Any] = {
            "init_channels": 2,
            "num_cells": 1,
            "image_size": 8,
            "batch_size": 4,
        }
        search = replace(search, norm="none", ops=ops, **sizes)
        flags += ["--norm", "none", "--ops", *ops, *_flags(sizes)]

    def alpha(name: str) -> list[np.ndarray]:
        rows = json.loads((folder / name / "result.json").read_text())["alpha"]
        return [np.array([list(row.values()) for row in rows[key].values()]) for key in rows]

    _nasi(*flags, "--out", folder / "search")
    alone(stop_search, search, folder / "search-stopped", steps // 2)
    _nasi("search", "--resume", "--out", folder / "search-stopped")
    _nasi(*flags, "--out", folder / "search-again")
    _nasi(*flags, "--no-cache", "--out", folder / "search-anew")
    yield from _compared(f"alpha of a search of {steps} steps", "search", alpha)


def _trainings(config: Config, folder: Path) -> Iterator[Check]:
    train = replace(RECIPES["quick"], data=config.data, epochs=2, seed=config.seed)
    flags = ["train", GENOTYPE, "--data", config.data, "--epochs", "2", "--seed", str(config.seed)]
    sizes: dict[str, Any] = {"init_channels": 2, "image_size": 8} if config.smoke else {}
    train, flags = replace(train, **sizes), [*flags, *_flags(sizes)]

    def parameters(name: str) -> list[np.ndarray]:
        return jax.tree.leaves(runs.train.trained(folder / name).variables["params"])

    _nasi(*flags, "--out", folder / "train")
    alone(stop_training, train, folder / "train-stopped")
    _nasi("train", "--resume", "--out", folder / "train-stopped")
    _nasi(*flags, "--out", folder / "train-again")
    _nasi(*flags, "--no-cache", "--out", folder / "train-anew")
    yield from _compared("parameters after a training of 2 epochs", "train", parameters)


def _flags(sizes: dict[str, int]) -> list[str]:
    return [
        part for name, size in sizes.items() for part in (f"--{name.replace('_', '-')}", str(size))
    ]


def _nasi(*arguments: str | Path) -> None:
    subprocess.run([*NASI, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def stop_search(config: SearchConfig, out: Path, steps: int) -> None:
    """A search that ends after so many steps, in a process of its own, as an interrupt ends it."""

    def stop(progress: Progress) -> None:
        if progress.stage == "searching" and progress.done == steps:
            raise _Stopped

    # A checkpoint at every step: the search is over before the first one is due.
    runs.search._SECONDS_BETWEEN_CHECKPOINTS = -1.0
    _stopped(lambda: runs.search.search(config, out, on_progress=stop))


def stop_training(config: TrainConfig, out: Path) -> None:
    """A training that ends in the middle of its last epoch, whose first one has a checkpoint."""

    def stop(progress: Progress) -> None:
        if progress.stage == "training" and progress.done >= 3 * progress.total // 4:
            raise _Stopped

    genotype = parse_genotype(GENOTYPE)
    _stopped(lambda: runs.train.train(genotype, config, out, on_progress=stop))


def _stopped(run: Callable[[], Any]) -> None:
    cache.turn_on(cache.default_folder())  # as the command does
    try:
        run()
    except _Stopped:
        return
    raise AssertionError("it came to its end before it was stopped")


def _compared(what: str, name: str, values: Callable[[str], list[np.ndarray]]) -> Iterator[Check]:
    unbroken = values(name)
    largest = max(np.max(np.abs(one)) for one in unbroken)
    others = {"again": "once more", "stopped": "stopped and resumed", "anew": "compiled anew"}
    repeats = False
    for suffix, words in others.items():
        pairs = list(zip(unbroken, values(f"{name}-{suffix}"), strict=True))
        same = all(np.array_equal(*pair) for pair in pairs)
        difference = max(np.max(np.abs(one - other)) for one, other in pairs) / largest
        found = "the same, bit for bit" if same else f"differs by {difference:.1e} of the largest"
        repeats = repeats or (suffix == "again" and same)
        passed = same or suffix != "stopped" or not repeats
        yield Check(f"{what}, {words}", found, passed)


def main() -> None:
    """Runs a check."""
    config = tyro.cli(Config, description=__doc__)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    checks = []
    for check in {"oracles": oracles, "resume": resume}[config.check](config):
        print(check, flush=True)
        checks.append(check)
        # At once, so that what was found outlasts this process where its time is up.
        record = [each._asdict() for each in checks]
        files.write_bytes(config.out, json.dumps(record, indent=2).encode())
    sys.exit(not all(check.passed for check in checks))


if __name__ == "__main__":
    main()
