"""Compiles what the commands run for a GPU or a TPU that this machine does not have.

Command:   pip install 'nasi-jax[aot]' && python benchmarks/compile_for.py --target h100
           pip install 'nasi-jax[aot-tpu]' && python benchmarks/compile_for.py --target v5e
Time:      hours on two CPU cores at the paper's sizes, minutes with --smoke --jobs 2
Expected:  a row for each program and none that failed or aborted; exit status 1 otherwise

The programs, which `--only` chooses by name or by the first parts of a name:

search/SPACE: a step of `nasi search` with the paper's settings (of NAS-Bench-201, for which it
states none, the defaults); with `--samples-per-step K`, K steps in one call.
score/SPACE/PROXY: the scores of one cell as `nasi score --proxies PROXY` computes them, num_params
and flops beside it; the defaults; with `--archs-per-call K`, of K cells in one call.
train/RECIPE, train/RECIPE/evaluate: a training step of `nasi train` and the test of a batch.
DARTS-V2 for the recipes of DARTS, else a cell of NAS-Bench-201.
predict: the classes of 64 images by the network of darts-cifar10.

Parameters that all steps or all cells share are drawn on the host, and no program here.
Images are those of CIFAR-10, or what the recipe is for. Each program is compiled in a process of
its own, so that one that XLA aborts on is a row like others. Nothing is computed, and no device is
needed. `--smoke` has as few cells as there can be, two or three operations, and each proxy alone.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

if "jax" not in sys.modules:  # as for processes that a test starts after this is imported
    os.environ["JAX_PLATFORMS"] = "cpu"  # no other device is asked for

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import DARTS_V2
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nasi_jax import SearchConfig
from nasi_jax.cells import SEARCH_SPACES, parse_genotype
from nasi_jax.config import ScoreConfig
from nasi_jax.devices import cache
from nasi_jax.devices.deviceless import Compiled, chosen_as_for, compile_for, device_of, target_of
from nasi_jax.kernels import PROXIES
from nasi_jax.runs.plan import Program, raw_images, score_call, search_step, train_step
from nasi_jax.runs.predict import AT_ONCE, probabilities_of
from nasi_jax.runs.score import proxies_of
from nasi_jax.storage import files
from nasi_jax.storage.directory import provenance
from nasi_jax.training.recipes import RECIPES, TrainConfig
from nasi_jax.training.trainer import Images, trainer
from nasi_jax.types import Genotype

NUM_CLASSES = 10
SEARCHES: dict[str, dict[str, Any]] = {
    "darts": {"variant": "nasi-fix"},
    **{f"nasbench1shot1-{number}": {"variant": "nasi-ada"} for number in (1, 2, 3)},
}
"""Settings that differ from those of the spaces; see `nasi_jax.types.SearchSpace.settings`."""

SMALLEST: dict[str, dict[str, Any]] = {
    "darts": {"num_cells": 3, "ops": ("skip_connect", "max_pool_3x3", "dil_conv_3x3")},
    "nasbench201": {"num_cells": 1, "ops": ("nor_conv_3x3", "avg_pool_3x3")},
    "nasbench1shot1-1": {"num_cells": 1, "ops": ("conv3x3-bn-relu", "maxpool3x3")},
    "nasbench1shot1-2": {"num_cells": 1, "ops": ("conv1x1-bn-relu", "maxpool3x3")},
    "nasbench1shot1-3": {"num_cells": 1, "ops": ("conv3x3-bn-relu", "conv1x1-bn-relu")},
    "transnas101": {"num_cells": 1, "ops": ("skip_connect", "nor_conv_3x3")},
}
"""What differs under `--smoke`: cells and operations, which decide how long XLA takes.

Batches and channels stay: what XLA aborts on can hang on how they compare (64 images, 16 channels).
skip_connect in DARTS has slices with a stride that feed a product, on which it did.
"""

NASBENCH201_CELL = (
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|"
    "+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
)

CLASSES_AND_EXAMPLES = {"darts-cifar100": (100, 50_000), "darts-imagenet": (1000, 1_281_167)}
"""Of the recipes that are not for CIFAR-10."""

PRELOADED = ("nasi_jax.devices.deviceless", "nasi_jax.runs.score", "nasi_jax.runs.predict", "tyro")
"""What takes seconds to import, once for all processes."""

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the programs are."""

    smoke: bool = False
    """The smallest sizes, for tests."""
    samples_per_step: int = 1
    """How many samples a search takes in one call."""
    archs_per_call: int = 1
    """How many cells are scored in one call."""


@dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    """Settings of the benchmark."""

    target: str
    """The device: h100 or v5e."""
    only: tuple[str, ...] = ()
    """Names of programs, or first parts of them, such as search/darts score; all if not given."""
    json: Path | None = None
    """A file for a list with a record of each program."""
    loops: int = 0
    """How many of the loops of each program to print, those with most launches first."""
    jobs: int = 1
    """How many programs to compile at a time; seconds are only worth reading with one."""
    limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 7200.0
    """What takes longer is given up, and a row that failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program: what it takes, or what went wrong."""

    name: str
    compiled: Compiled | None = None
    error: str | None = None


class Failed(Exception):
    """A process that did not do what it was for, and why."""


def programs(sizes: Sizes) -> dict[str, functools.partial[Program]]:
    """All programs by name, each made when it is called for.

    Raises:
      ValueError: for fewer samples than one; a device that is not there has no memory to fill.
    """
    for flag, number in (
        ("--samples-per-step", sizes.samples_per_step),
        ("--archs-per-call", sizes.archs_per_call),
    ):
        if number < 1:
            raise ValueError(f"{flag} must be at least 1 here, got {number}")
    found: dict[str, functools.partial[Program]] = {}
    for space in SEARCH_SPACES:
        settings = {**SEARCHES.get(space, {}), "samples_per_step": sizes.samples_per_step}
        search = SearchConfig(space=space, **settings).resolved()
        if sizes.smoke:
            search = replace(search, **SMALLEST[space])
        found[f"search/{space}"] = functools.partial(search_step, search, NUM_CLASSES)
    for space in SEARCH_SPACES:
        score = ScoreConfig(space=space, archs_per_call=sizes.archs_per_call)
        if sizes.smoke:
            score = replace(score, **SMALLEST[space])
        for proxy in PROXIES:
            found[f"score/{space}/{proxy}"] = functools.partial(
                score_cell, score, proxy, alone=sizes.smoke
            )
    for name, recipe in RECIPES.items():
        trained = replace(recipe, num_cells=None) if sizes.smoke else recipe
        found[f"train/{name}"] = functools.partial(recipe_step, trained)
        found[f"train/{name}/evaluate"] = functools.partial(train_evaluate, trained)
        if name == "darts-cifar10":
            found["predict"] = functools.partial(predict, trained)
    return found


def chosen(names: list[str], only: tuple[str, ...]) -> list[str]:
    """The names that are among the given ones, or go on behind one of them.

    Raises:
      ValueError: for a given one that is not the beginning of any.
    """

    def begins(name: str, start: str) -> bool:
        return f"{name}/".startswith(f"{start.rstrip('/')}/")

    for start in only:
        if not any(begins(name, start) for name in names):
            known = dict.fromkeys("/".join(name.split("/")[:2]) for name in names)
            raise ValueError(f"no program {start!r}; known: {', '.join(known)}, and what is below")
    return [name for name in names if not only or any(begins(name, start) for start in only)]


def score_cell(config: ScoreConfig, proxy: str, *, alone: bool) -> Program:
    """The score of a cell or of several, with those that every table has unless it is alone."""
    proxies = proxies_of(config, (proxy,))
    if alone:
        proxies = {proxy: proxies[proxy]}
    return score_call(config, proxies, NUM_CLASSES)


def _genotype(config: TrainConfig) -> Genotype:
    return parse_genotype(DARTS_V2 if config.recipe.startswith("darts") else NASBENCH201_CELL)


def _images(config: TrainConfig) -> Images:
    classes, examples = CLASSES_AND_EXAMPLES.get(config.recipe, (NUM_CLASSES, 50_000))
    return Images(classes, examples, 255.0, np.full(3, 128, np.float32), np.full(3, 64, np.float32))


def recipe_step(config: TrainConfig) -> Program:
    """A step of a training."""
    return train_step(_genotype(config), config, _images(config))


def train_evaluate(config: TrainConfig) -> Program:
    """The test of a batch."""
    step = recipe_step(config)
    algorithm = trainer(_genotype(config), config, _images(config))
    _, state, images, labels = step.arguments
    weights = jax.ShapeDtypeStruct((config.batch_size,), jnp.float32)
    return step._replace(function=algorithm.evaluate, arguments=(state, images, labels, weights))


def predict(config: TrainConfig) -> Program:
    """The classes of as many images as are looked at together."""
    algorithm = trainer(_genotype(config), config, _images(config))
    state = jax.eval_shape(algorithm.init, jax.eval_shape(lambda: jax.random.key(0)))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    function = probabilities_of(algorithm.network, config, _images(config))
    images = raw_images(config, AT_ONCE, jnp.float32)
    return Program(function, (variables, images), config.matmul_precision, AT_ONCE)


def compiled(config: Config, name: str) -> Compiled:
    """A program compiled, in the process that calls it."""
    cache.turn_off()
    with chosen_as_for(config.target):
        program = programs(config)[name]()
    with jax.default_matmul_precision(program.matmul_precision):
        return compile_for(
            config.target, program.function, *program.arguments, name=name, samples=program.samples
        )


def check_compiler(target: str) -> None:
    """Refuses a target that there is no compiler for.

    Raises:
      ValueError: saying what to install.
    """
    device_of(target)


def isolated(limit: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own.

    Args:
      limit: seconds that it has.
      function: a function at the top level of a module.
      *arguments: its arguments.

    Raises:
      Failed: if the function raises, takes too long, or its process dies.
    """
    receiving, sending = CONTEXT.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log:
        process = CONTEXT.Process(
            target=_inside, args=(sending, log.name, function, arguments), daemon=True
        )
        process.start()
        sending.close()
        try:
            if not receiving.poll(limit):
                raise Failed(f"not done after {limit:.0f} s")
            result, error = receiving.recv()
        except EOFError:
            process.join()
            said = Path(log.name).read_text(errors="replace")
            raise Failed(f"aborted: {reason_of(said, process.exitcode)}") from None
        finally:
            process.kill()
            process.join()
    if error is not None:
        raise Failed(error)
    return result


def _inside(
    sending: Connection, log: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # XLA does not look whether Python is interrupted
    with open(log, "wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        sending.send((function(*arguments), None))
    except Exception as error:  # whatever it is, it is the row of this program
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        sending.send((None, kind + str(error).partition("\n")[0][:300]))


def reason_of(log: str, exit_code: int | None) -> str:
    """Why a process died, by the last thing that it wrote about a check, or wrote at all."""
    checks = re.findall(r"(?:([\w.]+\.(?:cc|h)):\d+\] )?(Check failed: .*)", log)
    if checks:
        return " ".join(filter(None, checks[-1])).strip()
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f"exit code {exit_code}" + (f", {lines[-1][:200]}" if lines else "")


def outcome_of(config: Config, name: str) -> Outcome:
    """Compiles a program in a process of its own."""
    try:
        return Outcome(name, isolated(config.limit, compiled, config, name))
    except Failed as failure:
        return Outcome(name, error=str(failure))


def record_of(config: Config, outcome: Outcome) -> dict[str, Any]:
    """A program as JSON."""
    found = outcome.compiled
    figures = asdict(found) if found else {field.name: None for field in fields(Compiled)}
    del figures["details"]
    details = found.details if found else None
    versions = provenance()["versions"]
    for package in ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **figures,
        "name": outcome.name,
        "loops": [asdict(loop) for loop in details.loops[: config.loops]] if details else None,
        "unknown_loops": details.unknown_loops if details else None,
        "error": outcome.error,
        "target": config.target,
        "smoke": config.smoke,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "optimization_level": os.environ.get("JAX_OPTIMIZATION_LEVEL", ""),
        "versions": versions,
    }


def compile_all(config: Config, names: list[str]) -> list[Outcome]:
    """Compiles programs, and keeps the records of those that are done in the file."""
    outcomes: list[Outcome] = []
    pool = ThreadPoolExecutor(config.jobs)
    try:
        done = pool.map(functools.partial(outcome_of, config), names)
        progress = Console(stderr=True)
        for outcome in track(done, "compiling", total=len(names), console=progress):
            outcomes.append(outcome)
            if config.json is not None:
                records = [record_of(config, each) for each in outcomes]
                files.write_bytes(config.json, files.json_text(records).encode())
    finally:
        pool.shutdown(cancel_futures=True)  # what is left where this is interrupted
    return outcomes


def table_of(outcomes: list[Outcome]) -> Table:
    """The figures of all programs, as markdown."""
    table = Table(box=box.MARKDOWN)
    columns = ("lower, s", "compile, s", "temporaries, MB", "code, MB", "launches", "samples")
    table.add_column("program", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("what went wrong", no_wrap=True)
    for outcome in outcomes:
        found = outcome.compiled
        if found is None:
            table.add_row(outcome.name, *["-"] * len(columns), outcome.error)
            continue
        table.add_row(
            outcome.name,
            f"{found.lower_seconds:.1f}",
            f"{found.compile_seconds:.1f}",
            f"{found.temporary_megabytes:.0f}",
            f"{found.code_megabytes:.1f}",
            launches_of(found),
            str(found.samples),
        )
    return table


def launches_of(found: Compiled) -> str:
    """How many launches, or the least that they can be where a loop's length is not known."""
    if found.details is None:
        return "-"
    return f"{'≥ ' if found.details.unknown_loops else ''}{found.details.total:,}"


def loops_of(found: Compiled, number: int) -> list[str]:
    """The launches of a program by kind, and its loops, those with most launches first."""
    if found.details is None:
        return []
    kinds = [f"{count:,} {kind}" for kind, count in list(found.details.kinds.items())[:8]]
    lines = [f"{found.name}: {launches_of(found)} launches, of them {', '.join(kinds)}"]
    for loop in found.details.loops[:number]:
        trips = f"{loop.trips:,} iterations" if loop.known else "iterations that are not known"
        lines.append(
            f"{loop.total:12,} = {loop.entered:,} times {trips} of {loop.launches:,}: {loop.source}"
        )
    return lines


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    try:
        names = chosen(list(programs(config)), config.only)
        target_of(config.target)
        if config.json is not None:
            config.json.parent.mkdir(parents=True, exist_ok=True)
        isolated(config.limit, check_compiler, config.target)
    except (ValueError, OSError, Failed) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    outcomes = compile_all(config, names)
    size = "the smallest sizes" if config.smoke else "the paper's sizes"
    print(f"compiled for {config.target}, {size}, {config.jobs} at a time")
    Console(width=None if sys.stdout.isatty() else 400).print(table_of(outcomes))
    if config.loops:
        for outcome in outcomes:
            if outcome.compiled is not None:
                print(*loops_of(outcome.compiled, config.loops), sep="\n")
    failures = sum(outcome.compiled is None for outcome in outcomes)
    if failures:
        print(f"{failures} of {len(outcomes)} programs were not compiled", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
