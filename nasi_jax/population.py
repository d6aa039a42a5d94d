"""Many architectures scored through one compiled supernet, and the scores compared."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax import config as configuration
from nasi_jax import files, plot
from nasi_jax.cells import parse_genotype
from nasi_jax.config import ScoreConfig
from nasi_jax.correlation import COEFFICIENTS, Correlation, correlations
from nasi_jax.experiment import dataset_of, json_text, provenance, space_of
from nasi_jax.kernels import PER_EXAMPLE, PROXIES
from nasi_jax.kernels.neural_tangents import neural_tangents_ntk
from nasi_jax.search import init_params, score_fn
from nasi_jax.types import ApplyFn, Batch, Initializer, NormMode, Params, ProxyFn, SearchSpace

ALWAYS = ("num_params", "flops")
"""The proxies that every table of scores has."""

REFERENCE = "neural_tangents_trace"
"""The exact trace by neural-tangents, the reference of a comparison where it is installed."""

COMPARED = ("ntk_trace", "batch_gradient", "per_example_gradient", "random_cotangent")
"""What a comparison has besides what is asked for: our exact trace, and its estimates."""

OnProgress = Callable[[str, int, int, float], None]
"""Called with what is going on, how many architectures, how many are done, and seconds each."""

_SECONDS_BETWEEN_WRITES = 5.0


class Scores(NamedTuple):
    """Scores of architectures.

    Attributes:
      genotypes: their texts, in order.
      values: for each proxy the scores `[N]`.
      num_compilations: how many programs were compiled to score them.
      compile_seconds: how long that took.
      seconds: for each architecture the seconds that all of its scores took.
    """

    genotypes: tuple[str, ...]
    values: dict[str, np.ndarray]
    num_compilations: int
    compile_seconds: float
    seconds: np.ndarray


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
      out: the csv file: a line for each architecture, with its genotype, params, flops, and the
        proxies, all of them higher is better.
      resume: whether to go on with the scores in the file, if there are any.
      overwrite: whether to replace the file.
      on_progress: called as it goes on.

    Raises:
      ValueError: for a wrong configuration, data or genotypes that cannot be used, or a file that
        is there or holds the scores of something else.
    """
    if out.suffix != ".csv":
        raise ValueError(f"the scores go to a .csv file, got {out}")
    proxies = _proxies(config, config.proxies)
    return _scored(config, proxies, out, resume, overwrite, on_progress)


def compare(
    config: ScoreConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, total, done, seconds: None,
) -> dict[str, Any]:
    """Compares proxies with the exact trace of the NTK over random architectures.

    The reference is the trace of the dense kernel by neural-tangents, where that is installed;
    ours stands beside it, and is the reference otherwise.

    Args:
      config: the configuration. The exact trace keeps a Jacobian of the whole batch in
        neural-tangents, so the batch should be small.
      out: the directory for compare.csv, compare.json and compare.png.
      resume: whether to go on with the comparison in the directory, if there is one.
      overwrite: whether to replace what an earlier comparison left there.
      on_progress: called as it goes on.

    Returns:
      What stands in `compare.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, or a directory that holds
        a comparison already, or one of something else.
    """
    names = tuple(dict.fromkeys((*COMPARED, *config.proxies)))
    proxies = _proxies(config, names)
    installed = importlib.util.find_spec("neural_tangents") is not None
    if installed:
        proxies = {REFERENCE: _neural_tangents_trace, **proxies}
    scores = _scored(config, proxies, out / "compare.csv", resume, overwrite, on_progress)
    on_progress("comparing", len(scores.genotypes), len(scores.genotypes), 0.0)
    reference = REFERENCE if installed else "ntk_trace"
    found = {
        name: correlations(scores.values[reference], values, seed=config.seed)
        for name, values in scores.values.items()
        if name != reference
    }
    result = {
        "reference": reference,
        "correlations": {
            name: {each: _finite(value._asdict()) for each, value in coefficients.items()}
            for name, coefficients in found.items()
        },
        **_record(config, scores),
    }
    titles = {name: _title(coefficients) for name, coefficients in found.items()}
    truth = (reference.replace("_", " "), scores.values[reference])
    figure = plot.draw_scatter(truth, {name: scores.values[name] for name in found}, titles)
    plot.save(figure, out / "compare.png")
    files.write_bytes(out / "compare.json", json_text(result).encode())
    return result


def genotypes_of(config: ScoreConfig, space: SearchSpace) -> list[Any]:
    """The architectures that a configuration names.

    Raises:
      ValueError: if the file cannot be read, a line of it is no genotype of the space, or there
        are not as many different architectures as asked for.
    """
    if config.genotypes is None:
        key = _keys(config)["architectures"]
        found: dict[Any, None] = {}
        for attempt in range(20 * config.num_random):
            found[space.sample(jax.random.fold_in(key, attempt))] = None
            if len(found) == config.num_random:
                return list(found)
        raise ValueError(
            f"num_random must be within the size of the space, got {config.num_random}, and only "
            f"{len(found)} different architectures came up"
        )
    try:
        lines = Path(config.genotypes).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read genotypes from {config.genotypes}: {error}") from error
    genotypes = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                genotype = parse_genotype(line)
                space.one_hot(genotype)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {config.genotypes} is no genotype of {space.name}: {error}"
                ) from error
            genotypes.append(genotype)
    if not genotypes:
        raise ValueError(f"there is no genotype in {config.genotypes}")
    return genotypes


def _keys(config: ScoreConfig) -> dict[str, jax.Array]:
    names = ("parameters", "architectures", "data", "proxies")
    return dict(zip(names, jax.random.split(jax.random.key(config.seed), len(names)), strict=True))


def _proxies(config: ScoreConfig, names: tuple[str, ...]) -> dict[str, ProxyFn]:
    unknown = [name for name in names if name not in PROXIES]
    if unknown:
        raise ValueError(f"unknown proxy {unknown[0]!r}; known: {', '.join(PROXIES)}")
    chosen = dict.fromkeys((*ALWAYS, *names))
    options: dict[str, Any] = {"coupled": config.norm == "batch"}
    return {
        name: functools.partial(PROXIES[name], **options) if name in PER_EXAMPLE else PROXIES[name]
        for name in chosen
    }


def _neural_tangents_trace(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
) -> jax.Array:
    del key
    return jnp.einsum("bkbk->", neural_tangents_ntk(apply_fn, params, batch.inputs))


def _scored(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    out: Path,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
) -> Scores:
    """Scores into a csv file and a json file of the same name, as they come."""
    record = out.with_suffix(".json")
    known = _known(out, record, config, proxies, resume, overwrite)

    def write(scores: Scores) -> None:
        files.write_bytes(record, json_text(_record(config, scores)).encode())
        files.write_bytes(out, _table(scores).encode())

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return _scores(config, proxies, known, write, on_progress)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}") from error


def _scores(
    config: ScoreConfig,
    proxies: Mapping[str, ProxyFn],
    known: Mapping[str, Mapping[str, float]],
    write: Callable[[Scores], None],
    on_progress: OnProgress,
) -> Scores:
    """Scores that are not known yet, written now and then and at the end."""
    space = space_of(config)
    genotypes, keys = genotypes_of(config, space), _keys(config)
    dataset = dataset_of(config)
    batch = dataset.batch(keys["data"], 0, config.batch_size)
    norm = cast(NormMode, config.norm)
    supernet = space.supernet(
        dataset.num_classes, norm=norm, init=cast(Initializer, config.init), one_hot=True
    )

    num_compilations = 0

    def each(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> Any:
        # Runs when JAX traces it: once for each program that it compiles.
        nonlocal num_compilations
        num_compilations += 1
        # A key that hangs on the proxy's name alone: others beside it change nothing.
        return {
            name: proxy(jax.random.fold_in(key, zlib.crc32(name.encode())), apply_fn, params, batch)
            for name, proxy in proxies.items()
        }

    texts = tuple(genotype.to_text() for genotype in genotypes)
    if not known.keys() >= set(texts):
        on_progress("compiling", len(genotypes), 0, 0.0)
    begin = time.perf_counter()
    weights = space.one_hot(genotypes[0])
    params = jax.jit(init_params, static_argnums=1)(
        keys["parameters"], supernet, batch.inputs, weights
    )
    scorer = score_fn(space, supernet, proxy=each, norm=norm)

    def scored(genotype: Any) -> dict[str, float]:
        found = jax.device_get(scorer(keys["proxies"], params, genotype, batch))
        return {name: float(value) for name, value in found.items()}

    rows: list[Mapping[str, float]] = []
    seconds: list[float] = []
    compile_seconds, written = 0.0, time.monotonic()

    def so_far() -> Scores:
        values = {name: np.array([row[name] for row in rows]) for name in proxies}
        return Scores(
            texts[: len(rows)], values, num_compilations, compile_seconds, np.array(seconds)
        )

    for genotype, text in zip(genotypes, texts, strict=True):
        if text in known:
            rows.append(known[text])
            seconds.append(known[text]["seconds"])
            continue
        if num_compilations == 0:
            scored(genotype)
            compile_seconds = time.perf_counter() - begin
            on_progress("compiled", len(genotypes), len(rows), 0.0)
        start = time.perf_counter()
        rows.append(scored(genotype))
        seconds.append(time.perf_counter() - start)
        on_progress("scoring", len(genotypes), len(rows), float(np.mean(seconds)))
        if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
            write(so_far())
            written = time.monotonic()
    scores = so_far()
    write(scores)
    return scores


def _table(scores: Scores) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["genotype", *scores.values, "seconds"])
    for row in zip(scores.genotypes, *scores.values.values(), scores.seconds, strict=True):
        writer.writerow([row[0], *map(float, row[1:])])
    return text.getvalue()


def _record(config: ScoreConfig, scores: Scores) -> dict[str, Any]:
    return {
        "config": json.loads(json_text(configuration.to_dict(config))),
        "norm": config.norm,
        "num_archs": len(scores.genotypes),
        "num_compilations": scores.num_compilations,
        "seconds": {
            "compile": scores.compile_seconds,
            "score": float(np.sum(scores.seconds)),
        },
        **provenance(),
    }


def _known(
    out: Path,
    record: Path,
    config: ScoreConfig,
    proxies: Iterable[str],
    resume: bool,
    overwrite: bool,
) -> dict[str, dict[str, float]]:
    """The rows of an earlier run of the same configuration, by genotype."""
    if overwrite or not out.exists():
        return {}
    if not resume:
        raise ValueError(
            f"{out} is there already: continue it with --resume, replace it with --overwrite, or "
            "name another file"
        )
    try:
        saved = json.loads(record.read_text())["config"]
        rows = list(csv.DictReader(out.read_text().splitlines()))
        known = {
            row["genotype"]: {name: float(row[name]) for name in (*proxies, "seconds")}
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot resume from {out} and {record}: {error}") from error
    given = json.loads(json_text(configuration.to_dict(config)))  # as it was saved
    differences = [
        f"{name} {saved.get(name)} not {given[name]}"
        for name in given
        if given[name] != saved.get(name)
    ]
    if differences:
        raise ValueError(f"the scores to resume have {', '.join(differences)}")
    return known


def _title(coefficients: Mapping[str, Correlation]) -> str:
    r, rho, tau = (coefficients[name].value for name in COEFFICIENTS)
    return rf"$r$ {r:.2f}   $\rho$ {rho:.2f}   $\tau$ {tau:.2f}"


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
