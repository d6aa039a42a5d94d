"""Many architectures through one compiled supernet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax

from nasi_jax.search.relaxation import close_over
from nasi_jax.types import Alpha, Batch, NormMode, Params, ProxyFn, SearchSpace


def score(
    key: jax.Array,
    space: SearchSpace,
    supernet: nn.Module,
    params: Params,
    genotypes: Iterable[Any],
    batch: Batch,
    *,
    proxy: ProxyFn,
    norm: NormMode = "batch",
) -> Iterator[float]:
    """Scores single architectures, as one-hot weights of a supernet that compiles once.

    Args:
      key: random key, the same for every architecture.
      space: the search space of the genotypes.
      supernet: `space.supernet(...)`.
      params: its parameters, which all architectures share.
      genotypes: the architectures.
      batch: the examples that the proxy sees; in norm mode `frozen` also the reference batch.
      proxy: the score.
      norm: the supernet's norm mode.

    Yields:
      The score of each architecture, in their order.
    """

    @jax.jit
    def score_of(weights: Alpha, params: Params, batch: Batch) -> jax.Array:
        apply_fn = close_over(supernet, params, weights, norm=norm, reference=batch.inputs)
        return proxy(key, apply_fn, params, batch)

    for genotype in genotypes:
        yield float(score_of(space.one_hot(genotype), params, batch))
