"""The types that the rooms share: batches, alphas, choices, progress, and the three protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, get_args, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Any
"""A pytree of arrays."""

Alpha = dict[str, jax.Array]
"""Architecture logits: one `[rows, options]` array for each kind of choice.

The options of a row compete in one softmax. Where inputs are chosen apart from operations, the
names of their arrays begin with `inputs`. The relaxed or one-hot `weights` that a supernet takes
have the same structure.
"""

ApplyFn = Callable[[Params, jax.Array], jax.Array]
"""Maps `(params, inputs[B, ...])` to outputs `[B, K]`."""

InitialNormMode = Literal["batch", "frozen", "none"]
"""The norm modes of a network at initialization."""
NORM_MODES: tuple[InitialNormMode, ...] = get_args(InitialNormMode)

NormMode = Literal[InitialNormMode, "running"]
"""Where a normalization layer takes its mean and variance from.

`batch`: the batch at hand, differentiated through, so that examples are coupled.
`frozen`: a reference batch, as constants, so that examples are independent.
`none`: there is no normalization; a layer's scale and shift, if it has them, stay.
`running`: the batch at hand, as in `batch`, while the collection `batch_stats` is mutable, as in
training; else that collection, of which the training keeps a running mean.
"""

Stem = Literal["cifar", "imagenet"]
"""The first layers of a DARTS network: of stride 1, or of stride 8 in three convolutions."""
STEMS: tuple[str, ...] = get_args(Stem)

Initializer = Literal["he_normal", "he_uniform", "xavier_normal", "lecun_normal", "pytorch"]
"""Distribution of the initial kernels; see `nasi_jax.cells.layers.ops.kernel_init`."""

Relaxation = Literal["soft", "hard", "hard-one", "path"]
"""How a sampled architecture is relaxed, so that x has a derivative in alpha.

With p = softmax((alpha + g) / tau) and the one-hot draw d of the k options that are selected:
`soft`: the weights are p. `hard`: they are d, with the derivative of p (straight-through, as in
SNAS). `hard-one`: the same with one option a row, also where k are selected. `path`: they are d,
with the derivative of p for the options drawn, and 0 for all others (the sampled path, as in GDAS),
so that operations that are not drawn need not be computed.
"""

Loss = Literal["cross_entropy", "mse"]
"""Mean over the batch of the softmax cross-entropy, or of `||one_hot(label) - output||^2`."""

Derivative = Literal["forward", "reverse"]
"""How to differentiate a squared gradient norm: in either mode over the reverse mode."""


Precision = Literal["float32", "bfloat16"]
"""What activations are computed in.

Parameters, statistics, sums over edges and operations, the logits, and gradients of parameters
are float32 in either.
"""

MatmulPrecision = Literal["default", "high", "highest"]
"""How exact products of float32 numbers are, in matrix products and convolutions.

As JAX's `jax_default_matmul_precision`. `highest` is float32 on every device. `default` is what is
fastest: TF32 on an NVIDIA GPU (10 bits of mantissa, which changes x by about 0.1%), bfloat16 on a
TPU (7 bits). `high` lies between: TF32 on a GPU, three products of bfloat16 on a TPU. A CPU
computes in float32 with all of them.
"""

Depthwise = Literal["auto", "shift", "lax"]
"""How depthwise convolutions are computed: as sums of shifted multiples, or by `jax.lax`.

`auto` is `shift` where it was measured to be faster: on CPU 60 times, and on a GPU (an H200) 1.12 s
against 2.37 s for a search step of DARTS. Elsewhere, as on a TPU, it is `lax`: not measured.
"""


@dataclass(frozen=True)
class NetworkSpec:
    """What all layers of a network have in common, whatever its architecture and its size.

    Attributes:
      norm: where normalization takes its statistics from.
      init: distribution of the initial kernels.
      param_dtype: dtype of the parameters.
      dtype: dtype of the activations; that of the inputs if None.
      depthwise: how depthwise convolutions are computed.
      norm_group: how many examples share the statistics of normalization; all if None.
      remat: whether to keep only what passes between cells for the derivatives.
      together: whether a supernet computes at once what does not wait for one another in a cell:
        edges, and layers of one kind. That launches fewer kernels on a GPU, and gives the same but
        for rounding.
      scan_cells: whether alike cells of a DARTS genotype's network compile as one body, as those of
        the supernet do; the result is the same.
    """

    norm: NormMode = "batch"
    init: Initializer = "he_normal"
    param_dtype: Any = jnp.float32
    dtype: Any = None
    depthwise: Depthwise = "auto"
    norm_group: int | None = None
    remat: bool = False
    together: bool = False
    scan_cells: bool = False


BLOCK = "nasi_jax.block"
"""What `jax.ad_checkpoint.checkpoint_name` names the outputs of a network's stem and cells, for
proxies that look at these; so can any other function."""

UNNORMALIZED = "nasi_jax.unnormalized"
"""Likewise, what a normalization layer reads."""

NORMALIZED = "nasi_jax.normalized"
"""Likewise, what a normalization layer returns."""

FEATURES = "nasi_jax.features"
"""Likewise, the feature maps whose mean over the image the last dense layer reads."""


class Batch(NamedTuple):
    """A mini-batch: inputs `[B, H, W, C]` and integer labels `[B]`."""

    inputs: jax.Array
    labels: jax.Array


class Progress(NamedTuple):
    """How far long work is.

    Attributes:
      stage: what is done, in a word or two: "compiling", then "compiled", before what is compiled.
      total: of how many parts the work is.
      done: how many of them are done.
      seconds: mean of a part, 0 while it is not known.
      figures: what was found so far, as text.
    """

    stage: str
    total: int
    done: int
    seconds: float = 0.0
    figures: str = ""


OnProgress = Callable[[Progress], None]
"""What long work calls as it goes on."""


class DropPath(NamedTuple):
    """Which operations to leave out for which examples while a network is trained.

    Attributes:
      rate: a scalar below 1, the probability for each.
      keys: random keys `[B]`, one an example, so that a part of a batch is treated as in the whole.
    """

    rate: jax.Array
    keys: jax.Array


class Edge(NamedTuple):
    """One edge into a node of a cell: the operation, and the node that it reads."""

    op: str
    node: int


class Choice(NamedTuple):
    """One decision that turns alpha into a genotype.

    The `num_selected` options of highest score win; among equal scores the first.

    Attributes:
      name: what is decided, such as `normal 0->2`.
      options: the names of the options.
      scores: `[len(options)]`, differentiable in alpha.
      num_selected: how many options win.
    """

    name: str
    options: tuple[str, ...]
    scores: jax.Array
    num_selected: int


class CellNode(NamedTuple):
    """A node of a cell's graph.

    Attributes:
      text: what is written in its box.
      role: an input or the output of the cell, or a node between them.
      choice: the name of the `Choice` that decided it, if one did.
      used: whether it is on a path from input to output.
    """

    text: str
    role: Literal["input", "node", "output"] = "node"
    choice: str | None = None
    used: bool = True


class CellEdge(NamedTuple):
    """An edge of a cell's graph, from node to node by index.

    Attributes:
      source: the node read.
      target: the node that reads it, which comes later.
      op: the operation on the edge, if there is one.
      choice: the name of the `Choice` that decided it, if one did.
      role: `op` of the architecture, `output` where nodes are merely joined to the output, or
        `unused` where nothing is computed.
    """

    source: int
    target: int
    op: str = ""
    choice: str | None = None
    role: Literal["op", "output", "unused"] = "op"


class CellGraph(NamedTuple):
    """A cell as a graph, for drawings; the last node is its output."""

    title: str
    nodes: tuple[CellNode, ...]
    edges: tuple[CellEdge, ...]


class Sizes(NamedTuple):
    """Sizes of the networks of a family.

    Attributes:
      init_channels: channels of the first cells, as its benchmark or paper trained it.
      num_cells: cells, likewise; in the NAS-Bench spaces, cells in each stage.
      least_cells: how few there can be.
      fixed: whether networks of other sizes are not defined.
    """

    init_channels: int
    num_cells: int
    least_cells: int = 1
    fixed: bool = False


class Genotype(Protocol):
    """A discrete architecture: a frozen, hashable dataclass of what is written as JSON.

    Attributes:
      family: the name of its kind, the `format` of its JSON form.
      prefix: how its text form begins.
      text_form: its text form in words, for messages.
      sizes: of its networks.
      options: what its networks can have besides: `stem` (its first layers) and `auxiliary` (a
        second head) are arguments of `network`, with `drop_path` they are called with one.
    """

    family: ClassVar[str]
    prefix: ClassVar[str]
    text_form: ClassVar[str]
    sizes: ClassVar[Sizes]
    options: ClassVar[tuple[str, ...]]

    def __hash__(self) -> int:
        """Equal for equal architectures."""
        ...

    def to_text(self) -> str:
        """The field's text form, which `nasi_jax.cells.parse_genotype` reads back."""
        ...

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Reads the text form.

        Raises:
          ValueError: if the text has another form.
        """
        ...

    def evaluated(self) -> Self:
        """The architecture as its benchmark writes and trains it: itself, or pruned.

        Raises:
          ValueError: if there is no such architecture.
        """
        ...

    def canonical(self) -> Self:
        """The one representative of all that compute the same function.

        Two do if renaming nodes and parameters makes them equal functions. What lies on no path
        from input to output is not in it. It is its own canonical form, and may be no architecture
        of the search space that this one is from.

        Raises:
          ValueError: if there is none.
        """
        ...

    def isomorphism_key(self) -> str:
        """A text that is equal for isomorphic architectures, as tables are looked up by.

        Raises:
          ValueError: if there is none.
        """
        ...

    def record(self) -> dict[str, Any]:
        """What a result has of it, as JSON, besides its text form and its JSON form."""
        ...

    def graphs(self) -> tuple[CellGraph, ...]:
        """Its cells, for drawings."""
        ...

    def network(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        init_channels: int,
        num_cells: int,
    ) -> nn.Module:
        """The network that is trained: `inputs -> logits [B, num_classes]`.

        `nasi_jax.cells.evaluation_network` checks the sizes, and passes its options on.
        """
        ...


class ProxyFn(Protocol):
    """A score of a network at initialization: a scalar, higher is better.

    Differentiable once in whatever `apply_fn` closes over.
    """

    def __call__(
        self, key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
    ) -> jax.Array:
        """The score of `apply_fn` at `params` on `batch`."""
        ...


@runtime_checkable
class SearchSpace(Protocol):
    """A set of architectures as one supernet, and as single networks.

    Implementations are frozen, hashable dataclasses with the fields `ops`, `init_channels` and
    `num_cells`, all of which have defaults.
    """

    @property
    def genotype(self) -> type[Genotype]:
        """The class of its genotypes."""
        ...

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """For each variant of a search, its settings where they differ from the general ones.

        The first one is the variant of a search that names none.
        """
        ...

    @property
    def name(self) -> str:
        """The registered name."""
        ...

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations on offer, in the order of alpha's columns."""
        ...

    def init_alpha(self) -> Alpha:
        """Zeros: alpha_0 of Algorithm 1."""
        ...

    def num_selected(self) -> dict[str, int]:
        """For each entry of alpha, how many options of a row win."""
        ...

    def labels(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each entry of alpha, the names of its rows and of its columns."""
        ...

    def choices(self, alpha: Alpha) -> tuple[Choice, ...]:
        """Every decision that `discretize` takes, with its scores at `alpha`."""
        ...

    def supernet(
        self,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`.

        With `one_hot` it is for the weights of single architectures (those of the method of that
        name): it computes the operations that they choose, and no others. The derivative in
        the weights of all others is then 0.
        """
        ...

    def network(
        self,
        genotype: Any,
        num_classes: int,
        spec: NetworkSpec = NetworkSpec(),
        *,
        form: Literal["search", "evaluation"] = "evaluation",
    ) -> nn.Module:
        """One architecture: `inputs -> logits [B, num_classes]`."""
        ...

    def inherit(self, variables: Any) -> Any:
        """The supernet's variables under the names of the `search` form of a network."""
        ...

    def discretize(self, alpha: Alpha) -> Any:
        """The architecture that is most probable under `alpha`."""
        ...

    def one_hot(self, genotype: Any) -> Alpha:
        """Weights with which the supernet is that network; `discretize(one_hot(g)) == g`."""
        ...

    def sample(self, key: jax.Array) -> Any:
        """An architecture drawn uniformly over the independent choices."""
        ...
