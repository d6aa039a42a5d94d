"""Many architectures through one compiled supernet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from nasi_jax.search.relaxation import close_over
from nasi_jax.types import Alpha, Batch, NormMode, Params, ProxyFn, SearchSpace


def score_fn(
    space: SearchSpace, supernet: nn.Module, *, proxy: ProxyFn, norm: NormMode = "batch"
) -> Callable[[jax.Array, Params, Any, Batch], jax.Array]:
    """A function that scores single architectures, as one-hot weights of one supernet.

    An architecture is data to the supernet, so the function compiles once for all of them, and
    for all parameters and batches of one shape.

    Args:
      space: the search space of the architectures.
      supernet: `space.supernet(..., one_hot=True)`, or one that computes all operations.
      proxy: the score.
      norm: the supernet's norm mode.

    Returns:
      `(key, params, genotype, batch) -> score`: `params` are the supernet's, `batch` is what the
      proxy sees, and in norm mode `frozen` the reference batch as well.
    """

    @jax.jit
    def score_weights(key: jax.Array, params: Params, weights: Alpha, batch: Batch) -> jax.Array:
        apply_fn = close_over(supernet, params, weights, norm=norm, reference=batch.inputs)
        return proxy(key, apply_fn, params, batch)

    def score(key: jax.Array, params: Params, genotype: Any, batch: Batch) -> jax.Array:
        return score_weights(key, params, space.one_hot(genotype), batch)

    return score
