"""A search from its configuration to a directory of results, which a killed run can resume."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from nasi_jax import config as configuration
from nasi_jax import data, directory, files, plot
from nasi_jax import search as nasi_search
from nasi_jax.cells import (
    AnyGenotype,
    Nasbench101Genotype,
    genotype_from_dict,
    genotype_to_dict,
    parse_genotype,
    search_space,
)
from nasi_jax.config import Config, SearchConfig
from nasi_jax.kernels import batch_gradient
from nasi_jax.search import (
    Constraint,
    Run,
    SearchAlgorithm,
    SearchInfo,
    SearchState,
)
from nasi_jax.types import (
    Alpha,
    Batch,
    Depthwise,
    Derivative,
    Initializer,
    Loss,
    NormMode,
    Precision,
    SearchSpace,
)

FILES = (
    "config.json",
    "result.json",
    "history.csv",
    "cells.svg",
    "cells.png",
    "history.png",
    "checkpoint",
)
"""What a search writes into its directory, and all that `overwrite` removes from it."""

OnProgress = Callable[[str, int, Run | None], None]
"""Called with what is going on, the number of steps in all, and the run so far."""

_SECONDS_BETWEEN_CHECKPOINTS = 5.0


def space_of(config: Config) -> SearchSpace:
    """The search space that a configuration describes.

    Raises:
      ValueError: for an unknown space or operation, or a size that is too small.
    """
    return search_space(
        config.space,
        ops=config.ops,
        init_channels=config.init_channels,
        num_cells=config.num_cells,
    )


def dataset_of(config: Config) -> data.Dataset:
    """The data set that a configuration describes.

    Raises:
      ValueError: if there is no such data set, or it cannot be used.
    """
    return data.load(
        config.data,
        labels=config.labels,
        image_size=config.image_size,
        seed=config.seed,
        data_dir=config.data_dir,
    )


def build(config: SearchConfig, num_classes: int) -> tuple[SearchSpace, SearchAlgorithm]:
    """The search space and the algorithm that a resolved configuration describes.

    Raises:
      ValueError: for an unknown space or operation, or a size that is too small.
    """
    space = space_of(config)
    steps = cast(int, config.steps)
    proxy = functools.partial(
        batch_gradient,
        loss=cast(Loss, config.loss),
        derivative=cast(Derivative, config.derivative),
        num_micro_batches=config.micro_batches,
    )
    algorithm = nasi_search.nasi(
        space,
        num_classes=num_classes,
        optimizer=nasi_search.one_step_ascent(steps, radius=config.radius),
        proxy=proxy,
        penalty=cast(float, config.penalty),
        constraint=constraint_of(config),
        temperature=config.temperature,
        hard=config.hard,
        redraw=bool(config.redraw),
        norm=cast(NormMode, config.norm),
        init=cast(Initializer, config.init),
        precision=cast(Precision, config.precision),
        depthwise=cast(Depthwise, config.depthwise),
    )
    return space, algorithm


def constraint_of(config: SearchConfig) -> Constraint:
    """The rule for nu that a resolved configuration describes."""
    nu = cast(float, config.constraint)
    if config.constraint_rule == "quantile":
        return nasi_search.quantile(
            config.constraint_quantile, num_samples=config.constraint_samples
        )
    return nasi_search.fixed(nu) if config.constraint_rule == "fixed" else nasi_search.adaptive(nu)


def search(
    config: SearchConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, steps, run: None,
) -> dict[str, Any]:
    """Runs a search and writes `FILES` into a directory.

    Args:
      config: the configuration; what it leaves at None takes the variant's value.
      out: the directory, made if it is not there.
      resume: whether to go on with the search that the directory holds, if it holds one. The
        result is that of an unbroken search.
      overwrite: whether to remove what an earlier search left in the directory.
      on_progress: called as the search goes on.

    Returns:
      What stands in `result.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, or a directory that is in
        use, or holds another search.
      FloatingPointError: if the trace is not finite.
    """
    config = config.resolved()
    dataset = dataset_of(config)
    space, algorithm = build(config, dataset.num_classes)
    search_key, data_key = jax.random.split(jax.random.key(config.seed))
    steps, batch_size = cast(int, config.steps), cast(int, config.batch_size)

    def batches(step: int) -> Batch:
        return dataset.batch(data_key, step, batch_size)

    batches(0)
    with directory.claimed(out, "search"), contextlib.ExitStack() as stack:
        directory.prepare(
            out,
            "search",
            configuration.to_dict(config),
            FILES,
            resume=resume,
            overwrite=overwrite,
            saved=lambda: configuration.to_dict(saved_config(out).resolved()),
        )
        checkpoints = stack.enter_context(directory.opened(out))
        start = _restored(checkpoints, jax.eval_shape(algorithm.init, search_key, batches(0)))
        saved = time.monotonic()

        def on_stage(stage: str) -> None:
            on_progress(stage, steps, None)

        def on_step(run: Run) -> None:
            nonlocal saved
            done = len(run.step_seconds)
            if done == steps or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                checkpoints.save(done, args=ocp.args.StandardSave(run._asdict()))
                saved = time.monotonic()
            on_progress("searching", steps, run)

        run = nasi_search.run(
            search_key,
            algorithm,
            batches,
            steps,
            start=start,
            on_stage=on_stage,
            on_step=on_step,
        )
        on_progress("drawing", steps, run)
        result = _result(config, space, dataset, run)
        _write(out, space, result, run)
    return result


def _restored(checkpoints: ocp.CheckpointManager, state: SearchState) -> Run | None:
    """The run that the last whole checkpoint holds, bit for bit; `state` gives its shapes."""
    done = checkpoints.latest_step()
    if done is None:
        return None

    def steps_of(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct((done, *shape), jnp.float32)

    update: Any = {name: steps_of(leaf.shape) for name, leaf in state.alpha.items()}
    info = SearchInfo(steps_of(()), steps_of(()), steps_of(()), steps_of(()), update)
    like = Run(state, info, np.zeros(done), 0.0)
    run = Run(**directory.restored(checkpoints, like._asdict()))
    return run._replace(state=jax.device_put(run.state))


def saved_config(out: Path) -> SearchConfig:
    """The configuration of the search that a directory holds.

    Raises:
      ValueError: if the directory holds none, or it cannot be read.
    """
    fields = directory.saved_settings(out, "search")
    try:
        config = configuration.from_dict(fields, SearchConfig)
        if missing := sorted(configuration.to_dict(config).keys() - fields.keys()):
            raise ValueError(
                f"it has no {', '.join(missing)}, so another version wrote it; start again with "
                "--overwrite"
            )
    except ValueError as error:
        path = out / "config.json"
        raise ValueError(f"{path} is not the configuration of a search: {error}") from error
    return config


def _result(
    config: SearchConfig, space: SearchSpace, dataset: data.Dataset, run: Run
) -> dict[str, Any]:
    alpha = run.state.alpha
    genotype = space.discretize(alpha)
    result = {
        "space": space.name,
        "text": genotype.to_text(),
        "genotype": genotype_to_dict(genotype),
        "choices": [
            {
                **margin._asdict(),
                "standard_error": _finite(margin.standard_error),
                "margin_in_standard_errors": _finite(margin.ratio),
            }
            for margin in nasi_search.margins(space, alpha, run.info.update)
        ],
        "alpha": {
            name: {
                row: dict(zip(columns, map(float, values), strict=True))
                for row, values in zip(rows, np.asarray(alpha[name]), strict=True)
            }
            for name, (rows, columns) in space.labels().items()
        },
        "norm": config.norm,
        "num_classes": dataset.num_classes,
        "seed": config.seed,
        "config": configuration.to_dict(config),
        "seconds": {
            "compile": run.compile_seconds,
            "search": float(np.sum(run.step_seconds)),
        },
        **directory.provenance(),
    }
    if isinstance(genotype, Nasbench101Genotype):
        result["pruned"] = genotype_to_dict(genotype.prune())
        result["module_hash"] = genotype.module_hash()
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(out: Path, space: SearchSpace, result: dict[str, Any], run: Run) -> None:
    """Writes the files, `result.json` last: where it stands, all stand."""
    config = result["config"]
    title = f"{config['variant']} in {space.name} on {config['data']} ({config['norm']} norm)"
    confidence = {
        choice["name"]: choice["margin_in_standard_errors"]
        for choice in result["choices"]
        if choice["margin_in_standard_errors"] is not None
    }
    cells = plot.draw_genotype(
        space.discretize(run.state.alpha), confidence=confidence, title=title
    )
    plot.save(cells, out / "cells.svg")
    plot.save(cells, out / "cells.png")
    history = {
        "x": np.asarray(run.info.trace),
        "nu": np.asarray(run.info.constraint),
        "gradient_norm": np.asarray(run.info.gradient_norm),
    }
    plot.save(plot.draw_history(history, title=title), out / "history.png")
    files.write_bytes(out / "history.csv", _history(space, run).encode())
    files.write_bytes(out / "result.json", files.json_text(result).encode())


def _history(space: SearchSpace, run: Run) -> str:
    """The steps as csv, each with what would be selected after it."""
    alphas = {name: np.cumsum(update, axis=0) for name, update in run.info.update.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "x", "nu", "objective", "gradient_norm", "seconds", "selected"])
    for index, seconds in enumerate(run.step_seconds):
        alpha: Alpha = {name: jnp.asarray(values[index]) for name, values in alphas.items()}
        info = run.info
        figures = (info.trace, info.constraint, info.objective, info.gradient_norm)
        numbers = [float(values[index]) for values in figures]
        selected = space.discretize(alpha).to_text()
        writer.writerow([index + 1, *numbers, float(seconds), selected])
    return text.getvalue()


def show(text_or_file: str, form: str) -> bytes:
    """A genotype in another form.

    Args:
      text_or_file: a genotype as text or JSON, or the path of a file that holds one; of a
        `result.json` the genotype that it reports.
      form: text, json, svg or png.

    Raises:
      ValueError: if there is no genotype in it, or for another form.
    """
    genotype = read_genotype(text_or_file)
    if form == "text":
        return (genotype.to_text() + "\n").encode()
    if form == "json":
        return files.json_text(genotype_to_dict(genotype)).encode()
    return plot.render(plot.draw_genotype(genotype), form)


def read_genotype(text_or_file: str) -> AnyGenotype:
    """A genotype as text or JSON, or that of a file; see `show`.

    Raises:
      ValueError: if there is no genotype in it.
    """
    if not os.path.exists(text_or_file):
        try:
            return parse_genotype(text_or_file)
        except ValueError as error:
            raise ValueError(f"{error}; and there is no such file") from error
    try:
        text = Path(text_or_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read a genotype from {text_or_file}: {error}") from error
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return parse_genotype(text)
    if isinstance(fields, dict) and "genotype" in fields:
        fields = fields["genotype"]
    return genotype_from_dict(fields)
