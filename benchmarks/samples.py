"""The samples of searches, kept, so that one run serves every T, mu and rule for nu.

All gradients of NASI are taken at alpha_0, so those of R follow from x and its gradient, which
depend on none of the three: a search with mu = 0 records both, and `alphas` does the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from nasi_jax import SearchConfig, one_step_ascent, tables
from nasi_jax.config import ResolvedSearch, to_dict
from nasi_jax.devices import cache
from nasi_jax.runs.search import build, dataset_of
from nasi_jax.search import Constraint, penalized, run
from nasi_jax.storage import files
from nasi_jax.tables import Table
from nasi_jax.types import Alpha, SearchSpace


@dataclass(frozen=True)
class Samples:
    """What the steps of one search saw.

    Attributes:
      trace: x, `[T]`.
      gradient: of x in alpha, `[T, rows, options]` each.
      seconds: of each step, `[T]`.
      compile_seconds: before the first step.
    """

    trace: np.ndarray
    gradient: dict[str, np.ndarray]
    seconds: np.ndarray
    compile_seconds: float


def sampled(config: SearchConfig, seeds: Iterable[int], out: Path) -> tuple[Any, list[Samples]]:
    """The search space, and the samples of a search from each seed.

    Args:
      config: the search; its seed, variant, penalty and rule for nu are not used.
      seeds: the seeds.
      out: the directory where samples are kept, and taken from in another run. They are told apart
        by the configuration: delete them where the code has changed.
    """
    unused: dict[str, Any] = {"penalty": 0.0, "constraint": 0.0, "constraint_rule": "fixed"}
    unused |= {"constraint_quantile": 0.5, "constraint_samples": 1, "variant": "nasi-fix"}
    plain = replace(config.resolved(), **unused)
    space, algorithm = build(plain, dataset_of(plain).num_classes)
    name = short_hash(to_dict(replace(plain, seed=0)))
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # The step is lowered anew for each seed, and taken from there.
        cache.turn_on(cache.default_folder())
    found = []
    for seed in track(list(seeds), description="searches", console=Console(stderr=True)):
        path = out / f"{name}-{seed}.npz"
        if not path.exists():
            _record(replace(plain, seed=seed), algorithm, path)
        with np.load(path, allow_pickle=False) as arrays:
            names = [key.removeprefix("gradient_") for key in arrays if key.startswith("gradient_")]
            found.append(
                Samples(
                    arrays["trace"],
                    {name: arrays[f"gradient_{name}"] for name in names},
                    arrays["seconds"],
                    float(arrays["compile_seconds"]),
                )
            )
    return space, found


def short_hash(content: Any) -> str:
    """Tells configurations apart in the names of files."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def table_of(paths: Sequence[str], columns: Iterable[str]) -> Table:
    """The table in these files, whose differences are printed.

    Ends the study, before it computes anything, if it cannot be read or has not all of the columns.
    """
    try:
        table, overlaps = tables.load_all(paths)
        for column in columns:
            table.column(column)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    for column, found in overlaps.items():
        print(
            f"{found.cells} cells have {column} twice: median difference {found.median:.2f}, "
            f"largest {found.largest:.2f}"
        )
    return table


def smallest(search: ResolvedSearch) -> ResolvedSearch:
    """The same search at its smallest size, for tests."""
    return replace(search, steps=3, batch_size=4, init_channels=2, num_cells=1, image_size=8)


def settings(config: Any, search: SearchConfig) -> dict[str, Any]:
    """The settings of a study and of its search, for the record."""
    return {
        **{name: str(value) for name, value in asdict(config).items() if name != "search"},
        "search": {**to_dict(search), "data": Path(search.data).name},
    }


def _record(config: ResolvedSearch, algorithm: Any, path: Path) -> None:
    dataset, steps = dataset_of(config), config.steps
    search_key, data_key = jax.random.split(jax.random.key(config.seed))  # as `nasi search` does
    done = run(
        search_key,
        algorithm,
        lambda step: dataset.batch(data_key, step, config.batch_size),
        steps,
    )
    # An update is G_t / (T max_{s<=t} ||G_s||).
    scale = steps / config.radius * np.maximum.accumulate(done.info.gradient_norm)
    gradient = {
        f"gradient_{name}": update * scale[:, None, None]
        for name, update in done.info.update.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        **gradient,
        "trace": done.info.trace,
        "seconds": done.step_seconds,
        "compile_seconds": np.array(done.compile_seconds),
    }
    archive = io.BytesIO()
    np.savez(archive, **content)
    files.write_bytes(path, archive.getvalue())


def alphas(samples: Samples, *, steps: int, penalty: float, constraint: Constraint) -> Alpha:
    """alpha after each of the first `steps` steps, by equation (18), `[steps, rows, options]` each.

    As a search with this T, mu and rule for nu, and radius 1, has it, but that the rule `quantile`
    takes the x of the first steps in place of samples of its own.
    """
    optimizer = one_step_ascent(steps)
    trace = jnp.asarray(samples.trace[:steps])
    gradients = {name: jnp.asarray(each[:steps]) for name, each in samples.gradient.items()}
    start = {name: jnp.zeros(each.shape[1:]) for name, each in gradients.items()}

    def step(state: Any, sample: Any) -> tuple[Any, Alpha]:
        alpha, opt_state, rule = state
        x, gradient = sample
        slope = jax.grad(penalized)(x, rule.nu, penalty)
        update, opt_state = optimizer.update(
            jax.tree.map(lambda leaf: -slope * leaf, gradient), opt_state
        )
        alpha = jax.tree.map(jnp.add, alpha, update)
        return (alpha, opt_state, constraint.update(rule, x)), alpha

    begin = (start, optimizer.init(start), constraint.init(lambda count: trace[:count]))
    _, history = jax.jit(lambda: jax.lax.scan(step, begin, (trace, gradients)))()
    return cast(Alpha, history)


def selected(space: SearchSpace, history: Alpha, steps: Sequence[int]) -> list[Any]:
    """What is selected after each of the given steps."""
    host = jax.device_get(history)
    return [
        space.discretize({name: jnp.asarray(each[step - 1]) for name, each in host.items()})
        for step in steps
    ]


def accuracies_of(table: Table, column: str, genotypes: Iterable[Any]) -> np.ndarray:
    """The accuracy of each genotype, NaN where the table has none."""
    return np.array(
        [table.look_up(each, column) if each in table else np.nan for each in genotypes], float
    )


def summary(accuracies: np.ndarray) -> dict[str, Any]:
    """The mean of what is known with its standard error (None where undefined), and how many."""
    known = accuracies[np.isfinite(accuracies)]
    count = len(known)
    return {
        "mean": float(np.mean(known)) if count else None,
        "standard_error": float(np.std(known, ddof=1) / np.sqrt(count)) if count > 1 else None,
        "found": count,
        "of": len(accuracies),
    }


def print_table(label: str, rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Prints the summaries of each row by column, and how many cells the table has in the first."""
    columns = list(next(iter(rows.values())))
    print(f"| {label} | {' | '.join(columns)} | in the table |")
    print("| --- " * (len(columns) + 2) + "|")
    for name, row in rows.items():
        figures = " | ".join(map(shown, row.values()))
        first = row[columns[0]]
        print(f"| {name} | {figures} | {first['found']} of {first['of']} |")


def shown(found: dict[str, Any]) -> str:
    """A mean with its standard error, as far as they are defined."""
    if found["mean"] is None:
        return "-"
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.2f}"
    return f"{found['mean']:.2f}{error}"
