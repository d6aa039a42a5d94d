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
from jax.sharding import Mesh
from scipy import stats

from nasi_jax import config as configuration
from nasi_jax.cells import parse_genotype
from nasi_jax.cells.layers.mixed import stacked
from nasi_jax.config import ScoreConfig, Scoring
from nasi_jax.devices.mesh import (
    SAMPLE,
    along,
    everywhere,
    over_samples,
    placed,
    require_only,
    several,
    sizes,
)
from nasi_jax.kernels import proxy_named
from nasi_jax.kernels.proxies.proxy import all_scores, for_norm, norm_of
from nasi_jax.runs.search import datasets_of, space_of
from nasi_jax.search import close_over
from nasi_jax.search.history import in_space
from nasi_jax.search.loop import free_memory, number_that_fits, require_memory
from nasi_jax.search.relaxation import init_params_on_host
from nasi_jax.storage.directory import ADDED, RunDirectory, provenance
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
_OF_ARCHITECTURES = (None, None, 0, None)
"""Which operands of what scores are those of single architectures: the weights."""

SPREAD = "architectures to score are spread"
"""What is done with a mesh, in words."""

_C = TypeVar("_C", bound=Scoring)
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
    added = {**ADDED, "canonical": False}
    return RunDirectory(folder, what, names, record, entry="config", file=file, added=added)


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
    """The scores of one architecture with one seed, and the seconds that they took.

    It is 0 where they are those of an architecture before it, which has the same canonical form.
    """

    seed: int
    genotype: str
    values: Mapping[str, float]
    seconds: float


class Scores(NamedTuple):
    """Scores of architectures.

    Attributes:
      rows: the scores of all `N` architectures from the first of `K` seeds, then the next.
      norm: the norm mode that each proxy was computed in.
      num_scored: how many networks were scored: `N`, or as many as canonical forms differ.
      num_compilations: how many programs were compiled to score them.
      compile_seconds: how long that took.
      mesh: the number of devices along each axis of the mesh that they were scored on.
    """

    rows: tuple[Row, ...]
    norm: Mapping[str, NormMode]
    num_scored: int
    num_compilations: int
    compile_seconds: float
    mesh: Mapping[str, int]

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
    def means(self) -> dict[str, np.ndarray]:
        """For each proxy the means over seeds `[N]`."""
        return {name: np.mean(values, axis=0) for name, values in self.values.items()}

    @property
    def standard_errors(self) -> dict[str, np.ndarray] | None:
        """For each proxy the standard errors of the means `[N]`; None where there is one seed."""
        values = self.values
        if any(len(each) == 1 for each in values.values()):
            return None
        return {name: stats.sem(each, axis=0) for name, each in values.items()}

    @property
    def seconds(self) -> float:
        """Total seconds of scoring."""
        return float(np.sum([row.seconds for row in self.rows]))


def score(
    config: ScoreConfig,
    out: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> Scores:
    """Scores architectures, and writes a csv file and a JSON record of the same name.

    Args:
      config: the configuration.
      out: the csv file: a line for each seed and architecture, with params, flops, and the
        proxies, all of them higher is better.
      mesh: the devices, as `nasi_jax.device_mesh` makes it, which share the architectures along
        `sample`; if not given, all. Changes scores by rounding only, so a run may go on
        with another.
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
        mesh=mesh,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    ) as scores:
        return scores


def genotypes_of(
    config: ScoreConfig,
    identity: Callable[[Any], Hashable] = lambda genotype: genotype,
    kept: Callable[[Any], bool] = lambda genotype: True,
) -> list[Any]:
    """The architectures to score: those of a file, or random ones without repetition.

    Args:
      config: the configuration.
      identity: what tells architectures apart; those of identity None are left out.
      kept: which of them to have.

    Raises:
      ValueError: if the file cannot be read, a line of it is no genotype of the space, has no
        identity or one that was there before, or there are not as many different architectures as
        asked for.
    """
    space = space_of(config)
    if config.genotypes is not None:
        return _listed(config.genotypes, config.space, space, identity, kept)
    key = keys_of(config.seed)["architectures"]
    found: dict[Hashable, Any] = {}
    for attempt in range(_DRAWS_PER_ARCHITECTURE * config.num_archs):
        genotype = space.sample(jax.random.fold_in(key, attempt))
        which = identity(genotype) if kept(genotype) else None
        if which is not None:
            found.setdefault(which, genotype)
        if len(found) == config.num_archs:
            return list(found.values())
    raise ValueError(
        f"num_archs must be within what there is to draw from, got {config.num_archs}, and only "
        f"{len(found)} different architectures came up"
    )


def _listed(
    path: str,
    name: str,
    space: SearchSpace,
    identity: Callable[[Any], Hashable],
    kept: Callable[[Any], bool],
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
            if not kept(genotype):
                continue
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
        raise ValueError(f"there is no genotype in {path} to score")
    return genotypes


def keys_of(seed: int) -> dict[str, jax.Array]:
    """The random keys of a seed, by what they are for."""
    names = ("parameters", "architectures", "data", "proxies")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def proxies_of(config: Scoring, names: Sequence[str]) -> dict[str, ProxyFn]:
    """Proxies by name, params and flops first, as the norm mode takes them.

    Raises:
      ValueError: for an unknown name.
    """
    chosen = dict.fromkeys((*ALWAYS, *names))
    return {name: for_norm(proxy_named(name), config.norm) for name in chosen}


def norms_of(config: Scoring, proxies: Mapping[str, ProxyFn]) -> dict[str, NormMode]:
    """The norm mode that each proxy is computed in."""
    return {name: norm_of(proxy, config.norm) for name, proxy in proxies.items()}


@contextlib.contextmanager
def scored(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    genotypes: Sequence[Any],
    directory: RunDirectory,
    *,
    mesh: Mesh | None,
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
      mesh: as for `score`.
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
        return datasets(seed).batch(keys_of(seed)["data"], 0, config.batch_size)

    batch_of(config.seed)
    require_only(SAMPLE, mesh, SPREAD)

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

    added = {
        **directory.added,
        # Earlier versions gave scores on CPUs alone, where these change nothing.
        "matmul_precision": config.matmul_precision,
        "archs_per_call": config.archs_per_call,
    }
    begun = dataclasses.replace(directory, added=added).begun
    with begun(configuration.to_dict(config), resume=resume, overwrite=overwrite):
        known = known_rows(table, columns, proxies) if table.exists() else {}
        num_classes = datasets(config.seed).num_classes
        with jax.default_matmul_precision(config.matmul_precision):
            scores = _scores(
                config, proxies, num_classes, genotypes, batch_of, mesh, known, write, on_progress
            )
        yield scores


def functions_of(
    config: Scoring, proxies: Mapping[str, ProxyFn], num_classes: int, *, one_hot: bool = True
) -> tuple[Callable[..., Params], Callable[..., dict[str, jax.Array]]]:
    """Builds the pure functions that draw parameters and score one architecture.

    Args:
      config: the configuration.
      proxies: what scores, by name.
      num_classes: outputs of the supernet.
      one_hot: whether weights are those of single architectures, so that nothing else is computed.

    Returns:
      `(key, inputs, weights) -> params`, which has the host draw the supernet's parameters, and
      `(key, params, weights, batch) -> scores` by name, of the architecture that has these one-hot
      weights.

    Raises:
      ValueError: for an unknown space or operation, or a size that is too small.
    """
    space = space_of(config)
    norms = norms_of(config, proxies)
    supernets = {
        norm: space.supernet(num_classes, NetworkSpec(norm=norm, init=config.init), one_hot=one_hot)
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
        of_proxies = {name: apply_fns[norm] for name, norm in norms.items()}

        def key_of(name: str) -> jax.Array:
            return jax.random.fold_in(key, zlib.crc32(name.encode()))

        return all_scores(key_of, of_proxies, proxies, params, batch)

    return init, score_weights


def together(score_weights: Callable[..., _T]) -> Callable[..., _T]:
    """A function that scores one architecture, for the weights `[K, ...]` of several at once.

    The parameters and the batch are the same for all. Every operation is computed for each of
    them: on an H100 that is a twentieth of the kernel launches, where a CPU would wait for the
    arithmetic.
    """
    return jax.vmap(score_weights, _OF_ARCHITECTURES)


class Scorer:
    """The compiled program that scores networks, and what it was compiled with.

    Attributes:
      num_at_once: how many networks are scored in a call.
      num_compilations: how many programs were compiled.
      compile_seconds: how long that took, with the first call, which is slow on a GPU.
    """

    def __init__(
        self,
        config: Scoring,
        proxies: Mapping[str, ProxyFn],
        num_classes: int,
        batch_of: Callable[[int], Batch],
        *,
        seed: int,
        weights: Alpha,
        there_are: int,
        mesh: Mesh | None,
        num_kept: int = 1,
        one_hot: bool = True,
    ) -> None:
        """Compiles.

        Args:
          config: the configuration.
          proxies: what scores, by name.
          num_classes: outputs of the networks.
          batch_of: maps a seed to what the proxies see.
          seed: of the first call.
          weights: one-hot weights of the first network.
          there_are: how many networks there are to score in all.
          mesh: the devices, which share the networks of a call along `sample`.
          num_kept: of how many seeds to keep parameters and batch, where calls are of several in
            turn.
          one_hot: see `functions_of`.
        """
        self._proxies, self._batch_of, self._example = proxies, batch_of, weights
        self._draw, self._score_weights = functions_of(
            config, proxies, num_classes, one_hot=one_hot
        )
        self._drawn = functools.lru_cache(maxsize=num_kept)(self._draw_of)
        self._mesh, devices = several(mesh), sizes(mesh)[SAMPLE]
        self.num_compilations = 0
        begin = time.perf_counter()
        self._program, of_device = _fitting(
            lambda count: self._compiled(seed, devices * count),
            config.archs_per_call,
            math.ceil(there_are / devices),
        )
        self.num_at_once = devices * of_device
        if of_device > 1:
            require_memory(self._program, "archs_per_call", of_device)
        else:
            require_memory(self._program, "batch_size", config.batch_size)
        jax.block_until_ready(self._program(*self._arguments(seed, [weights], self.num_at_once)))
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self, seed: int, weights: Sequence[Alpha]) -> tuple[list[dict[str, float]], float]:
        """The scores of up to `num_at_once` networks, by name, and the mean seconds of one."""
        operands = self._arguments(seed, weights, self.num_at_once)  # not counted to the networks
        begin = time.perf_counter()
        found = jax.device_get(self._program(*operands))
        seconds = (time.perf_counter() - begin) / len(weights)
        return [
            {name: float(np.atleast_1d(found[name])[index]) for name in self._proxies}
            for index in range(len(weights))
        ], seconds

    def _draw_of(self, seed: int) -> tuple[jax.Array, Params, Batch]:
        keys, batch = keys_of(seed), self._batch_of(seed)
        params = self._draw(keys["parameters"], batch.inputs, self._example)
        return placed((keys["proxies"], jax.block_until_ready(params), batch), self._mesh)

    def _arguments(self, seed: int, weights: Sequence[Alpha], count: int) -> tuple[Any, ...]:
        """For a call of so many networks, of which the last one may stand there repeatedly."""
        key, params, batch = self._drawn(seed)
        chosen = [*weights, *[weights[-1]] * (count - len(weights))]
        operand = chosen[0] if count == 1 else placed(stacked(chosen), self._mesh, SAMPLE)
        return key, params, operand, batch

    def _compiled(self, seed: int, count: int) -> jax.stages.Compiled:
        self.num_compilations += 1
        one, many = self._score_weights, together(self._score_weights)
        function = one if count == 1 else many
        if self._mesh is not None:
            function = over_samples(one, many, self._mesh, _OF_ARCHITECTURES)
        # Whole on every device, for every process to read.
        out = None if self._mesh is None else everywhere(self._mesh)
        arguments = self._arguments(seed, [self._example], count)
        return jax.jit(function, out_shardings=out).lower(*arguments).compile()


def _scores(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    num_classes: int,
    genotypes: Sequence[Any],
    batch_of: Callable[[int], Batch],
    mesh: Mesh | None,
    known: Mapping[tuple[int, str], Row],
    write: Callable[[Scores], None],
    on_progress: OnProgress,
) -> Scores:
    """Computes the missing scores, and writes them at intervals and at the end."""
    norms = norms_of(config, proxies)
    weights = _weights(config, space_of(config), genotypes)
    mesh = mesh or along(SAMPLE, len(weights))
    seeds = range(config.seed, config.seed + config.seeds)
    tasks = [(seed, genotype.to_text()) for seed in seeds for genotype in genotypes]
    rows = {task: known[task] for task in tasks if task in known}
    left = {
        seed: [texts for texts in weights if any((seed, text) not in rows for text in texts)]
        for seed in seeds
    }
    scorer: Scorer | None = None

    def scores() -> Scores:
        in_order = tuple(rows[task] for task in tasks if task in rows)
        num_scored = sum((config.seed, texts[0]) in rows for texts in weights)
        compiled = (scorer.num_compilations, scorer.compile_seconds) if scorer else (0, 0.0)
        return Scores(in_order, norms, num_scored, *compiled, sizes(mesh))

    first = next((seed for seed in seeds if left[seed]), None)
    if first is None:  # the record of all that there is says how it came about
        return scores()
    on_progress(Progress("compiling", len(tasks), len(rows)))
    scorer = Scorer(
        config,
        proxies,
        num_classes,
        batch_of,
        seed=first,
        weights=weights[left[first][0]],
        there_are=len(weights),
        mesh=mesh,
    )
    on_progress(Progress("compiled", len(tasks), len(rows)))
    written = time.monotonic()
    for seed, networks in left.items():
        for start in range(0, len(networks), scorer.num_at_once):
            called = networks[start : start + scorer.num_at_once]
            found, seconds = scorer(seed, [weights[texts] for texts in called])
            for texts, values in zip(called, found, strict=True):
                rows |= {(seed, text): Row(seed, text, values, 0.0) for text in texts}
                rows[seed, texts[0]] = Row(seed, texts[0], values, seconds)
            each_seconds = float(np.mean([row.seconds for row in rows.values()]))
            on_progress(Progress("scoring", len(tasks), len(rows), each_seconds))
            if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                write(scores())
                written = time.monotonic()
    write(scores())
    return scores()


def _weights(
    config: ScoreConfig, space: SearchSpace, genotypes: Sequence[Any]
) -> dict[tuple[str, ...], Alpha]:
    """The one-hot weights of each network to score, by the texts of the architectures it is for."""
    alike: dict[Any, list[Any]] = {}
    for genotype in genotypes:
        form = genotype.canonical() if config.canonical else genotype
        alike.setdefault(form, []).append(genotype)
    weights = {}
    for form, members in alike.items():
        scored = in_space(space, form, members[0])
        weights[tuple(genotype.to_text() for genotype in members)] = space.one_hot(scored)
    return weights


def at_once(asked: int, there_are: int) -> int:
    """How many architectures a device is to score in a call, of all that there are for it.

    Args:
      asked: `archs_per_call`.
      there_are: how many there are in all, not how many are left, so that a run that goes on has
        the scores of an unbroken one.
    """
    most = asked or (1 if free_memory() is None else _MOST_AT_ONCE)
    return math.ceil(there_are / math.ceil(there_are / most))  # calls of one size


def _fitting(
    compiled: Callable[[int], jax.stages.Compiled], asked: int, there_are: int
) -> tuple[jax.stages.Compiled, int]:
    """Compiles a call of as many architectures as asked for, or as fit, and says how many."""
    count = at_once(asked, there_are)
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
        "num_scored": scores.num_scored,
        "num_compilations": scores.num_compilations,
        "mesh": dict(scores.mesh),
        "seconds": {"compile": scores.compile_seconds, "score": scores.seconds},
        **provenance(),
    }


def known_rows(
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
