"""The next architecture to look at, from the scores of those before: random search, evolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import SearchSpace

_ATTEMPTS = 100

Propose = Callable[[jax.Array, Sequence[Any], np.ndarray], Any]
"""Maps a random key, all architectures so far and the fitness of each to the next architecture."""


def random_search(space: SearchSpace) -> Propose:
    """Proposes architectures drawn uniformly, whatever those before them scored.

    Args:
      space: the search space.

    Returns:
      The rule that proposes the next architecture.
    """

    def propose(key: jax.Array, genotypes: Sequence[Any], fitness: np.ndarray) -> Any:
        return space.sample(key)

    return propose


def regularized_evolution(
    space: SearchSpace, *, population: int = 64, tournament: int = 16
) -> Propose:
    """Proposes mutations of the fittest of some of the youngest architectures.

    The population are the last `population` architectures: with each new one the oldest dies,
    however fit it is (Real et al., AAAI 2019, arXiv:1802.01548). Of it `tournament` are drawn, and
    the fittest of these is `mutated`. Until there is a population, architectures are random.

    Args:
      space: the search space.
      population: how many architectures are alive.
      tournament: how many of them compete to be the parent.

    Returns:
      The rule that proposes the next architecture.
    """

    def propose(key: jax.Array, genotypes: Sequence[Any], fitness: np.ndarray) -> Any:
        if len(genotypes) < population:
            return space.sample(key)
        key_of_tournament, key_of_child = jax.random.split(key)
        order = jax.random.permutation(key_of_tournament, population)[:tournament]
        drawn = len(genotypes) - population + np.asarray(order)
        parent = drawn[np.argmax(fitness[drawn])]
        return mutated(key_of_child, space, genotypes[parent])

    return propose


def mutated(key: jax.Array, space: SearchSpace, genotype: Any) -> Any:
    """Another architecture, with one choice of a row of alpha drawn anew.

    Args:
      key: random key, consumed.
      space: the search space.
      genotype: an architecture of the space.

    Returns:
      The other architecture.

    Raises:
      ValueError: if the space has no other architecture.
    """
    own = space.one_hot(genotype)
    weights = {name: np.asarray(each) for name, each in own.items()}
    rows = [(name, row) for name, each in weights.items() for row in range(len(each))]
    # A proposal draws many small numbers, of which JAX takes a millisecond each.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for _ in range(_ATTEMPTS):
        name, row = rows[rng.integers(len(rows))]
        # Beside the 0 and less than 1 of the others, so that in DARTS another edge can win, and
        # either of the two that a node has can lose.
        drawn = weights[name] * rng.uniform(0.5, 1.0, (len(weights[name]), 1))
        drawn[row] = rng.uniform(0.0, 2.0, weights[name].shape[1])
        child = space.discretize({**own, name: jnp.asarray(drawn, jnp.float32)})
        if child != genotype:
            return child
    raise ValueError(f"there is no other architecture in {space.name} to mutate {genotype} to")
