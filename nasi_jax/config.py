"""Configurations as frozen dataclasses, the paper's settings by name, and their JSON form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
)

import pydantic.dataclasses
from pydantic import Field

from nasi_jax.cells import search_space
from nasi_jax.types import (
    Depthwise,
    Derivative,
    Initializer,
    InitialNormMode,
    Loss,
    MatmulPrecision,
    Precision,
    Relaxation,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_C = TypeVar("_C", bound="DataclassInstance")
_T = TypeVar("_T")

Labels = Literal["true", "random"]
"""Where labels come from: the data, or a uniform draw that knows nothing of the data."""
LABELS: tuple[str, ...] = get_args(Labels)

ConstraintRule = Literal["fixed", "adaptive", "quantile"]
"""The rules for nu; see `nasi_jax.search.objective`."""

Aggregate = Literal["az_nas", "vkdnw_agg", "log_rank"]
"""Sums of the logarithms of proxies' ranks; see `nasi_jax.search.aggregate`."""

Variant = Literal["nasi-fix", "nasi-ada"]
"""The variants of NASI: nu stays, or follows the mean of x."""

# Integers end where JAX would wrap them without a word; within 1e30 squares stay in float32.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e30)]
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]

VARIANTS: dict[Variant, dict[str, Any]] = {
    "nasi-fix": {"constraint_rule": "fixed"},
    "nasi-ada": {"constraint_rule": "adaptive"},
}
"""What the variants of a search set; see `SearchConfig.resolved`."""

_GENERAL: dict[str, Any] = {
    "steps": 100,
    "batch_size": 16,
    "penalty": 1.0,
    "constraint": 1000.0,
    "redraw": True,
    "derivative": "reverse",
    "relaxation": "soft",
    "constraint_quantile": 0.5,
    "constraint_samples": 16,
}
"""Settings for spaces that have none of their own."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[_T]) -> type[_T]:
    """Makes a class a frozen dataclass of keyword-only fields, which are checked by their types.

    Nothing is converted but an integer where a number is asked for. However an instance comes
    about, a value that is not accepted is a `ValueError` of one line; the message says what is.

    Args:
      cls: the class. What its `__post_init__` raises is raised as it is.

    Returns:
      The class.
    """
    checked: Any = pydantic.dataclasses.dataclass(
        cls,
        frozen=True,
        kw_only=True,
        config=pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False),
    )
    init = checked.__init__

    @functools.wraps(init)
    def init_or_refuse(self: object, /, **values: Any) -> None:
        try:
            init(self, **values)
        except pydantic.ValidationError as error:
            raise ValueError(_refusal(type(self), values, error)) from None

    checked.__init__ = init_or_refuse
    return checked


def _refusal(kind: type, values: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    """The first of pydantic's errors in one line."""
    first = error.errors()[0]
    fields = pydantic.TypeAdapter(kind).json_schema()["properties"]
    if unknown := sorted(values.keys() - fields.keys()):
        return f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(fields))}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    got = f"got {values[name]!r}" if name in values else "and is missing"
    return f"{name} must be {_accepted(fields[name])}, {got}"


def _accepted(schema: Mapping[str, Any]) -> str:
    """What a JSON schema accepts, in words."""
    match schema:
        case {"anyOf": [some, {"type": "null"}]}:
            return _accepted(some)
        case {"enum": names}:
            return f"one of {', '.join(names)}"
        case {"prefixItems": parts}:
            return f"a list of {len(parts)}, each {_accepted(parts[0])}"
        case {"items": part}:
            return f"a list of {_accepted(part)}"
        case {"minimum": least, "maximum": most}:
            return f"{_IN_WORDS[schema['type']]} from {least} to {most}"
    return _IN_WORDS[schema["type"]]


_IN_WORDS = {
    "string": "text",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
}


@settings
class Images:
    """What images a network sees.

    Attributes:
      data: digits or gaussian (no download), the path of images, or the name of a data set that
        tensorflow-datasets has prepared, such as cifar10. A path is that of an .npz with x_train
        and y_train, of an archive such as cifar-10-python.tar.gz as it is downloaded, of a folder
        with a folder of images for each class, or of parquet files as Hugging Face has them.
      labels: those of the data, or random ones (uniform over the classes).
      image_size: height and width of the images that the network sees, a multiple of 4.
      data_dir: where tensorflow-datasets keeps its data sets.
    """

    data: str = "digits"
    labels: Labels = "true"
    image_size: int = 32
    data_dir: str | None = None


@settings
class Supernet:
    """What supernet there is at initialization.

    Attributes:
      space: darts, nasbench201, nasbench1shot1-1, nasbench1shot1-2, nasbench1shot1-3 or
        transnas101, one that an installed package brings, or module:name of one of your own.
      ops: the operations on offer, to stay in a part of the space. If not given, those of the
        space; for a search in darts, nasbench201 and transnas101, all but none.
      init_channels: channels of the first cells of the supernet.
      num_cells: cells of the supernet; in the NAS-Bench spaces, cells in each stage, of which there
        are 3, and 5 in transnas101.
      norm: where normalization takes its statistics from: the batch, a reference batch (frozen,
        constant), or there is none.
    """

    space: str = "nasbench201"
    ops: tuple[str, ...] | None = None
    init_channels: int | None = None
    num_cells: int | None = None
    norm: InitialNormMode = "batch"


@settings
class Network:
    """How a network is initialized and computed.

    Attributes:
      init: distribution of the initial parameters; pytorch is that of PyTorch's own layers.
      matmul_precision: of products of float32 numbers. highest is float32 on every device, so that
        an accelerator finds what a CPU does; high and default are faster (TF32 on a GPU, bfloat16
        on a TPU), which a training takes without harm. A CPU computes the same with all.
      seed: seed of everything random.
    """

    init: Initializer = "he_normal"
    matmul_precision: MatmulPrecision = "highest"
    seed: Seed = 0


@settings
class Step:
    """How a step is computed.

    Attributes:
      micro_batches: how many parts of a batch to go through one after another, for the same
        gradient in less memory. A part must hold whole groups of examples that share the
        statistics of normalization: in a search under norm batch that is the whole batch, in a
        training norm_group.
      precision: of activations; parameters and sums stay float32.
      depthwise: two ways to compute depthwise convolutions; auto chooses by device.
    """

    micro_batches: Count = 1
    precision: Precision = "float32"
    depthwise: Depthwise = "auto"


@settings
class Limits:
    """How large the network of the selected architecture may be that is trained.

    Attributes:
      max_params: its parameters, at most.
      max_multiply_adds: multiply-adds of its forward pass of one image, at most; 6e8 is the
        mobile setting of ImageNet.
      limits_for: what the network is for, as its benchmark or paper has it: cifar10 or cifar100
        of 32 pixels, where that of DARTS has 20 cells of 36 channels; or, of DARTS alone, imagenet
        with 1000 classes, 224 pixels, and 14 cells of 48 channels.
    """

    max_params: Scale | None = None
    max_multiply_adds: Scale | None = None
    limits_for: Literal["cifar10", "cifar100", "imagenet"] = "cifar10"

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.max_params is not None or self.max_multiply_adds is not None


@settings
class SearchConfig(Limits, Step, Network, Images, Supernet):
    """What a search depends on. A setting left at None takes the variant's value for the space.

    Where the limits rule out what alpha makes most probable, the next that they allow is selected.

    Attributes:
      variant: nasi-fix (constant nu) or nasi-ada (nu follows the mean), for darts with the paper's
        settings; nasi-fix in nasbench1shot1 and nasi-ada elsewhere if not given.
      steps: number of steps T, each with a fresh mini-batch and a fresh architecture.
      until_sure: whether to end as soon as every choice is sure, and take steps as the most that
        there may be. Sure is what a confidence sequence says that is valid at any time of stopping
        and corrected for all choices: where no option is better, it calls any of them sure in at
        most 5% of all searches.
      batch_size: examples b in a mini-batch.
      proxy: x, whose derivative in alpha is taken: batch_gradient, which is NASI's, or another
        proxy, with a nu of its own scale. loss, derivative and micro_batches are those of NASI's.
      penalty: mu, the weight of the constraint; 1 caps the objective at nu, 2 makes it a tent.
      constraint: nu, the initial one if the rule changes it.
      constraint_rule: fixed, adaptive (running mean of x that includes nu) or quantile (of x over
        random relaxed architectures; the constraint itself is then not used).
      constraint_quantile: which quantile, between 0 and 1.
      constraint_samples: how many random relaxed architectures that quantile is over.
      temperature: tau of the Gumbel-softmax.
      relaxation: of sampled operations: soft weights; hard, which are 0 and 1 with the gradient of
        the soft ones (straight-through); or path, hard with a gradient of what was drawn alone.
      input_relaxation: of sampled inputs, in the spaces that choose them apart from operations;
        that of the operations if not given. hard-one draws one where the space reads several.
      redraw: whether every step draws parameters theta_0 of its own; the paper has one for all.
      radius: xi, the bound on the norm of the step that alpha takes.
      samples_per_step: how many of the T steps to take in one call of a device, each with an
        architecture and a mini-batch of its own; 0 for as many as fit into its memory (1 on a CPU).
        Changes the result by rounding only, and takes that many times the memory.
      loss: the softmax cross-entropy, or the squared error against one-hot labels.
      derivative: in either mode over the reverse mode: two ways to the same gradient.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    variant: Variant | None = None
    steps: Count | None = None
    until_sure: bool = False
    batch_size: Count | None = None
    proxy: str = "batch_gradient"
    penalty: Weight | None = None
    constraint: Weight | None = None
    constraint_rule: ConstraintRule | None = None
    constraint_quantile: Share | None = None
    constraint_samples: Count | None = None
    temperature: Scale = 1.0
    relaxation: Relaxation | None = None
    input_relaxation: Relaxation | None = None
    redraw: bool | None = None
    radius: Scale = 1.0
    samples_per_step: Annotated[int, Field(ge=0, le=1000)] = 1
    loss: Loss = "cross_entropy"
    derivative: Derivative | None = None

    def __post_init__(self) -> None:
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

    def resolved(self) -> ResolvedSearch:
        """The configuration with values in place of what is None.

        They are those of the space for the variant (`SearchSpace.settings`), or else general ones.
        The variant is the first that the space has settings for, or else nasi-ada.

        Raises:
          ValueError: for an unknown space.
        """
        settings = search_space(self.space).settings
        variant = self.variant or cast(Variant, next(iter(settings), "nasi-ada"))
        own = settings.get(variant, {})
        given = {name: value for name, value in vars(self).items() if value is not None}
        fields = to_dict(self) | _GENERAL | VARIANTS[variant] | dict(own) | given
        return ResolvedSearch(**fields | {"variant": variant})


@settings
class ResolvedSearch(SearchConfig):
    """A `SearchConfig` without None in what a search needs; see `SearchConfig.resolved`."""

    variant: Variant
    steps: Count
    batch_size: Count
    penalty: Weight
    constraint: Weight
    constraint_rule: ConstraintRule
    constraint_quantile: Share
    constraint_samples: Count
    redraw: bool
    derivative: Derivative
    relaxation: Relaxation


@settings
class Scoring(Network, Images, Supernet):
    """How architectures are scored.

    Attributes:
      seeds: how often each is scored, from seed, seed + 1 and so on: with other parameters, another
        batch, and other random numbers of the proxies.
      proxies: the scores: ours, those that an installed package brings, or module:name of one of
        your own. num_params and flops are always there. Under norm batch, those that need
        gradients of single examples take a backward pass of the whole batch for each. synflow has
        no normalization in any norm mode.
      batch_size: examples in the one batch that all architectures see.
      archs_per_call: how many architectures to score in one call of a device, all operations
        computed for each of them; 0 for 1 on a CPU, elsewhere for 16 or as many as fit into its
        memory. Changes scores by rounding only, and takes that many times the memory.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    proxies: tuple[str, ...] = ("batch_gradient", "grad_norm", "naswot")
    batch_size: Count = 32
    archs_per_call: Annotated[int, Field(ge=0, le=1000)] = 0

    def __post_init__(self) -> None:
        if self.seed + self.seeds > 2**32:
            raise ValueError(
                f"seed + seeds must be at most {2**32}, got {self.seed} + {self.seeds}"
            )


@settings
class ScoreConfig(Scoring):
    """What the scores of architectures depend on.

    Attributes:
      genotypes: a file with a genotype as text in each line.
      num_archs: how many different random architectures to score, if there is no such file.
      canonical: whether to score the canonical form of each architecture, without what is on no
        path from input to output, so that those that compute the same function have one score,
        which is computed once. That of the first of them stands for a form that the space has not.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    genotypes: str | None = None
    num_archs: Count = 20
    canonical: bool = False


@settings
class SelectConfig(Limits, Scoring):
    """What a selection by proxies depends on.

    Attributes:
      method: which architectures to look at: random ones; evolution, mutations of the best of the
        last ones; prune, which takes options out of the supernet, in each round from every choice
        the one that it is best without (TE-NAS); or perturb, which goes through the choices in a
        random order and keeps what the supernet is worst without (Zero-Cost-PT). The last two are
        not for darts, whose inputs are no choices of their own, and may come to an architecture
        beyond the limits, which random and evolution never look at.
      budget: how many networks random and evolution score. Architectures that compute the same
        function are one. Those of one call (archs_per_call, whatever the number of devices) are
        proposed from the same history.
      walks: how often perturb goes through all choices, to take the best of what it comes to.
      population: how many architectures are alive in evolution: the last ones.
      tournament: how many of these compete to be a parent.
      proxies: the scores. The architecture is selected whose sum of the logarithms of its ranks by
        all of them is the highest. The default was chosen on 1,000 NAS-Bench-201 cells; see
        benchmarks/README.md.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    method: Literal["random", "evolution", "prune", "perturb"] = "evolution"
    budget: Count = 1000
    walks: Count = 10
    population: Count = 64
    tournament: Count = 16
    proxies: tuple[str, ...] = ("jacov", "meco", "progressivity", "swap")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tournament > self.population:
            raise ValueError(
                f"tournament must be at most population, {self.population}, got {self.tournament}"
            )
        if not self.proxies:
            raise ValueError("proxies must be at least one, got none")


@settings
class RankConfig(ScoreConfig):
    """What the ranking of architectures against their accuracies depends on.

    Attributes:
      table: a file of accuracies, as `nasi_jax.tables.load` takes it, or several of one benchmark,
        of which the later one's number stands where two have a cell.
      column: which of its columns, such as c10valid_val_200 or val_108.
      num_archs: how many different random architectures of the table to rank, unless genotypes
        names a file.
      population: which architectures there are to rank: all, or the live ones, whose operations
        are all on paths from input to output. Correlations over the two differ.
      aggregate: sums of the logarithms of proxies' ranks, which stand beside the proxies. az_nas
        and vkdnw_agg have proxies of their own, which are scored too; log_rank is over all proxies
        asked for.

    Raises:
      ValueError: for a value that is not accepted; the message says what is.
    """

    table: tuple[str, ...]
    column: str
    num_archs: Count = 100
    canonical: bool = True
    population: Literal["all", "live"] = "all"
    aggregate: tuple[Aggregate, ...] = ()
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if "log_rank" in self.aggregate and len(set(self.proxies)) < 2:
            raise ValueError(
                f"log_rank takes at least two proxies, got {', '.join(self.proxies) or 'none'}"
            )


Config = SearchConfig | Scoring
"""A configuration of one of the commands that look at networks at initialization."""


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
    # JSON has no tuples.
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
