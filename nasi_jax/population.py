"""Many architectures scored through one compiled supernet."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from nasi_jax import config as configuration
from nasi_jax import files
from nasi_jax.cells import parse_genotype
from nasi_jax.config import ScoreConfig
from nasi_jax.directory import provenance
from nasi_jax.experiment import dataset_of, space_of
from nasi_jax.files import json_text
from nasi_jax.kernels import PER_EXAMPLE, PROXIES, WITHOUT_NORM
from nasi_jax.search import close_over, init_params
from nasi_jax.types import Alpha, Batch, Initializer, NormMode, Params, ProxyFn, SearchSpace

ALWAYS = ("num_params", "flops")
"""The proxies that every table of scores has."""

OnProgress = Callable[[str, int, int, float], None]
"""Called with what is going on, how many rows there are, how many are done, and seconds each."""

_SECONDS_BETWEEN_WRITES = 5.0
_DRAWS_PER_ARCHITECTURE = 50


class Row(NamedTuple):
    """The scores of one architecture from one seed, and the seconds that they took together."""

    seed: int
    genotype: str
    values: Mapping[str, float]
    seconds: float


class Scores(NamedTuple):
    """Scores of architectures.

    Attributes:
      rows: the scores of all `N` architectures from the first of `K` seeds, then the next.
      num_compilations: how many programs were compiled to score them.
      compile_seconds: how long that took.
    """

    rows: tuple[Row, ...]
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
        """What all scores took."""
        return float(np.sum([row.seconds for row in self.rows]))


def score(
    config: ScoreConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, total, done, seconds: None,
) -> Scores:
    """Scores architectures into a csv file, and a json file beside it that says how.

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
        is there or holds the scores of something else.
    """
    if out.suffix != ".csv":
        raise ValueError(f"the scores go to a .csv file, got {out}")
    return scored(
        config,
        proxies_of(config, config.proxies),
        genotypes_of(config),
        out,
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def genotypes_of(
    config: ScoreConfig, identity: Callable[[Any], Hashable] = lambda genotype: genotype
) -> list[Any]:
    """The architectures that a configuration names.

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
        return _listed(config.genotypes, space, identity)
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


def _listed(path: str, space: SearchSpace, identity: Callable[[Any], Hashable]) -> list[Any]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read genotypes from {path}: {error}") from error
    genotypes, seen = [], dict[Hashable, int]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                genotype = parse_genotype(line)
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
    unknown = [name for name in names if name not in PROXIES]
    if unknown:
        raise ValueError(f"unknown proxy {unknown[0]!r}; known: {', '.join(PROXIES)}")
    chosen = dict.fromkeys((*ALWAYS, *names))
    options: dict[str, Any] = {"coupled": config.norm == "batch"}
    return {
        name: functools.partial(PROXIES[name], **options) if name in PER_EXAMPLE else PROXIES[name]
        for name in chosen
    }


def norm_of(config: ScoreConfig, proxy: str) -> NormMode:
    """The norm mode that a proxy is computed in."""
    return "none" if proxy in WITHOUT_NORM else cast(NormMode, config.norm)


def scored(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    genotypes: Sequence[Any],
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
    given: Mapping[str, Mapping[str, float]] | None = None,
    results: Sequence[Path] = (),
) -> Scores:
    """Scores into a csv file and a json file of the same name, as they come.

    Args:
      config: the configuration, of `score` or of what else scores.
      proxies: what scores, by name.
      genotypes: the architectures.
      out: the csv file.
      resume: whether to go on with the scores in the file, if there are any.
      overwrite: whether to replace the file.
      on_progress: called as it goes on.
      given: further columns of the file, by name and genotype.
      results: what is made of the scores, and goes with them if they are replaced.

    Raises:
      ValueError: as `score` does.
    """
    record = out.with_suffix(".json")
    if overwrite:
        # Before anything is computed: a run that is killed early must not be resumed to old scores.
        for path in (out, record, *results):
            path.unlink(missing_ok=True)
    there = [path for path in (out, record, *results) if path.exists()]
    if there and not resume:
        raise ValueError(
            f"{there[0]} is there already: continue it with --resume, replace it with --overwrite, "
            "or name another"
        )
    known = _known(out, record, config, proxies) if out.exists() else {}

    def write(scores: Scores) -> None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(record, json_text(record_of(config, scores)).encode())
            files.write_bytes(out, _table(scores.rows, proxies, given or {}).encode())
        except OSError as error:
            raise ValueError(f"cannot write {out}: {error.strerror}") from error

    return _scores(config, proxies, genotypes, known, write, on_progress)


def _scores(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    genotypes: Sequence[Any],
    known: Mapping[tuple[int, str], Row],
    write: Callable[[Scores], None],
    on_progress: OnProgress,
) -> Scores:
    """Scores that are not known yet, written now and then and at the end."""
    space = space_of(config)
    num_classes, init_of = dataset_of(config).num_classes, cast(Initializer, config.init)
    norms = {name: norm_of(config, name) for name in proxies}
    supernets = {
        norm: space.supernet(num_classes, norm=norm, init=init_of, one_hot=True)
        for norm in dict.fromkeys(norms.values())
    }
    supernet = supernets[norms[ALWAYS[0]]]  # their parameters are the same
    num_compilations = 0

    @jax.jit
    def score_weights(key: jax.Array, params: Params, weights: Alpha, batch: Batch) -> Any:
        # Runs when JAX traces it: once for each program that it compiles.
        nonlocal num_compilations
        num_compilations += 1
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

    init = jax.jit(init_params, static_argnums=1)

    @functools.lru_cache(maxsize=1)  # the seeds come one after another
    def drawn(seed: int) -> tuple[jax.Array, Params, Batch]:
        keys, dataset = _keys(seed), dataset_of(dataclasses.replace(config, seed=seed))
        batch = dataset.batch(keys["data"], 0, config.batch_size)
        weights = space.one_hot(genotypes[0])
        return keys["proxies"], init(keys["parameters"], supernet, batch.inputs, weights), batch

    def values_of(seed: int, genotype: Any) -> dict[str, float]:
        key, params, batch = drawn(seed)
        found = jax.device_get(score_weights(key, params, space.one_hot(genotype), batch))
        return {name: float(found[name]) for name in proxies}  # JAX sorts the names

    seeds = range(config.seed, config.seed + config.seeds)
    texts = tuple(genotype.to_text() for genotype in genotypes)
    tasks = [(seed, *pair) for seed in seeds for pair in zip(texts, genotypes, strict=True)]
    rows: list[Row] = []
    compile_seconds, written = 0.0, time.monotonic()
    for seed, text, genotype in tasks:
        if (seed, text) in known:
            rows.append(known[seed, text])
            continue
        if num_compilations == 0:
            on_progress("compiling", len(tasks), len(rows), 0.0)
            begin = time.perf_counter()
            values_of(seed, genotype)
            compile_seconds = time.perf_counter() - begin
            on_progress("compiled", len(tasks), len(rows), 0.0)
        jax.block_until_ready(drawn(seed))  # not counted to its first architecture
        begin = time.perf_counter()
        values = values_of(seed, genotype)
        rows.append(Row(seed, text, values, time.perf_counter() - begin))
        each_seconds = float(np.mean([row.seconds for row in rows]))
        on_progress("scoring", len(tasks), len(rows), each_seconds)
        if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            write(Scores(tuple(rows), num_compilations, compile_seconds))
            written = time.monotonic()
    scores = Scores(tuple(rows), num_compilations, compile_seconds)
    if num_compilations:  # or all of them were known, and their record says how they came about
        write(scores)
    return scores


def _table(
    rows: Sequence[Row], proxies: Mapping[str, ProxyFn], given: Mapping[str, Mapping[str, float]]
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "genotype", *given, *proxies, "seconds"])
    for row in rows:
        others = [column[row.genotype] for column in given.values()]
        writer.writerow([row.seed, row.genotype, *others, *row.values.values(), row.seconds])
    return text.getvalue()


def record_of(config: ScoreConfig, scores: Scores) -> dict[str, Any]:
    """What a result says of the scores that it is made of."""
    return {
        "config": json.loads(json_text(configuration.to_dict(config))),
        "norm": {name: norm_of(config, name) for name in scores.rows[0].values},
        "num_archs": len(scores.genotypes),
        "num_compilations": scores.num_compilations,
        "seconds": {"compile": scores.compile_seconds, "score": scores.seconds},
        **provenance(),
    }


def _known(
    out: Path,
    record: Path,
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
) -> dict[tuple[int, str], Row]:
    """The rows of an earlier run of the same configuration, by seed and genotype."""
    try:
        saved = dict(json.loads(record.read_text())["config"])
        rows = [
            Row(
                int(row["seed"]),
                row["genotype"],
                {name: float(row[name]) for name in proxies},
                float(row["seconds"]),
            )
            for row in csv.DictReader(out.read_text().splitlines())
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot resume from {out} and {record}: {error}") from error
    given = json.loads(json_text(configuration.to_dict(config)))  # as it was saved
    differences = [
        f"{name} {saved.get(name)} not {given.get(name)}"
        for name in given | saved
        if given.get(name) != saved.get(name)
    ]
    if differences:
        raise ValueError(f"the scores to resume have {', '.join(differences)}")
    return {(row.seed, row.genotype): row for row in rows}
