"""The types that the rooms share: batches, alphas, choices, and the three protocols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Any
"""A pytree of arrays."""

Alpha = dict[str, jax.Array]
"""Architecture logits: one `[rows, options]` array for each kind of choice.

The options of a row compete in one softmax. The relaxed or one-hot `weights` that a supernet
takes have the same structure.
"""

ApplyFn = Callable[[Params, jax.Array], jax.Array]
"""Maps `(params, inputs[B, ...])` to outputs `[B, K]`."""

NormMode = Literal["batch", "frozen", "none", "running"]
"""Where a normalisation layer takes its mean and variance from.

`batch`: the batch at hand, differentiated through, so that examples are coupled.
`frozen`: a reference batch, as constants, so that examples are independent.
`none`: there is no normalisation; a layer's scale and shift, if it has them, stay.
`running`: the batch at hand, as in `batch`, while the collection `batch_stats` is mutable, as in
training; else that collection, of which the training keeps a running mean.
"""
NORM_MODES: tuple[str, ...] = ("batch", "frozen", "none")
"""Those of a network at initialization."""

Stem = Literal["cifar", "imagenet"]
"""The first layers of a DARTS network: of stride 1, or of stride 8 in three convolutions."""
STEMS: tuple[str, ...] = get_args(Stem)

Initializer = Literal["he_normal", "he_uniform", "xavier_normal", "lecun_normal", "pytorch"]
"""Distribution of the initial kernels; see `nasi_jax.cells.ops.kernel_init`."""
INITIALIZERS: tuple[str, ...] = get_args(Initializer)

Loss = Literal["cross_entropy", "mse"]
"""Mean over the batch of the softmax cross-entropy, or of `||one_hot(label) - output||^2`."""
LOSSES: tuple[str, ...] = get_args(Loss)

Derivative = Literal["forward", "reverse"]
"""How to differentiate a squared gradient norm: in either mode over the reverse mode."""
DERIVATIVES: tuple[str, ...] = get_args(Derivative)


Precision = Literal["float32", "bfloat16"]
"""What activations are computed in.

Parameters, statistics, sums over edges and operations, the logits, and gradients of parameters
are float32 in either.
"""
PRECISIONS: tuple[str, ...] = get_args(Precision)

Depthwise = Literal["auto", "shift", "lax"]
"""How depthwise convolutions are computed: as sums of shifted multiples, or by `jax.lax`.

`auto` is `shift` on CPU, where it was measured to be 60 times faster. Elsewhere it is `lax`, which
has a kernel of its own there, where XLA would make a pass over memory of each shift that it does
not fuse: reasoned, not measured.
"""
DEPTHWISE: tuple[str, ...] = get_args(Depthwise)


class Batch(NamedTuple):
    """A mini-batch: inputs `[B, H, W, C]` and integer labels `[B]`."""

    inputs: jax.Array
    labels: jax.Array


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


class Genotype(Protocol):
    """A discrete architecture: frozen, hashable, and with an exact text form."""

    def to_text(self) -> str:
        """The field's text form, which `nasi_jax.cells.parse_genotype` reads back."""
        ...


class ProxyFn(Protocol):
    """A score of a network at initialisation: a scalar, higher is better.

    Differentiable once in whatever `apply_fn` closes over.
    """

    def __call__(
        self, key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch
    ) -> jax.Array:
        """The score of `apply_fn` at `params` on `batch`."""
        ...


class SearchSpace(Protocol):
    """A set of architectures as one supernet, and as single networks.

    Implementations are frozen, hashable dataclasses.
    """

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
        *,
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
        one_hot: bool = False,
    ) -> nn.Module:
        """The one-shot network: `(inputs, weights) -> logits [B, num_classes]`.

        With `one_hot` it is for the weights of single architectures (those of the method of that
        name): it computes the operations that they choose, and no others. The derivative in
        the weights is then 0.
        """
        ...

    def network(
        self,
        genotype: Any,
        num_classes: int,
        *,
        form: Literal["search", "evaluation"] = "evaluation",
        norm: NormMode = "batch",
        init: Initializer = "he_normal",
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        depthwise: Depthwise = "auto",
        norm_group: int | None = None,
        remat: bool = False,
    ) -> nn.Module:
        """One architecture: `inputs -> logits [B, num_classes]`.

        `norm_group` is the number of examples that share the statistics of a batch; with `remat`
        only what passes between cells is kept for the derivatives.
        """
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
