"""`nasi score`: scores many architectures through one compiled supernet."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import math
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from nasi_jax import config as configuration
from nasi_jax.cells import parse_genotype
from nasi_jax.cells.layers.mixed import stacked
from nasi_jax.config import ScoreConfig
from nasi_jax.kernels import proxy_named
from nasi_jax.kernels.proxies.proxy import for_norm, norm_of
from nasi_jax.runs.search import datasets_of, space_of
from nasi_jax.search import close_over
from nasi_jax.search.loop import free_memory, number_that_fits
from nasi_jax.search.relaxation import init_params_on_host
from nasi_jax.storage.directory import RunDirectory, provenance
from nasi_jax.storage.files import csv_text, json_text
from nasi_jax.types import (
    Alpha,
    Batch,
    NetworkSpec,
    NormMode,
    OnProgress,
    Params,
    Progress,
    ProxyFn,
    SearchSpace,
)

ALWAYS = ("num_params", "flops")
"""Proxies that are always computed."""

_SECONDS_BETWEEN_WRITES = 5.0
_MOST_AT_ONCE = 16
"""Architectures in a call, however much memory there is: by then few launches are left of each."""
_DRAWS_PER_ARCHITECTURE = 50

_C = TypeVar("_C", bound=ScoreConfig)
_T = TypeVar("_T")


def run_directory(out: Path) -> RunDirectory:
    """The two files of scores, in a folder where others may be.

    Raises:
      ValueError: if `out` is no csv file.
    """
    if out.suffix != ".csv":
        raise ValueError(f"the scores go to a .csv file, got {out}")
    return directory_of(out, out.parent, "scoring", file=out.name)


def directory_of(
    table: Path, folder: Path, what: str, results: Sequence[str] = (), *, file: str | None = None
) -> RunDirectory:
    """The files of a run that scores: the table, its JSON record, and what is made of them."""
    record = table.with_suffix(".json").name
    names = tuple(dict.fromkeys((table.name, record, *results)))
    return RunDirectory(folder, what, names, record, entry="config", file=file)


def saved(directory: RunDirectory, kind: type[_C]) -> _C:
    """Reads the configuration of a run that scores.

    Raises:
      ValueError: if there is none, or it cannot be read.
    """
    fields = directory.settings()
    try:
        return configuration.from_dict(fields, kind)
    except (ValueError, TypeError) as error:
        raise directory.unreadable(error) from error


class Row(NamedTuple):
    """The scores of one architecture with one seed, and the seconds for all of them."""

    seed: int
    genotype: str
    values: Mapping[str, float]
    seconds: float


class Scores(NamedTuple):
    """Scores of architectures.

    Attributes:
      rows: the scores of all `N` architectures from the first of `K` seeds, then the next.
      norm: the norm mode that each proxy was computed in.
      num_compilations: how many programs were compiled to score them.
      compile_seconds: how long that took.
    """

    rows: tuple[Row, ...]
    norm: Mapping[str, NormMode]
    num_compilations: int
    compile_seconds: float

    @property
    def genotypes(self) -> tuple[str, ...]:
        """The `N` texts, in order."""
        return tuple(dict.fromkeys(row.genotype for row in self.rows))

    @property
    def values(self) -> dict[str, np.ndarray]:
        """For each proxy the scores `[K, N]`."""
        shape = (-1, len(self.genotypes))
        return {
            name: np.reshape([row.values[name] for row in self.rows], shape)
            for name in self.rows[0].values
        }

    @property
    def seconds(self) -> float:
        """Total seconds of scoring."""
        return float(np.sum([row.seconds for row in self.rows]))


def score(
    config: ScoreConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> Scores:
    """Scores architectures, and writes a csv file and a JSON record of the same name.

    Args:
      config: the configuration.
      out: the csv file: a line for each seed and architecture, with params, flops, and the
        proxies, all of them higher is better.
      resume: whether to go on with the scores in the file, if there are any.
      overwrite: whether to replace the file.
      on_progress: called as it goes on.

    Returns:
      The scores.

    Raises:
      ValueError: for a wrong configuration, data or genotypes that cannot be used, or a file that
        is in use, is there, or holds the scores of something else.
    """
    with scored(
        config,
        proxies_of(config, config.proxies),
        genotypes_of(config),
        run_directory(out),
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    ) as scores:
        return scores


def genotypes_of(
    config: ScoreConfig, identity: Callable[[Any], Hashable] = lambda genotype: genotype
) -> list[Any]:
    """The architectures to score: those of a file, or random ones without repetition.

    Args:
      config: the configuration.
      identity: what tells architectures apart; those of identity None are left out.

    Raises:
      ValueError: if the file cannot be read, a line of it is no genotype of the space, has no
        identity or one that was there before, or there are not as many different architectures as
        asked for.
    """
    space = space_of(config)
    if config.genotypes is not None:
        return _listed(config.genotypes, config.space, space, identity)
    key = _keys(config.seed)["architectures"]
    found: dict[Hashable, Any] = {}
    for attempt in range(_DRAWS_PER_ARCHITECTURE * config.num_archs):
        genotype = space.sample(jax.random.fold_in(key, attempt))
        which = identity(genotype)
        if which is not None:
            found.setdefault(which, genotype)
        if len(found) == config.num_archs:
            return list(found.values())
    raise ValueError(
        f"num_archs must be within what there is to draw from, got {config.num_archs}, and only "
        f"{len(found)} different architectures came up"
    )


def _listed(
    path: str, name: str, space: SearchSpace, identity: Callable[[Any], Hashable]
) -> list[Any]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read genotypes from {path}: {error}") from error
    genotypes, seen = [], dict[Hashable, int]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                genotype = parse_genotype(line, name)
                space.one_hot(genotype)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {path} is no genotype of {space.name}: {error}"
                ) from error
            which = identity(genotype)
            if which is None:
                raise ValueError(
                    f"the genotype of line {number} of {path} is not in the table, or has no "
                    "number there"
                )
            if seen.setdefault(which, number) != number:
                raise ValueError(
                    f"line {number} of {path} is the architecture of line {seen[which]} again"
                )
            genotypes.append(genotype)
    if not genotypes:
        raise ValueError(f"there is no genotype in {path}")
    return genotypes


def _keys(seed: int) -> dict[str, jax.Array]:
    names = ("parameters", "architectures", "data", "proxies")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def proxies_of(config: ScoreConfig, names: Sequence[str]) -> dict[str, ProxyFn]:
    """Proxies by name, params and flops first, as the norm mode takes them.

    Raises:
      ValueError: for an unknown name.
    """
    chosen = dict.fromkeys((*ALWAYS, *names))
    return {name: for_norm(proxy_named(name), config.norm) for name in chosen}


def _norms(config: ScoreConfig, proxies: Mapping[str, ProxyFn]) -> dict[str, NormMode]:
    """The norm mode that each proxy is computed in."""
    return {name: norm_of(proxy, config.norm) for name, proxy in proxies.items()}


@contextlib.contextmanager
def scored(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    genotypes: Sequence[Any],
    directory: RunDirectory,
    *,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
    given: Mapping[str, Mapping[str, float]] | None = None,
) -> Iterator[Scores]:
    """Scores architectures, and writes csv and JSON incrementally.

    A context, in which what is made of the scores is written: the files are this process's until
    its end.

    Args:
      config: the configuration, of `score` or of what else scores.
      proxies: what scores, by name.
      genotypes: the architectures.
      directory: the files; see `directory_of`.
      resume: whether to go on with the scores that are there, if there are any.
      overwrite: whether to replace them.
      on_progress: called as it goes on.
      given: further columns of the file, by name and genotype.

    Raises:
      ValueError: as `score` does.
    """
    table, given = directory.folder / directory.names[0], given or {}
    columns = ("seed", "genotype", *given, *proxies, "seconds")
    datasets = datasets_of(config)

    @functools.lru_cache(maxsize=1)  # the seeds come one after another
    def batch_of(seed: int) -> Batch:
        return datasets(seed).batch(_keys(seed)["data"], 0, config.batch_size)

    batch_of(config.seed)

    def write(scores: Scores) -> None:
        lines = (
            [
                *(row.seed, row.genotype, *(column[row.genotype] for column in given.values())),
                *(*row.values.values(), row.seconds),
            ]
            for row in scores.rows
        )
        directory.write(directory.record, json_text(record_of(config, scores)))
        directory.write(table.name, csv_text(columns, lines))

    # Earlier versions gave scores on CPUs alone, where these change nothing.
    added = {
        "matmul_precision": config.matmul_precision,
        "archs_per_call": config.archs_per_call,
    }
    begun = dataclasses.replace(directory, added=added).begun
    with begun(configuration.to_dict(config), resume=resume, overwrite=overwrite):
        known = _known(table, columns, proxies) if table.exists() else {}
        num_classes = datasets(config.seed).num_classes
        with jax.default_matmul_precision(config.matmul_precision):
            scores = _scores(
                config, proxies, num_classes, genotypes, batch_of, known, write, on_progress
            )
        yield scores


def functions_of(
    config: ScoreConfig, proxies: Mapping[str, ProxyFn], num_classes: int
) -> tuple[Callable[..., Params], Callable[..., dict[str, jax.Array]]]:
    """Builds the pure functions that draw parameters and score one architecture.

    Args:
      config: the configuration.
      proxies: what scores, by name.
      num_classes: outputs of the supernet.

    Returns:
      `(key, inputs, weights) -> params`, which has the host draw the supernet's parameters, and
      `(key, params, weights, batch) -> scores` by name, of the architecture that has these one-hot
      weights.

    Raises:
      ValueError: for an unknown space or operation, or a size that is too small.
    """
    space = space_of(config)
    norms = _norms(config, proxies)
    supernets = {
        norm: space.supernet(num_classes, NetworkSpec(norm=norm, init=config.init), one_hot=True)
        for norm in dict.fromkeys(norms.values())
    }
    supernet = next(iter(supernets.values()))  # their parameters are the same

    def init(key: jax.Array, inputs: jax.Array, weights: Alpha) -> Params:
        return init_params_on_host(key, supernet, inputs, weights)

    def score_weights(
        key: jax.Array, params: Params, weights: Alpha, batch: Batch
    ) -> dict[str, jax.Array]:
        apply_fns = {
            norm: close_over(net, params, weights, norm=norm, reference=batch.inputs)
            for norm, net in supernets.items()
        }
        # A key that hangs on the proxy's name alone: others beside it change nothing.
        keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in proxies}
        return {
            name: proxy(keys[name], apply_fns[norms[name]], params, batch)
            for name, proxy in proxies.items()
        }

    return init, score_weights


def together(score_weights: Callable[..., _T]) -> Callable[..., _T]:
    """A function that scores one architecture, for the weights `[K, ...]` of several at once.

    The parameters and the batch are the same for all. Every operation is computed for each of
    them: on an H100 that is a twentieth of the kernel launches, where a CPU would wait for the
    arithmetic.
    """
    return jax.vmap(score_weights, in_axes=(None, None, 0, None))


def _scores(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    num_classes: int,
    genotypes: Sequence[Any],
    batch_of: Callable[[int], Batch],
    known: Mapping[tuple[int, str], Row],
    write: Callable[[Scores], None],
    on_progress: OnProgress,
) -> Scores:
    """Computes the missing scores, and writes them at intervals and at the end."""
    space, norms = space_of(config), _norms(config, proxies)
    draw, score_weights = functions_of(config, proxies, num_classes)
    weights = {genotype.to_text(): space.one_hot(genotype) for genotype in genotypes}
    seeds = range(config.seed, config.seed + config.seeds)
    tasks = [(seed, text) for seed in seeds for text in weights]
    rows = {task: known[task] for task in tasks if task in known}
    left = {seed: [text for text in weights if (seed, text) not in rows] for seed in seeds}
    num_compilations, compile_seconds = 0, 0.0

    def scores() -> Scores:
        in_order = tuple(rows[task] for task in tasks if task in rows)
        return Scores(in_order, norms, num_compilations, compile_seconds)

    first = next((seed for seed in seeds if left[seed]), None)
    if first is None:  # the record of all that there is says how it came about
        return scores()

    @functools.lru_cache(maxsize=1)  # the seeds come one after another
    def drawn(seed: int) -> tuple[jax.Array, Params, Batch]:
        keys, batch = _keys(seed), batch_of(seed)
        params = draw(keys["parameters"], batch.inputs, next(iter(weights.values())))
        return keys["proxies"], jax.block_until_ready(params), batch

    def arguments(seed: int, texts: Sequence[str], count: int) -> tuple[Any, ...]:
        """For a call of so many architectures, of which the last one may stand there repeatedly."""
        key, params, batch = drawn(seed)
        chosen = [weights[text] for text in texts]
        chosen += (count - len(chosen)) * chosen[-1:]
        return key, params, chosen[0] if count == 1 else stacked(chosen), batch

    def compiled(count: int) -> jax.stages.Compiled:
        nonlocal num_compilations
        num_compilations += 1
        function = score_weights if count == 1 else together(score_weights)
        return jax.jit(function).lower(*arguments(first, left[first][:1], count)).compile()

    on_progress(Progress("compiling", len(tasks), len(rows)))
    begin = time.perf_counter()
    program, count = _fitting(compiled, config.archs_per_call, len(weights))
    # The first call of a GPU is slow, and not counted to its architectures.
    jax.block_until_ready(program(*arguments(first, left[first][:1], count)))
    compile_seconds = time.perf_counter() - begin
    on_progress(Progress("compiled", len(tasks), len(rows)))
    written = time.monotonic()
    for seed, texts in left.items():
        for start in range(0, len(texts), count):
            called = texts[start : start + count]
            operands = arguments(seed, called, count)  # not counted to its first architectures
            begin = time.perf_counter()
            found = jax.device_get(program(*operands))
            seconds = (time.perf_counter() - begin) / len(called)
            for index, text in enumerate(called):
                values = {name: float(np.atleast_1d(found[name])[index]) for name in proxies}
                rows[seed, text] = Row(seed, text, values, seconds)
            each_seconds = float(np.mean([row.seconds for row in rows.values()]))
            on_progress(Progress("scoring", len(tasks), len(rows), each_seconds))
            if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                write(scores())
                written = time.monotonic()
    write(scores())
    return scores()


def _fitting(
    compiled: Callable[[int], jax.stages.Compiled], asked: int, there_are: int
) -> tuple[jax.stages.Compiled, int]:
    """Compiles a call of as many architectures as asked for, or as fit, and says how many.

    How many there are in all decides, not how many are left, so that a run that goes on has the
    scores of an unbroken one.
    """
    most = asked or (1 if free_memory() is None else _MOST_AT_ONCE)
    count = math.ceil(there_are / math.ceil(there_are / most))  # calls of one size
    program = compiled(count)
    if asked or count == 1 or (fitting := number_that_fits(program, count)) >= count:
        return program, count
    return compiled(fitting), fitting


def record_of(config: ScoreConfig, scores: Scores) -> dict[str, Any]:
    """The JSON record of a set of scores."""
    return {
        "config": json.loads(json_text(configuration.to_dict(config))),
        "norm": dict(scores.norm),
        "num_archs": len(scores.genotypes),
        "num_compilations": scores.num_compilations,
        "seconds": {"compile": scores.compile_seconds, "score": scores.seconds},
        **provenance(),
    }


def _known(
    table: Path, columns: Sequence[str], proxies: Iterable[str]
) -> dict[tuple[int, str], Row]:
    """Reads the rows of an earlier run of the same configuration, by seed and genotype."""
    try:
        header, *lines = csv.reader(table.read_text().splitlines())
        if tuple(header) != tuple(columns):
            raise ValueError(f"its columns are {', '.join(header)}, not {', '.join(columns)}")
        rows = []
        for line in lines:
            row = dict(zip(columns, line, strict=True))
            values = {name: float(row[name]) for name in proxies}
            rows.append(Row(int(row["seed"]), row["genotype"], values, float(row["seconds"])))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"cannot resume from {table}: {error}") from error
    return {(row.seed, row.genotype): row for row in rows}
