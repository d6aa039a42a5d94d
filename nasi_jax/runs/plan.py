"""`nasi plan`: forecasts memory and time of a run from its compiled program alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax import config as configuration
from nasi_jax import data
from nasi_jax.config import ResolvedSearch, ScoreConfig, Scoring
from nasi_jax.devices import deviceless, forecast
from nasi_jax.devices.footprint import Footprint, footprint_of
from nasi_jax.runs.score import functions_of, genotypes_of, proxies_of, together
from nasi_jax.runs.search import build, space_of
from nasi_jax.runs.train import raw_dtype, stored_size
from nasi_jax.storage.directory import provenance
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.training.trainer import Images, trainer
from nasi_jax.types import Batch, Genotype, ProxyFn

SHARE_OF_GPU = 0.75
"""Of a GPU's memory, which JAX takes where XLA_PYTHON_CLIENT_MEM_FRACTION says nothing."""

KNOWN = {"cifar10": (10, 50_000), "cifar100": (100, 50_000), "imagenet2012": (1000, 1_281_167)}
"""Classes and training images of the data sets that need not be there to plan for them."""

TOGETHER = {"search": "samples_per_step", "score": "archs_per_call"}
"""The settings that say how many samples or cells a call takes."""

_MOST_COMPILATIONS = 6
"""For the largest value of a setting that fits, the one that is planned included."""


class Program(NamedTuple):
    """What a command computes over and over.

    Attributes:
      function: the function, or what `jax.jit` makes of it.
      arguments: the shapes of what it is called with.
      matmul_precision: that it is traced with.
      samples: how many samples, cells or images a call serves.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    matmul_precision: str
    samples: int = 1


def search_step(config: ResolvedSearch, num_classes: int) -> Program:
    """A step of a search, or several in one call."""
    _, algorithm = build(config, num_classes)
    key, batch = _key(), _batch(config.batch_size, config.image_size)
    state = jax.eval_shape(algorithm.init, key, batch)
    precision, number = config.matmul_precision, config.samples_per_step
    if number == 1:
        return Program(jax.jit(algorithm.step, donate_argnums=1), (key, state, batch), precision)
    keys, batches = several(number, (key, batch))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    steps = jax.jit(algorithm.steps, donate_argnums=1)
    return Program(steps, (keys, state, batches, count), precision, number)


def score_call(config: Scoring, proxies: Mapping[str, ProxyFn], num_classes: int) -> Program:
    """The scores of a cell, or of several in one call."""
    draw, score = functions_of(config, proxies, num_classes)
    key, batch = _key(), _batch(config.batch_size, config.image_size)
    weights = jax.eval_shape(space_of(config).init_alpha)
    params = jax.eval_shape(draw, key, batch.inputs, weights)
    number = config.archs_per_call
    if number > 1:
        score, weights = together(score), several(number, weights)
    return Program(score, (key, params, weights, batch), config.matmul_precision, number)


def train_step(
    genotype: Genotype, config: TrainConfig, images: Images, dtype: Any = np.uint8
) -> Program:
    """A step of a training, of raw images."""
    algorithm, key, size = trainer(genotype, config, images), _key(), config.batch_size
    state = jax.eval_shape(algorithm.init, key)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    step = jax.jit(algorithm.step, donate_argnums=1)
    arguments = (key, state, raw_images(config, size, dtype), labels)
    return Program(step, arguments, config.matmul_precision, size)


def raw_images(config: TrainConfig, size: int, dtype: Any) -> Any:
    """The shape of so many images as a training reads them."""
    side = stored_size(config)
    return jax.ShapeDtypeStruct((size, side, side, 3), dtype)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _batch(size: int, image_size: int) -> Batch:
    images: Any = jax.ShapeDtypeStruct((size, image_size, image_size, 3), jnp.float32)
    labels: Any = jax.ShapeDtypeStruct((size,), jnp.int32)
    return Batch(images, labels)


def several(number: int, shapes: Any) -> Any:
    """The shapes of so many, stacked."""
    return jax.eval_shape(
        lambda tree: jax.tree.map(lambda leaf: jnp.stack(number * [leaf]), tree), shapes
    )


class ImageSet(NamedTuple):
    """What a program depends on of the images: how many classes and examples, and their dtype."""

    num_classes: int
    num_examples: int
    dtype: Any = np.uint8


def image_set(
    config: ResolvedSearch | ScoreConfig | TrainConfig, given: tuple[int, int] | None = None
) -> ImageSet:
    """What is known of the images of a configuration, which are opened only if they have to be.

    Args:
      config: the configuration.
      given: the numbers of classes and of examples, of images that are not on this machine.

    Raises:
      ValueError: if there is no such data set, or it cannot be used.
    """
    known = given or KNOWN.get(config.data)
    if known is not None:
        return ImageSet(*known)
    dataset = data.load(
        config.data,
        split="train" if isinstance(config, TrainConfig) else "all",
        labels=config.labels,
        image_size=config.image_size,
        data_dir=config.data_dir,
    )
    return ImageSet(dataset.num_classes, dataset.num_examples, raw_dtype(dataset))


@dataclass(frozen=True)
class Job:
    """A run to plan.

    Attributes:
      config: of `nasi search`, `nasi score` or `nasi train`, with a number of samples or cells in a
        call.
      images: what it sees.
      genotype: what a training trains.
      num_devices: how many share it, as they do without a mesh. Each takes samples or cells of its
        own, or its part of a batch to train on; what devices send one another is not counted.
    """

    config: ResolvedSearch | ScoreConfig | TrainConfig
    images: ImageSet
    genotype: Genotype | None = None
    num_devices: int = 1

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError(f"num_devices must be at least 1, got {self.num_devices}")
        if isinstance(self.config, TrainConfig) and self.config.batch_size % self.num_devices:
            raise ValueError(
                f"batch_size must be a multiple of the {self.num_devices} devices, "
                f"got {self.config.batch_size}"
            )

    @property
    def verb(self) -> str:
        """The command."""
        kinds = {ResolvedSearch: "search", ScoreConfig: "score", TrainConfig: "train"}
        return kinds[type(self.config)]

    def program(self) -> Program:
        """What each device computes over and over."""
        config, images = self.config, self.images
        if isinstance(config, TrainConfig):
            assert self.genotype is not None
            # Their statistics are constants of the program, whatever they are but 0 and 1.
            statistics = np.full(3, 128, np.float32), np.full(3, 64, np.float32)
            shown = Images(images.num_classes, images.num_examples, 255.0, *statistics)
            part = dataclasses.replace(config, batch_size=config.batch_size // self.num_devices)
            return train_step(self.genotype, part, shown, images.dtype)
        if isinstance(config, ResolvedSearch):
            return search_step(config, images.num_classes)
        return score_call(config, proxies_of(config, config.proxies), images.num_classes)

    def calls(self) -> int:
        """How many calls of the program the run takes, without what tests a trained network."""
        config = self.config
        if isinstance(config, TrainConfig):
            return config.epochs * (self.images.num_examples // config.batch_size)
        if isinstance(config, ResolvedSearch):
            return math.ceil(config.steps / (config.samples_per_step * self.num_devices))
        num_archs = config.num_archs if config.genotypes is None else len(genotypes_of(config))
        return config.seeds * math.ceil(num_archs / (config.archs_per_call * self.num_devices))

    def altered(self, changes: Mapping[str, Any]) -> Job:
        """The same with other settings, or another number of devices.

        Raises:
          ValueError: for an unknown one, or a value that is not accepted.
        """
        settings = {name: value for name, value in changes.items() if name != "num_devices"}
        config = dataclasses.replace(cast(Any, self.config), **settings)
        number = changes.get("num_devices", self.num_devices)
        return dataclasses.replace(self, config=config, num_devices=number)

    def bounds(self, setting: str) -> tuple[int, int]:
        """What the values of a setting have to be multiples of, and the largest one."""
        config = self.config
        if setting == "batch_size":
            parts = getattr(config, "micro_batches", 1) * (getattr(config, "norm_group", 0) or 1)
            parts *= self.num_devices if isinstance(config, TrainConfig) else 1
            return parts, self.images.num_examples // parts * parts
        return 1, min(1000, self.altered({setting: 1}).calls())


class Device(NamedTuple):
    """What programs are compiled for.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: as JAX names it.
      target: of `deviceless.TARGETS`; None for the device at hand.
    """

    platform: str
    kind: str
    target: str | None

    def footprint(self, job: Job) -> Footprint:
        """Compiles the program of a run, of which nothing is drawn or computed."""
        if self.target is None:
            program = job.program()
            with jax.default_matmul_precision(program.matmul_precision):
                jitted = program.function
                jitted = jitted if hasattr(jitted, "lower") else jax.jit(jitted)
                return footprint_of(jitted.lower(*program.arguments).compile())
        with deviceless.chosen_as_for(self.target):
            program = job.program()
        with jax.default_matmul_precision(program.matmul_precision):
            lowered = deviceless.lowered_for(self.target, program.function, *program.arguments)
            return footprint_of(lowered.compile())

    def usable(self, memory: int) -> int:
        """How much of so much memory a run can have, in bytes."""
        if self.platform == "gpu":
            share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", SHARE_OF_GPU)
            return int(float(share) * memory)
        return memory - (forecast.imported_bytes() if self.platform == "cpu" else 0)


def device_named(name: str | None) -> Device:
    """The device at hand, if no name or its platform is given, or one of `deviceless.TARGETS`.

    Raises:
      ValueError: for an unknown name, or a target that there is no compiler for.
    """
    platform = jax.default_backend()
    if name in (None, platform):
        return Device(platform, jax.devices()[0].device_kind, None)
    if name not in deviceless.TARGETS:
        raise ValueError(
            f"device must be {platform}, which is at hand, or one of "
            f"{', '.join(deviceless.TARGETS)}, got {name!r}"
        )
    kind = deviceless.device_of(name).device_kind
    return Device(deviceless.target_of(name).backend, kind, name)


def plan(
    job: Job,
    device: Device,
    *,
    memory: int | None = None,
    vary: Mapping[str, Sequence[int]] | None = None,
    on_compile: Callable[[Mapping[str, Any]], None] = lambda changes: None,
) -> dict[str, Any]:
    """Forecasts memory and time of a run, and what of it fits.

    Args:
      job: the run; with one sample or cell in a call where it asks for as many as fit.
      device: what for.
      memory: bytes of the device's memory; what is larger does not fit. Those that the device at
        hand tells if not given.
      vary: other values of settings, each of which is planned with the rest as it is.
      on_compile: called with the settings that differ before each compilation.

    Returns:
      The forecasts, as JSON: `rows`, the first of which is the run itself, and in `largest` what
      fits at most of `batch_size` and of samples or cells in a call.

    Raises:
      ValueError: for a setting that is not accepted.
    """
    if memory is None and device.target is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        usable = memory
    else:
        usable = None if memory is None else device.usable(memory)
    grouped = TOGETHER.get(job.verb)
    if grouped and not getattr(job.config, grouped):  # as many as fit, which is in `largest`
        job = job.altered({grouped: 1})
    changes: list[dict[str, int]] = [{}]
    changes += [{name: value} for name, values in (vary or {}).items() for value in values]
    jobs = [job.altered(each) for each in changes]  # refused before anything is compiled

    @functools.cache
    def compiled(changed: Job) -> Footprint:
        on_compile(_differences(changed, job))
        return device.footprint(changed)

    def needed(changed: Job) -> int:
        return forecast.peak_bytes(compiled(changed), device.platform)

    def row(changed: Job) -> dict[str, Any]:
        seconds, calls = forecast.seconds_of(compiled(changed), device.kind), changed.calls()
        return {
            "changes": _differences(changed, job),
            "program": compiled(changed).to_dict(),
            "peak_bytes": needed(changed),
            "fits": None if usable is None else needed(changed) <= usable,
            "calls": calls,
            "seconds_of_call": seconds,
            "seconds": None if seconds is None else seconds * calls,
        }

    rows = list(map(row, jobs))
    largest = {}
    for setting in [] if usable is None else filter(None, ["batch_size", grouped]):

        def needed_with(value: int, setting: str = setting) -> int:
            return needed(job.altered({setting: value}))

        start = getattr(job.config, setting)
        step, most = job.bounds(setting)
        largest[setting] = largest_that_fits(
            needed_with, cast(int, usable), {start: needed_with(start)}, step=step, most=most
        )
    return {
        "command": job.verb,
        "config": configuration.to_dict(job.config),
        "num_devices": job.num_devices,
        "images": {"num_classes": job.images.num_classes, "num_examples": job.images.num_examples},
        "platform": device.platform,
        "device_kind": device.kind,
        "device_memory": memory,
        "usable_memory": usable,
        "rows": rows,
        "largest": largest,
        "time": forecast.basis(device.kind),
        "planned_by": provenance(),
    }


def _differences(changed: Job, job: Job) -> dict[str, Any]:
    """The settings that differ, by name."""
    before, after = (
        {**configuration.to_dict(each.config), "num_devices": each.num_devices}
        for each in (job, changed)
    )
    return {name: value for name, value in after.items() if value != before[name]}


def largest_that_fits(
    needed: Callable[[int], int], limit: int, known: Mapping[int, int], *, step: int, most: int
) -> tuple[int | None, int | None]:
    """The largest value of a setting whose program fits, by a line through those that are compiled.

    Args:
      needed: compiles the program of a value, and says what it needs.
      limit: what there is.
      known: what is known of `needed`, a value at least.
      step: of which the values are multiples.
      most: the largest value.

    Returns:
      The largest value that was seen to fit and the smallest that was not, None where there is
      none. They are neighbors unless too many compilations would have been needed.
    """
    sizes = dict(known)
    while True:
        fits = max((value for value, size in sizes.items() if size <= limit), default=0)
        above = [value for value, size in sizes.items() if size > limit]
        fails = min(above, default=most + step)
        if fails - fits <= step or len(sizes) >= _MOST_COMPILATIONS:
            return fits or None, min(above, default=None)
        if len(sizes) == 1:
            guess = 2 * fits if fits else fails // 2
        else:
            near, far = sorted(sizes, key=lambda value: abs(sizes[value] - limit))[:2]
            slope = (sizes[far] - sizes[near]) / (far - near)
            guess = int(near + (limit - sizes[near]) / slope) if slope > 0 else (fits + fails) // 2
        guess = min(max(guess // step * step, fits + step), fails - step)
        sizes[guess] = needed(guess)
