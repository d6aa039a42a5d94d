"""Configurations as frozen dataclasses, the paper's settings by name, and their JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nasi_jax.types import (
    DEPTHWISE,
    DERIVATIVES,
    INITIALIZERS,
    LOSSES,
    NORM_MODES,
    PRECISIONS,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_C = TypeVar("_C", bound="DataclassInstance")

LABELS = ("true", "random")
"""Where labels come from: the data, or a uniform draw that knows nothing of the data."""

CONSTRAINT_RULES = ("fixed", "adaptive", "quantile")
"""The rules for nu; see `nasi_jax.search.objective`."""

_DARTS = {
    "steps": 100,
    "batch_size": 64,
    "penalty": 2.0,
    "redraw": False,
    "derivative": "forward",
}
_REDUCED_DARTS_OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
_NASBENCH201 = {
    "steps": 100,
    "batch_size": 16,
    "penalty": 1.0,
    "redraw": True,
    "derivative": "reverse",
    "ops": ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    "num_cells": 1,
}
_NASBENCH1SHOT1 = {
    "steps": 20,
    "batch_size": 16,
    "penalty": 2.0,
    "redraw": True,
    "derivative": "reverse",
}
_FIXED = {"constraint_rule": "fixed"}
_ADAPTIVE = {"constraint_rule": "adaptive"}

_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("an integer", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float)),
    "tuple[str, ...]": (
        "a list of names",
        lambda value: isinstance(value, tuple) and all(isinstance(name, str) for name in value),
    ),
    "tuple[float, float, float, float]": (
        "four numbers from 0 to 1",
        lambda value: (
            isinstance(value, tuple)
            and len(value) == 4
            and all(type(part) in (int, float) and 0 <= part <= 1 for part in value)
        ),
    ),
}
"""Types of the fields as they are spelt there, in words, and whether a value is one."""

# Integers end where JAX would wrap them without a word; within 1e30 squares stay in float32.
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 2**31 - 1),
    "batch_size": (1, 2**31 - 1),
    "penalty": (0, 1e30),
    "constraint": (0, 1e30),
    "constraint_quantile": (0, 1),
    "constraint_samples": (1, 2**31 - 1),
    "temperature": (1e-30, 1e30),
    "radius": (1e-30, 1e30),
    "seed": (0, 2**32 - 1),
    "micro_batches": (1, 2**31 - 1),
    "num_archs": (1, 2**31 - 1),
    "seeds": (1, 1000),
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "nasi-fix": {
        "darts": {**_DARTS, **_FIXED, "constraint": 100.0, "ops": _REDUCED_DARTS_OPS},
        "nasbench201": {**_NASBENCH201, **_FIXED, "constraint": 1000.0},
        "nasbench1shot1": {**_NASBENCH1SHOT1, **_FIXED, "constraint": 1000.0},
    },
    "nasi-ada": {
        "darts": {**_DARTS, **_ADAPTIVE, "constraint": 500.0, "ops": _REDUCED_DARTS_OPS},
        "nasbench201": {**_NASBENCH201, **_ADAPTIVE, "constraint": 1000.0},
        "nasbench1shot1": {**_NASBENCH1SHOT1, **_ADAPTIVE, "constraint": 10.0},
    },
}
"""Settings by variant and family of spaces.

Stated in the paper (section 6) for DARTS, and kept: T = 100, b = 64, mu = 2, nu = 100 (fixed) or
initially 500 (adaptive). Its DARTS space is called reduced; that this means without `none` is our
reading.

For NAS-Bench-1Shot1 it states mu = 1, nu initially 1000, adaptive, and one epoch (by our reading
390 steps of 64 images of half of CIFAR-10) on one theta_0: `--steps 390 --batch-size 64 --penalty 1
--constraint 1000 --redraw False`. In 20 steps of 16 images that selects worse cells of space 1 than
chance. For NAS-Bench-201 it states nothing. The settings of both were chosen on validation
accuracies on CIFAR-10, see benchmarks/README.md: mu, the initial nu, that every step draws theta_0
anew, that NAS-Bench-201 is searched without `none`, and as many steps on as many images as two CPU
cores do in a minute. A fixed nu outside of DARTS is out of reach on NAS-Bench-201, and not chosen
with care.

Of the two ways to differentiate, which give the same, each space has the one that was faster on CPU
or, for DARTS, that needs less memory.
"""

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "variant": tuple(VARIANTS),
    "labels": LABELS,
    "constraint_rule": (None, *CONSTRAINT_RULES),
    "norm": NORM_MODES,
    "init": INITIALIZERS,
    "loss": LOSSES,
    "derivative": (None, *DERIVATIVES),
    "precision": PRECISIONS,
    "depthwise": DEPTHWISE,
}


@dataclass(frozen=True)
class SearchConfig:
    """What a search depends on. A setting left at None takes the variant's value for the space.

    Attributes:
      space: darts, nasbench201, nasbench1shot1-1, nasbench1shot1-2 or nasbench1shot1-3.
      variant: nasi-fix (constant nu) or nasi-ada (nu follows the mean), for darts with the paper's
        settings; see `VARIANTS`.
      data: digits or gaussian (no download), a path to an .npz with x_train and y_train, or the
        name of a tensorflow-datasets data set, such as cifar10.
      labels: true, or random (uniform over the classes).
      steps: number of steps T, each with a fresh mini-batch and a fresh architecture.
      batch_size: examples b in a mini-batch.
      penalty: mu, the weight of the constraint; 1 caps the objective at nu, 2 makes it a tent.
      constraint: nu, the initial one if the rule changes it.
      constraint_rule: fixed, adaptive (running mean of x that includes nu) or quantile (of x over
        random relaxed architectures; the constraint itself is then not used).
      constraint_quantile: which quantile, between 0 and 1.
      constraint_samples: how many random relaxed architectures that quantile is over.
      temperature: tau of the Gumbel-softmax.
      hard: one-hot samples with the straight-through gradient, in place of soft ones.
      redraw: whether every step draws parameters theta_0 of its own; the paper has one for all.
      radius: xi, the bound on the norm of the step that alpha takes.
      norm: batch (statistics of the batch), frozen (of a reference batch, constant) or none.
      init: he_normal, he_uniform, xavier_normal, lecun_normal or pytorch.
      loss: cross_entropy, or mse against one-hot labels.
      derivative: forward or reverse, either over the reverse mode: two ways to the same gradient.
      micro_batches: how many parts of the mini-batch to go through one after another, for the same
        gradient in less memory. Not under norm batch, where the parts have statistics of their own.
      precision: float32 or bfloat16, for activations; parameters and sums stay float32.
      depthwise: shift or lax, two ways to compute depthwise convolutions; auto chooses by device.
      ops: the operations on offer, to search in a part of the space. If not given, all but none in
        darts and nasbench201.
      init_channels: channels of the first cells of the supernet.
      num_cells: cells of the supernet; in the NAS-Bench spaces, cells in each of the 3 stages.
      image_size: height and width that images are brought to, a multiple of 4.
      data_dir: where tensorflow-datasets keeps its data sets.
      seed: seed of everything random.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    space: str = "nasbench201"
    variant: str = "nasi-ada"
    data: str = "digits"
    labels: str = "true"
    steps: int | None = None
    batch_size: int | None = None
    penalty: float | None = None
    constraint: float | None = None
    constraint_rule: str | None = None
    constraint_quantile: float = 0.5
    constraint_samples: int = 16
    temperature: float = 1.0
    hard: bool = False
    redraw: bool | None = None
    radius: float = 1.0
    norm: str = "batch"
    init: str = "he_normal"
    loss: str = "cross_entropy"
    derivative: str | None = None
    micro_batches: int = 1
    precision: str = "float32"
    depthwise: str = "auto"
    ops: tuple[str, ...] | None = None
    init_channels: int | None = None
    num_cells: int | None = None
    image_size: int = 32
    data_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.micro_batches > 1 and self.norm == "batch":
            raise ValueError(
                "micro_batches must be 1 under norm batch, where the statistics are those of the "
                f"whole mini-batch, got {self.micro_batches}: use norm frozen or none"
            )
        if self.batch_size is not None and self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size must be a multiple of micro_batches, {self.micro_batches}, "
                f"got {self.batch_size}"
            )

    def resolved(self) -> SearchConfig:
        """The configuration with the variant's value in place of every None that it sets."""
        family = self.space.rpartition("-")[0] or self.space
        settings = VARIANTS[self.variant].get(family, {})
        missing = {name: value for name, value in settings.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


@dataclass(frozen=True)
class ScoreConfig:
    """What the scores of architectures depend on.

    Attributes:
      space: darts, nasbench201, nasbench1shot1-1, nasbench1shot1-2 or nasbench1shot1-3.
      genotypes: a file with a genotype as text in each line.
      num_archs: how many different random architectures to score, if there is no such file.
      seeds: how often each is scored, from seed, seed + 1 and so on: with other parameters, another
        batch, and other random numbers of the proxies.
      proxies: the scores; params and flops are always there.
      data: digits or gaussian (no download), a path to an .npz with x_train and y_train, or the
        name of a tensorflow-datasets data set, such as cifar10.
      labels: true, or random (uniform over the classes).
      batch_size: examples in the one batch that all architectures see.
      norm: batch (statistics of the batch), frozen (of a reference batch, constant) or none.
        Under batch, what needs gradients of single examples takes a backward pass of the whole
        batch for each. synflow has no normalisation in any mode.
      init: he_normal, he_uniform, xavier_normal, lecun_normal or pytorch.
      ops: the operations on offer, to score in a part of the space.
      init_channels: channels of the first cells of the supernet.
      num_cells: cells of the supernet; in the NAS-Bench spaces, cells in each of the 3 stages.
      image_size: height and width that images are brought to, a multiple of 4.
      data_dir: where tensorflow-datasets keeps its data sets.
      seed: seed of everything random.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    space: str = "nasbench201"
    genotypes: str | None = None
    num_archs: int = 20
    seeds: int = 1
    proxies: tuple[str, ...] = ("batch_gradient", "grad_norm", "naswot")
    data: str = "digits"
    labels: str = "true"
    batch_size: int = 32
    norm: str = "batch"
    init: str = "he_normal"
    ops: tuple[str, ...] | None = None
    init_channels: int | None = None
    num_cells: int | None = None
    image_size: int = 32
    data_dir: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        if self.seed + self.seeds > 2**32:
            raise ValueError(
                f"seed + seeds must be at most {2**32}, got {self.seed} + {self.seeds}"
            )


@dataclass(frozen=True, kw_only=True)
class RankConfig(ScoreConfig):
    """What the ranking of architectures against their accuracies depends on.

    Attributes:
      table: a file of accuracies, as `nasi_jax.tables.load` takes it.
      column: which of its columns, such as c10valid_val_200 or val_108.
      num_archs: how many different random architectures of the table to rank, unless genotypes
        names a file.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    table: str
    column: str
    num_archs: int = 100
    proxies: tuple[str, ...] = (
        "batch_gradient",
        "grad_norm",
        "snip",
        "synflow",
        "grasp",
        "fisher",
        "jacov",
        "naswot",
        "zico",
    )


Config = SearchConfig | ScoreConfig
"""A configuration of one of the commands that look at networks at initialization."""


def check(
    config: DataclassInstance,
    choices: Mapping[str, tuple[str | None, ...]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Checks every field of a configuration by its type, and by its name where that is known.

    Args:
      config: a dataclass.
      choices: the accepted values of further fields.
      ranges: the least and the largest value of further fields.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind, _, optional = str(field.type).partition(" | ")
        expected, accepts = _KINDS[kind]
        if not (accepts(value) or (optional and value is None)):
            raise ValueError(f"{field.name} must be {expected}, got {value!r}")
    names = {field.name for field in dataclasses.fields(config)}
    for name, known in (_CHOICES | dict(choices or {})).items():
        if name in names and (value := getattr(config, name)) not in known:
            options = ", ".join(filter(None, known))
            raise ValueError(f"unknown {name} {value!r}; known: {options}")
    for name, (least, most) in (_RANGES | dict(ranges or {})).items():
        value = getattr(config, name) if name in names else None
        # Written so that NaN is refused.
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}")


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """The JSON form: every field by its name."""
    return dataclasses.asdict(config)


def from_dict(values: Any, kind: type[_C]) -> _C:
    """Reads the JSON form of a configuration.

    Args:
      values: an object, as `to_dict` gives it.
      kind: the class of the configuration.

    Raises:
      ValueError: for an unknown field or a value that is not accepted.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is an object of settings, got {type(values).__name__}")
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    # JSON has no tuples.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**fields)
