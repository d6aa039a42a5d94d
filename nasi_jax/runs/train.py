"""`nasi train`: runs or resumes a training in a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nasi_jax import config as configuration
from nasi_jax import data
from nasi_jax.cells import genotype_to_dict, parse_genotype
from nasi_jax.devices.mesh import (
    DATA,
    along,
    device_mesh,
    everywhere,
    placed,
    require_divisor,
    require_only,
    rows_of,
    sizes,
)
from nasi_jax.report.curves import draw_curves
from nasi_jax.report.figures import save
from nasi_jax.search.loop import require_memory
from nasi_jax.storage.directory import RunDirectory, provenance, restored
from nasi_jax.storage.directory import save as save_checkpoint
from nasi_jax.storage.files import csv_text, json_text
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.training.trainer import (
    Images,
    Score,
    Training,
    TrainState,
    learning_rate_of,
    size_of,
    trainer,
)
from nasi_jax.types import Genotype, OnProgress, Progress

FILES = (
    "config.json",
    "data.json",
    "summary.json",
    "metrics.csv",
    "curves.png",
    "checkpoint",
)
"""The files of a training's run directory; `overwrite` removes no others."""

COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "images_per_second",
    "seconds",
)
"""The columns of `metrics.csv`: accuracies in percent, seconds of the epoch without its test."""

_SECONDS_BETWEEN_CHECKPOINTS = 30.0


def run_directory(out: Path, folders: Iterable[str] = ()) -> RunDirectory:
    """The run directory of a training, or of several, each in one of the folders in it."""
    inside = (f"{folder}/{name}" for folder in folders for name in FILES)
    return RunDirectory(out, "training", (*FILES, *inside), early=("data.json",))


class Trained(NamedTuple):
    """A trained network, read from its run directory.

    Attributes:
      genotype: its genotype.
      config: how it was trained.
      images: on what.
      class_names: names of the classes.
      network: the network, in norm mode `running`.
      variables: its parameters and statistics.
    """

    genotype: Genotype
    config: TrainConfig
    images: Images
    class_names: tuple[str, ...]
    network: nn.Module
    variables: dict[str, Any]


def train(
    genotype: Genotype,
    config: TrainConfig,
    out: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Trains a genotype's network from scratch, and writes `FILES` into its run directory.

    Batches are shared among devices, which see the statistics of the whole batch (or of its
    groups), so that their number changes the result by rounding only.

    Args:
      genotype: what to train.
      config: how.
      out: the directory, made if it is not there.
      mesh: the devices, as `nasi_jax.device_mesh` makes it, which share the batches along `data`.
        If not given, as many as divide the batch. A training may go on with another.
      resume: whether to go on with the training that the directory holds, if it holds one. The
        result is that of an unbroken one: on one CPU the same, bit for bit.
      overwrite: whether to remove what an earlier training left in the directory.
      on_progress: called as the training goes on.

    Returns:
      What stands in `summary.json`.

    Raises:
      ValueError: for a wrong configuration, data that cannot be used, or a directory that is in
        use, or holds another training.
      FloatingPointError: if the loss or a parameter is not finite; the last checkpoint is kept.
      OSError: if a file cannot be written; the last checkpoint is kept.
    """
    return _train(
        _checked(genotype, config),
        genotype,
        config,
        run_directory(out),
        mesh=_mesh_of(config, mesh),
        resume=resume,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def _train(
    splits: _Splits,
    genotype: Genotype,
    config: TrainConfig,
    directory: RunDirectory,
    *,
    mesh: Mesh,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    sets = _Sets(splits, config.seed)
    algorithm = trainer(genotype, config, sets.images)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(config.matmul_precision))
        settings = _settings(genotype, config)
        stack.enter_context(directory.begun(settings, resume=resume, overwrite=overwrite))
        checkpoints = stack.enter_context(directory.checkpoints())
        _check_data(directory, sets, begun=checkpoints.latest_step() is not None)
        loop = _Loop(algorithm, config, sets, mesh, checkpoints, directory, on_progress)
        loop.run()
        loop.write_metrics()
        summary = _summary(genotype, config, algorithm, loop.history, sizes(mesh))
        _draw(directory.folder, config, loop.history)
        directory.write("summary.json", json_text(summary))
    return summary


def train_seeds(
    genotype: Genotype,
    config: TrainConfig,
    out: Path,
    seeds: int,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Trains from `config.seed` and the seeds after it, each in a directory `seed-N` of its own.

    Args:
      genotype: as for `train`.
      config: how to train from the first seed.
      out: the directory that holds all.
      seeds: how many, at least 2.
      mesh: as for `train`.
      resume: as for `train`; what is finished is not trained again.
      overwrite: as for `train`, of all these directories at once.
      on_progress: as for `train`.

    Returns:
      What stands in `summary.json`: mean and standard deviation (of a sample) of the accuracies, in
      percent, and the summary of each training.

    Raises:
      ValueError: for a number of seeds out of range, and as `train`, as all that it raises.
    """
    if not 2 <= seeds <= 1000:
        raise ValueError(f"seeds must be from 2 to 1000, got {seeds}")
    if config.seed + seeds > 2**32:
        raise ValueError(f"seed + seeds must be at most {2**32}, got {config.seed} + {seeds}")
    splits, mesh = _checked(genotype, config), _mesh_of(config, mesh)
    settings = {**_settings(genotype, config), "seeds": seeds}
    folders = {seed: f"seed-{seed}" for seed in range(config.seed, config.seed + seeds)}
    directory = run_directory(out, folders.values())
    summaries = []
    with directory.begun(settings, resume=resume, overwrite=overwrite):
        for seed, folder in folders.items():
            summary = _train(
                splits,
                genotype,
                dataclasses.replace(config, seed=seed),
                run_directory(out / folder),
                mesh=mesh,
                resume=True,  # what is left, which is nothing where it was not asked for
                overwrite=False,
                on_progress=_labelled(f"seed {seed}", on_progress),
            )
            summaries.append(summary)
        summary = _summary_of_seeds(genotype, summaries)
        directory.write("summary.json", json_text(summary))
    return summary


def _labelled(label: str, on_progress: OnProgress) -> OnProgress:
    def report(progress: Progress) -> None:
        on_progress(progress._replace(figures=f"{label}  {progress.figures}".rstrip()))

    return report


def trained(out: Path) -> Trained:
    """Reads the trained network from the latest checkpoint of a run directory.

    Raises:
      ValueError: if the directory holds no checkpoint of a training, or it cannot be read.
    """
    if not (out / "config.json").exists():
        raise ValueError(f"{out} holds no training")
    genotype, config, seeds = saved(out)
    if seeds > 1:
        raise ValueError(
            f"{out} holds {seeds} trainings: name one, such as {out / f'seed-{config.seed}'}"
        )
    try:
        fields = json.loads((out / "data.json").read_text())
        names = tuple(fields.pop("class_names"))
        mean, std = (np.array(fields.pop(name), np.float32) for name in ("mean", "std"))
        images = Images(**fields, mean=mean, std=std)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot read {out / 'data.json'}: {error}") from error
    algorithm = trainer(genotype, config, images)
    with run_directory(out).checkpoints(read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise ValueError(f"{out} holds no checkpoint yet")
        kept = _restored(checkpoints, algorithm, images.num_examples // config.batch_size)
    variables = {"params": kept.state.params, "batch_stats": kept.state.batch_stats}
    return Trained(genotype, config, images, names, algorithm.network, variables)


def saved(out: Path) -> tuple[Genotype, TrainConfig, int]:
    """Reads genotype, configuration and number of seeds from a run directory.

    Raises:
      ValueError: if the directory holds none, or they cannot be read.
    """
    directory = run_directory(out)
    fields = directory.settings()
    try:
        text, seeds = fields.pop("genotype", None), fields.pop("seeds", 1)
        if not isinstance(text, str) or type(seeds) is not int:
            raise ValueError(f"got genotype {text!r}, seeds {seeds!r}")
        config = configuration.from_dict(fields, TrainConfig)
        return parse_genotype(text, config.space), config, seeds
    except ValueError as error:
        raise directory.unreadable(error) from error


_Splits = Mapping[str, Callable[[int], data.Dataset]]
"""The images of the training and of the test split: maps a seed to the data set of each."""


def _checked(genotype: Genotype, config: TrainConfig) -> _Splits:
    """Opens the images, and checks that the genotype can be trained on them."""
    splits = {
        split: data.of_seeds(
            config.data,
            split=split,
            labels=config.labels,
            image_size=stored_size(config),
            data_dir=config.data_dir,
        )
        for split in ("train", "test")
    }
    trainer(genotype, config, _Sets(splits, config.seed).images)
    return splits


def _mesh_of(config: TrainConfig, mesh: Mesh | None) -> Mesh:
    """The mesh, if it can be trained on; if there is none, of as many devices as divide a batch."""
    if mesh is None:
        numbers = range(1, jax.device_count() + 1)
        dividing = max(n for n in numbers if config.batch_size % n == 0)
        mesh = along(DATA, dividing) or device_mesh()
    require_only(DATA, mesh, "batches to train on are spread")
    require_divisor(config.batch_size, mesh)
    return mesh


def _check_data(directory: RunDirectory, sets: _Sets, *, begun: bool) -> None:
    """Writes the statistics of the images, or validates those of a run to resume."""
    text, path = json_text(sets.description()), directory.folder / "data.json"
    if begun and (not path.exists() or path.read_text() != text):
        raise ValueError(
            f"the images are not those that the training in {directory.folder} began with, of "
            f"which {path} has the number, the classes, the mean and the standard deviation"
        )
    directory.write(path.name, text)


def _settings(genotype: Genotype, config: TrainConfig) -> dict[str, Any]:
    return {"genotype": genotype.to_text(), **configuration.to_dict(config)}


class _Sets:
    """The training and the test split."""

    def __init__(self, splits: _Splits, seed: int) -> None:
        self.train, self.test = splits["train"](seed), splits["test"](seed)
        self.dtype = raw_dtype(self.train)
        self.images = Images(
            self.train.num_classes,
            self.train.num_examples,
            self.train.scale,
            self.train.mean,
            self.train.std,
        )

    def description(self) -> dict[str, Any]:
        """Shape, statistics and class names of the images, as JSON."""
        fields = self.images._asdict()
        moments = {name: fields[name].tolist() for name in ("mean", "std")}
        return {**fields, **moments, "class_names": list(self.train.class_names)}

    def read(self, dataset: data.Dataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw images and labels; uint8 where the source is uint8."""
        images, labels = dataset.images(indices)
        rounded = np.rint(images) if self.dtype == np.uint8 else images
        return rounded.astype(self.dtype), labels


def raw_dtype(dataset: data.Dataset) -> type[np.generic]:
    """The dtype that raw images go to the device in: uint8 where the source is uint8."""
    (first,), _ = dataset.read(np.arange(1))
    return np.uint8 if first.dtype == np.uint8 else np.float32


def stored_size(config: TrainConfig) -> int:
    """Height and width that images are brought to before they are cropped: 256 for 224."""
    size = config.image_size
    return 4 * round(size * 8 / 7 / 4) if config.crop == "resized" else size


_Arrays = TypeVar("_Arrays", bound=tuple[np.ndarray, ...])


class _Kept(NamedTuple):
    """The contents of a checkpoint: state, sums over the current epoch, rows of metrics."""

    state: TrainState
    totals: np.ndarray
    history: np.ndarray


class _Loop:
    """The training loop, from the latest checkpoint on."""

    def __init__(
        self,
        algorithm: Training,
        config: TrainConfig,
        sets: _Sets,
        mesh: Mesh,
        checkpoints: ocp.CheckpointManager,
        directory: RunDirectory,
        on_progress: OnProgress,
    ) -> None:
        self.algorithm, self.config, self.sets = algorithm, config, sets
        self.checkpoints, self.directory, self.on_progress = checkpoints, directory, on_progress
        self.steps_per_epoch = sets.images.num_examples // config.batch_size
        self.num_steps = config.epochs * self.steps_per_epoch
        self.init_key, self.step_key, self.data_key = jax.random.split(
            jax.random.key(config.seed), 3
        )
        self.mesh, self.replicated = mesh, everywhere(mesh)
        self.split = NamedSharding(mesh, PartitionSpec(DATA))
        self.rows = rows_of(self.split, config.batch_size)
        self.history = np.zeros((0, len(COLUMNS)))
        self.saved = self.epoch_began = self.step_seconds = self.test_seconds = 0.0

    def run(self) -> None:
        """Trains to the end."""
        state, totals, self.history = self._start()
        first = int(state.step)
        if first == self.num_steps:
            return
        self.on_progress(Progress("compiling", self.num_steps, first))
        self.step_key, state = placed((self.step_key, state), self.mesh)
        step, evaluate = self._compiled(state)
        self.on_progress(Progress("compiled", self.num_steps, first))
        self.saved = self.epoch_began = time.monotonic()
        epoch_first = first
        pending: Score | None = None
        batches = _read_ahead(self._batch, range(first, self.num_steps))
        for done, batch in enumerate(batches, first + 1):
            state, score = step(self.step_key, state, *self._spread(batch))
            # The score of the step before, so that the device has this step to do meanwhile.
            totals = self._add(totals, pending, done - 1)
            ends = done % self.steps_per_epoch == 0
            due = time.monotonic() - self.saved > _SECONDS_BETWEEN_CHECKPOINTS
            if ends or due:
                totals, score = self._add(totals, score, done), None
                self._check(state)
            if ends:
                self._end_epoch(state, totals, done - epoch_first, evaluate)
                totals, epoch_first = np.zeros(2), done
            if ends or due:
                self._save(state, totals)
            if ends:
                self.epoch_began = time.monotonic()
            pending = score
            under_way = pending is not None
            counted = (done - 1) % self.steps_per_epoch + (not under_way)
            self._report(done, done - epoch_first - under_way, totals, counted)

    def _start(self) -> _Kept:
        if self.checkpoints.latest_step() is not None:
            return _restored(self.checkpoints, self.algorithm, self.steps_per_epoch)
        state = self.algorithm.init(self.init_key)
        return _Kept(state, np.zeros(2), self.history)

    def _compiled(self, state: TrainState) -> tuple[Any, Any]:
        def batch_of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            shape = (self.config.batch_size, *shape)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self.split)

        images = batch_of(self.sets.dtype, *self.sets.train.image_shape)
        labels, weights = batch_of(np.int32), batch_of(np.float32)
        step = jax.jit(self.algorithm.step, donate_argnums=1, out_shardings=self.replicated).lower(
            self.step_key, state, images, labels
        )
        evaluate = jax.jit(self.algorithm.evaluate, out_shardings=self.replicated).lower(
            state, images, labels, weights
        )
        program = step.compile()
        require_memory(program, "batch_size", self.config.batch_size)
        return program, evaluate.compile()

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a training batch, those that the devices of this process hold."""
        train = self.sets.train
        indices = train.indices(self.data_key, step, self.config.batch_size)
        return self.sets.read(train, indices[self.rows])

    def _spread(self, rows: _Arrays) -> _Arrays:
        """Batches over all devices, of which this process has the rows of its own."""

        def whole(leaf: np.ndarray) -> jax.Array:
            shape = (self.config.batch_size, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(self.split, leaf, shape)

        return jax.tree.map(whole, rows)

    def _add(self, totals: np.ndarray, score: Score | None, step: int) -> np.ndarray:
        """Adds the sums of a step, numbered from 1, to those of the epoch."""
        if score is None:
            return totals
        if not math.isfinite(float(score.loss)):
            self._fail(f"the loss is {float(score.loss)} at step {step}")
        return totals + np.array([float(score.loss), float(score.num_correct)])

    def _fail(self, what: str) -> None:
        kept = self.checkpoints.latest_step()
        raise FloatingPointError(
            f"{what} of {self.num_steps}; a lower learning_rate may help; "
            + (f"the checkpoint of step {kept} is kept" if kept else "there is no checkpoint yet")
        )

    def _end_epoch(
        self, state: TrainState, totals: np.ndarray, num_steps: int, evaluate: Any
    ) -> None:
        """Appends a row of metrics; `num_steps` steps of the epoch ran in this process."""
        size = self.config.batch_size
        trained = self.steps_per_epoch * size
        self.step_seconds = (time.monotonic() - self.epoch_began) / num_steps
        rate = size / self.step_seconds
        epoch = len(self.history) + 1
        learning_rate = learning_rate_of(self.config, self.steps_per_epoch)
        test_loss, test_accuracy = self._tested(state, evaluate)
        if not math.isfinite(test_loss):
            self._fail(f"the loss on test images is {test_loss} after step {int(state.step)}")
        row = (
            epoch,
            float(learning_rate(epoch * self.steps_per_epoch - 1)),
            totals[0] / trained,
            100 * totals[1] / trained,
            test_loss,
            test_accuracy,
            rate,
            trained / rate,
        )
        self.history = np.concatenate([self.history, [row]])
        self.write_metrics()

    def write_metrics(self) -> None:
        """Writes `metrics.csv`."""
        rows = ([int(epoch), *map(float, figures)] for epoch, *figures in self.history)
        self.directory.write("metrics.csv", csv_text(COLUMNS, rows))

    def _tested(self, state: TrainState, evaluate: Any) -> tuple[float, float]:
        """Test loss and test accuracy in percent."""
        begun = time.monotonic()
        num = self.sets.test.num_examples
        loss, correct = 0.0, 0.0
        for batch in _read_ahead(self._test_batch, range(-(-num // self.config.batch_size))):
            score = evaluate(state, *self._spread(batch))
            loss, correct = loss + float(score.loss), correct + float(score.num_correct)
        self.test_seconds = time.monotonic() - begun
        return loss / num, 100 * correct / num

    def _test_batch(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Test batches of images, labels and weights; padding of the last batch has weight 0."""
        test, size = self.sets.test, self.config.batch_size
        indices = index * size + self.rows
        weights = (indices < test.num_examples).astype(np.float32)
        return *self.sets.read(test, np.minimum(indices, test.num_examples - 1)), weights

    def _check(self, state: TrainState) -> None:
        # On this process alone: each finds by its own clock when a checkpoint is due.
        variables = jax.device_get((state.params, state.batch_stats))
        if not math.isfinite(float(optax.tree.norm(variables))):
            self._fail(f"a parameter is not finite after step {int(state.step)}")

    def _save(self, state: TrainState, totals: np.ndarray) -> None:
        done = int(state.step)
        content = _stored(_Kept(state, totals, self.history))
        try:
            save_checkpoint(self.checkpoints, done, content)
        except Exception as error:  # a full disk shows in many ways
            raise OSError(
                f"cannot write the checkpoint of step {done} into {self.checkpoints.directory}, "
                f"the one before is kept: {error}"
            ) from error
        self.saved = time.monotonic()

    def _report(self, done: int, timed: int, totals: np.ndarray, counted: int) -> None:
        """Reports progress.

        `timed` steps are known to be done since the epoch began here; `totals` are those of
        `counted` steps of the epoch.
        """
        size = self.config.batch_size
        if timed:
            self.step_seconds = (time.monotonic() - self.epoch_began) / timed
        epoch = -(-done // self.steps_per_epoch)
        figures = f"epoch {epoch}/{self.config.epochs}"
        if counted and totals[0]:
            loss, accuracy = totals / (counted * size)
            figures += f"  loss {loss:.3f}  accuracy {100 * accuracy:.1f} %"
        if len(self.history):
            figures += f"  test {self.history[-1, COLUMNS.index('test_accuracy')]:.2f} %"
        if self.step_seconds:
            figures += f"  {size / self.step_seconds:.0f} images/s"
        seconds = self.step_seconds + self.test_seconds / self.steps_per_epoch
        self.on_progress(Progress("training", self.num_steps, done, seconds, figures))


def _read_ahead(read: Callable[[int], _Arrays], numbers: range) -> Iterator[_Arrays]:
    """Prefetches batches in order, by threads."""
    # Inside the function: it takes most of a second to import.
    import grain

    threads = min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(read)
    return iter(batches.to_iter_dataset(options))


def _restored(
    checkpoints: ocp.CheckpointManager, algorithm: Training, steps_per_epoch: int
) -> _Kept:
    """Restores the latest complete checkpoint."""
    done = checkpoints.latest_step() or 0
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    history = np.zeros((done // steps_per_epoch, len(COLUMNS)))
    like = _Kept(state, np.zeros(2), history)
    return like._replace(**restored(checkpoints, _stored(like)))


def _stored(kept: _Kept) -> dict[str, Any]:
    """The contents as orbax stores them: without the history in the first epoch, which is empty."""
    return {name: part for name, part in kept._asdict().items() if name != "history" or len(part)}


def _summary(
    genotype: Genotype,
    config: TrainConfig,
    algorithm: Training,
    history: np.ndarray,
    mesh: dict[str, int],
) -> dict[str, Any]:
    columns = dict(zip(COLUMNS, history.T, strict=True))
    accuracy = columns["test_accuracy"]
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return {
        "text": genotype.to_text(),
        "genotype": genotype_to_dict(genotype),
        "last_accuracy": float(accuracy[-1]),
        "best_accuracy": float(accuracy.max()),
        "best_epoch": int(accuracy.argmax()) + 1,
        "last_test_loss": float(columns["test_loss"][-1]),
        **size_of(algorithm.network, variables, config.image_size),
        "images_per_second": float(np.median(columns["images_per_second"])),
        "seconds": float(columns["seconds"].sum()),
        "mesh": mesh,
        "norm": "running",
        "seed": config.seed,
        "config": configuration.to_dict(config),
        **provenance(),
    }


def _summary_of_seeds(genotype: Genotype, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "genotype": genotype_to_dict(genotype),
        "seeds": len(summaries),
    }
    for name in ("last_accuracy", "best_accuracy"):
        accuracies = [each[name] for each in summaries]
        summary[name] = {
            "mean": float(np.mean(accuracies)),
            "standard_deviation": float(np.std(accuracies, ddof=1)),
            "values": accuracies,
        }
    return {**summary, "trainings": summaries}


def _draw(out: Path, config: TrainConfig, history: np.ndarray) -> None:
    columns = dict(zip(COLUMNS, history.T, strict=True))
    title = f"{config.recipe} on {config.data}, seed {config.seed}"
    save(draw_curves(columns, title=title), out / "curves.png")
