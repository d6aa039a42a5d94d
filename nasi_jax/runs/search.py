"""`nasi search`: runs or resumes a search in a run directory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from nasi_jax import config as configuration
from nasi_jax import data
from nasi_jax import search as nasi_search
from nasi_jax.cells import (
    genotype_from_dict,
    genotype_to_dict,
    parse_genotype,
    search_space,
)
from nasi_jax.config import Config, ResolvedSearch, SearchConfig
from nasi_jax.devices.mesh import SAMPLE, along, require_divisor, sizes
from nasi_jax.kernels import batch_gradient, proxy_named
from nasi_jax.kernels.proxies.proxy import for_norm, norm_of
from nasi_jax.report.cells import draw_genotype
from nasi_jax.report.curves import draw_history
from nasi_jax.report.figures import render, save
from nasi_jax.runs import limits
from nasi_jax.search import (
    Constraint,
    Run,
    SearchAlgorithm,
    SearchInfo,
    SearchState,
    Verdict,
)
from nasi_jax.storage.directory import ADDED, RunDirectory, provenance, restored
from nasi_jax.storage.directory import save as save_checkpoint
from nasi_jax.storage.files import csv_text, finite, json_text
from nasi_jax.types import (
    Alpha,
    Batch,
    Genotype,
    NetworkSpec,
    OnProgress,
    Progress,
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
"""The files of a search's run directory; `overwrite` removes no others."""

_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_MOST_LOOKED_AT = 1000
"""Architectures, for one within the limits: with more, what alpha says hardly counts."""


def run_directory(out: Path) -> RunDirectory:
    """The run directory of a search."""
    added = {
        "samples_per_step": 1,
        "input_relaxation": None,
        "until_sure": False,
        "proxy": "batch_gradient",
        **limits.NONE,
    }
    return RunDirectory(out, "search", FILES, added={**ADDED, **added})


def space_of(config: Config) -> SearchSpace:
    """Builds the search space of a configuration.

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
    """Loads the data set of a configuration.

    Raises:
      ValueError: if there is no such data set, or it cannot be used.
    """
    return datasets_of(config)(config.seed)


def datasets_of(config: Config) -> Callable[[int], data.Dataset]:
    """Opens the images of a configuration: maps a seed to its data set.

    Raises:
      ValueError: if there is no such data set, or it cannot be used.
    """
    return data.of_seeds(
        config.data,
        labels=config.labels,
        image_size=config.image_size,
        data_dir=config.data_dir,
    )


def build(config: ResolvedSearch, num_classes: int) -> tuple[SearchSpace, SearchAlgorithm]:
    """Builds the search space and the search algorithm of a resolved configuration.

    Raises:
      ValueError: for an unknown space, operation or proxy, a size that is too small, or a proxy of
        networks without normalization in another norm mode.
    """
    space = space_of(config)
    proxy = for_norm(proxy_named(config.proxy), config.norm)
    if (norm := norm_of(proxy, config.norm)) != config.norm:
        raise ValueError(f"norm must be {norm} with proxy {config.proxy}, got {config.norm}")
    if proxy is batch_gradient:
        proxy = functools.partial(
            batch_gradient,
            loss=config.loss,
            derivative=config.derivative,
            num_micro_batches=config.micro_batches,
        )
    algorithm = nasi_search.nasi(
        space,
        num_classes=num_classes,
        optimizer=nasi_search.one_step_ascent(config.steps, radius=config.radius),
        proxy=proxy,
        penalty=config.penalty,
        constraint=constraint_of(config),
        temperature=config.temperature,
        relaxation=config.relaxation,
        input_relaxation=config.input_relaxation,
        redraw=config.redraw,
        spec=NetworkSpec(
            norm=config.norm,
            init=config.init,
            dtype=jnp.dtype(config.precision),
            depthwise=config.depthwise,
            together=jax.default_backend() != "cpu",
        ),
    )
    return space, algorithm


def constraint_of(config: ResolvedSearch) -> Constraint:
    """Builds the rule for nu of a resolved configuration."""
    if config.constraint_rule == "quantile":
        return nasi_search.quantile(
            config.constraint_quantile, num_samples=config.constraint_samples
        )
    rule = nasi_search.fixed if config.constraint_rule == "fixed" else nasi_search.adaptive
    return rule(config.constraint)


def search(
    config: SearchConfig,
    out: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Runs or resumes a search, and writes `FILES` into its run directory.

    Args:
      config: the configuration; what it leaves at None takes the variant's value.
      out: the directory, made if it is not there.
      mesh: the devices, as `nasi_jax.device_mesh` makes it: along `sample` each takes the steps of
        a call, along `data` they share the mini-batches. If not given, all along
        `sample`. Changes the result by rounding only, so a search may go on with another.
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
    steps, batch_size = config.steps, config.batch_size
    mesh = mesh or along(SAMPLE, steps)
    require_divisor(batch_size, mesh)

    @functools.lru_cache(maxsize=1)  # the one that is looked at, compiled for, and searched with
    def batches(step: int) -> Batch:
        return dataset.batch(data_key, step, batch_size)

    is_within = limits.within(config, space)
    state = jax.eval_shape(algorithm.init, search_key, batches(0))
    directory = run_directory(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(config.matmul_precision))
        stack.enter_context(
            directory.begun(
                configuration.to_dict(config),
                resume=resume,
                overwrite=overwrite,
                saved=lambda: configuration.to_dict(saved(out)),
            )
        )
        checkpoints = stack.enter_context(directory.checkpoints())
        start = _restored(checkpoints, state)
        begun = 0 if start is None else len(start.step_seconds)
        evidence = nasi_search.Evidence(space)
        kept = time.monotonic()

        def enough(run: Run) -> bool:
            for step in range(evidence.num_steps, len(run.step_seconds)):
                if config.until_sure and evidence.all_sure:
                    break
                evidence.add({name: update[step] for name, update in run.info.update.items()})
            return config.until_sure and evidence.all_sure

        def on_stage(stage: str) -> None:
            on_progress(Progress(stage, steps, begun))

        def keep(run: Run) -> None:
            save_checkpoint(checkpoints, len(run.step_seconds), run._asdict())

        def on_step(run: Run) -> None:
            nonlocal kept
            if time.monotonic() - kept > _SECONDS_BETWEEN_CHECKPOINTS:
                keep(run)
                kept = time.monotonic()
            on_progress(_progress("searching", steps, run))

        run = nasi_search.run(
            search_key,
            algorithm,
            batches,
            steps,
            samples_per_step=config.samples_per_step,
            mesh=mesh,
            start=start,
            on_stage=on_stage,
            on_step=on_step,
            enough=enough,
        )
        done = len(run.step_seconds)
        if checkpoints.latest_step() != done:
            keep(run)
        on_progress(_progress("drawing", done, run))
        enough(run)  # of a search that was whole before it was asked
        run = run._replace(state=jax.device_put(jax.device_get(run.state)))  # off the mesh
        run = _of_fewer_steps(_without_rest(run, evidence.num_steps), steps)
        place, genotype = _selected(space, run.state.alpha, is_within)
        verdicts = evidence.verdicts()
        result = {
            **_result(config, space, dataset, run, verdicts, genotype, sizes(mesh)),
            "place": place,
        }
        _write(directory, space, result, run, genotype)
    return result


def _selected(
    space: SearchSpace, alpha: Alpha, is_within: Callable[[Any], bool]
) -> tuple[int, Genotype]:
    """The most probable architecture that keeps within the limits, and its place from 1."""
    in_order = enumerate(nasi_search.by_probability(space, alpha), 1)
    for place, genotype in itertools.islice(in_order, _MOST_LOOKED_AT):
        if is_within(genotype):
            return place, genotype
    raise ValueError(
        f"max_params and max_multiply_adds must be kept within by one of the {_MOST_LOOKED_AT} "
        "most probable architectures, and none of them is so small"
    )


def _without_rest(run: Run, num_steps: int) -> Run:
    """The run without the steps that the last call took besides those that were enough."""
    if num_steps == len(run.step_seconds):
        return run
    info = jax.tree.map(lambda leaf: leaf[:num_steps], run.info)
    alpha = {name: jnp.asarray(np.cumsum(each, axis=0)[-1]) for name, each in info.update.items()}
    return run._replace(
        state=run.state._replace(alpha=alpha), info=info, step_seconds=run.step_seconds[:num_steps]
    )


def _of_fewer_steps(run: Run, steps: int) -> Run:
    """A run of fewer than the T steps with alpha as equation (18) has it for so many."""
    share = len(run.step_seconds) / steps
    if share == 1:
        return run
    alpha, update = jax.tree.map(lambda leaf: leaf / share, (run.state.alpha, run.info.update))
    return run._replace(
        state=run.state._replace(alpha=alpha), info=run.info._replace(update=update)
    )


def _progress(stage: str, steps: int, run: Run) -> Progress:
    seconds, info = run.step_seconds, run.info
    figures = f"x {info.trace[-1]:.4g}  nu {info.constraint[-1]:.4g}"
    return Progress(stage, steps, len(seconds), float(np.mean(seconds)), figures)


def _restored(checkpoints: ocp.CheckpointManager, state: SearchState) -> Run | None:
    """Restores the latest checkpoint; `state` has its shapes."""
    done = checkpoints.latest_step()
    if done is None:
        return None

    dtype = jnp.result_type(*state.alpha.values())

    def steps_of(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct((done, *shape), dtype)

    update: Any = {name: steps_of(leaf.shape) for name, leaf in state.alpha.items()}
    info = SearchInfo(steps_of(()), steps_of(()), steps_of(()), steps_of(()), update)
    like = Run(state, info, np.zeros(done), 0.0)
    run = Run(**restored(checkpoints, like._asdict()))
    return run._replace(state=jax.device_put(run.state))


def saved(out: Path) -> ResolvedSearch:
    """Reads the configuration of a search from its run directory.

    Raises:
      ValueError: if the directory holds none, or it cannot be read.
    """
    directory = run_directory(out)
    fields = directory.settings()
    try:
        config = configuration.from_dict(fields, SearchConfig)
        if missing := sorted(configuration.to_dict(config).keys() - fields.keys()):
            raise ValueError(
                f"it has no {', '.join(missing)}, so another version wrote it; start again with "
                "--overwrite"
            )
    except ValueError as error:
        raise directory.unreadable(error) from error
    return config.resolved()


def _result(
    config: ResolvedSearch,
    space: SearchSpace,
    dataset: data.Dataset,
    run: Run,
    verdicts: Sequence[Verdict],
    genotype: Genotype,
    mesh: dict[str, int],
) -> dict[str, Any]:
    alpha = run.state.alpha
    of_choice = {verdict.name: verdict for verdict in verdicts}
    return {
        "space": space.name,
        "text": genotype.to_text(),
        "genotype": genotype_to_dict(genotype),
        "choices": [
            {
                **margin._asdict(),
                "standard_error": finite(margin.standard_error),
                "margin_in_standard_errors": finite(margin.ratio),
                "sure": of_choice[margin.name].sure,
                "steps_to_sure": of_choice[margin.name].steps_to_sure,
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
        "steps": len(run.step_seconds),
        "sure_of": "all draws of theta_0" if config.redraw else "this theta_0",
        "norm": config.norm,
        "num_classes": dataset.num_classes,
        "seed": config.seed,
        "config": configuration.to_dict(config),
        "mesh": mesh,
        "seconds": {
            "compile": run.compile_seconds,
            "search": float(np.sum(run.step_seconds)),
        },
        **provenance(),
        **genotype.record(),
        **limits.record(config, genotype),
    }


def _write(
    directory: RunDirectory,
    space: SearchSpace,
    result: dict[str, Any],
    run: Run,
    genotype: Genotype,
) -> None:
    """Writes the result files, `result.json` last, so that its presence marks a complete run."""
    config = result["config"]
    title = f"{config['variant']} in {space.name} on {config['data']} ({config['norm']} norm)"
    confidence = {
        choice["name"]: choice["margin_in_standard_errors"]
        for choice in result["choices"]
        if choice["margin_in_standard_errors"] is not None
    }
    of_choices = confidence if result["place"] == 1 else None  # else it made other choices
    cells = draw_genotype(genotype, confidence=of_choices, title=title)
    save(cells, directory.folder / "cells.svg")
    save(cells, directory.folder / "cells.png")
    history = {
        "x": np.asarray(run.info.trace),
        "nu": np.asarray(run.info.constraint),
        "gradient_norm": np.asarray(run.info.gradient_norm),
    }
    save(draw_history(history, title=title), directory.folder / "history.png")
    directory.write("history.csv", _history(space, run))
    directory.write("result.json", json_text(result))


def _history(space: SearchSpace, run: Run) -> str:
    """The history as csv: a row a step, with the architecture selected after it."""
    alphas = {name: np.cumsum(update, axis=0) for name, update in run.info.update.items()}
    rows = []
    for index, seconds in enumerate(run.step_seconds):
        alpha: Alpha = {name: jnp.asarray(values[index]) for name, values in alphas.items()}
        info = run.info
        figures = (info.trace, info.constraint, info.objective, info.gradient_norm)
        numbers = [float(values[index]) for values in figures]
        selected = space.discretize(alpha).to_text()
        rows.append([index + 1, *numbers, float(seconds), selected])
    columns = ("step", "x", "nu", "objective", "gradient_norm", "seconds", "selected")
    return csv_text(columns, rows)


def show(text_or_file: str, form: str, space: str | None = None) -> bytes:
    """Converts a genotype to text, JSON or a drawing.

    Args:
      text_or_file: a genotype as text or JSON, or the path of a file that holds one; of a
        `result.json` the genotype that it reports.
      form: text, json, svg or png.
      space: the name of the space of the genotype, if it is one of your own.

    Raises:
      ValueError: if there is no genotype in it, or for another form.
    """
    genotype = read_genotype(text_or_file, space)
    if form == "text":
        return (genotype.to_text() + "\n").encode()
    if form == "json":
        return json_text(genotype_to_dict(genotype)).encode()
    return render(draw_genotype(genotype), form)


def read_genotype(text_or_file: str, space: str | None = None) -> Genotype:
    """Parses a genotype from text, JSON or a file; see `show`.

    Args:
      text_or_file: as for `show`.
      space: as for `show`.

    Raises:
      ValueError: if there is no genotype in it.
    """
    if not os.path.exists(text_or_file):
        try:
            return parse_genotype(text_or_file, space)
        except ValueError as error:
            raise ValueError(f"{error}; and there is no such file") from error
    try:
        text = Path(text_or_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read a genotype from {text_or_file}: {error}") from error
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return parse_genotype(text, space)
    if isinstance(fields, dict) and "genotype" in fields:
        fields = fields["genotype"]
    return genotype_from_dict(fields, space)
