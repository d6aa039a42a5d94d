"""What a selection has looked at, and what it looks at next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from nasi_jax.search.aggregate import log_rank
from nasi_jax.search.evolution import Propose, random_search
from nasi_jax.types import SearchSpace

_PROPOSALS_PER_NETWORK = 50
_PROPOSALS_IN_VAIN = 20
"""In a row, after which a random one is looked at: all mutations of a parent may be known."""


def fitness_of(scores: ArrayLike) -> np.ndarray:
    """The sum over seeds of the `log_rank` of architectures among one another.

    Args:
      scores: `[S, K, N]`, of each of S seeds K scores of N architectures, higher is better.

    Returns:
      `[N]`, higher is better.
    """
    return np.sum([log_rank(of_seed) for of_seed in np.asarray(scores)], axis=0)


class History:
    """Architectures looked at, and proposals of those to come, which depend on nothing else.

    No two of them compute the same function.

    Attributes:
      genotypes: the architectures, in the order in which they were looked at.
      scores: theirs, `[S, K, N]` as in `fitness_of`.
      fitness: `[N]`, among all of them.
    """

    def __init__(
        self,
        key: jax.Array,
        space: SearchSpace,
        propose: Propose,
        *,
        budget: int,
        is_within: Callable[[Any], bool] = lambda genotype: True,
    ) -> None:
        """Begins with none.

        Args:
          key: random key, consumed.
          space: the search space.
          propose: `random_search`, `regularized_evolution` or another rule.
          budget: how many there are to be in all.
          is_within: whether to look at an architecture.
        """
        self._key, self._space, self._propose, self._budget = key, space, propose, budget
        self._random, self._is_within = random_search(space), is_within
        self._attempts, self._seen = 0, set[Any]()
        self.genotypes: list[Any] = []
        self.scores: np.ndarray | None = None
        self.fitness = np.zeros(0)

    def proposed(self, count: int) -> list[Any]:
        """The next architectures, up to `count` of them; none when there are `budget`.

        Raises:
          ValueError: if so many different ones do not come up.
        """
        count = min(count, self._budget - len(self.genotypes))
        chosen: list[Any] = []
        in_vain = 0
        while len(chosen) < count:
            if self._attempts == _PROPOSALS_PER_NETWORK * self._budget:
                raise ValueError(
                    f"budget must be within what there is to find, got {self._budget}, and only "
                    f"{len(self._seen)} different networks came up"
                )
            key = jax.random.fold_in(self._key, self._attempts)
            self._attempts += 1
            propose = self._propose if in_vain < _PROPOSALS_IN_VAIN else self._random
            genotype = propose(key, self.genotypes, self.fitness)
            form = genotype.canonical()
            in_vain += 1
            if form in self._seen:
                continue
            scored = in_space(self._space, form, genotype)
            if self._is_within(scored):
                in_vain = 0
                self._seen.add(form)
                chosen.append(scored)
        return chosen

    def add(self, genotypes: Sequence[Any], scores: ArrayLike) -> None:
        """Adds architectures with their scores `[S, K, n]`."""
        self.genotypes += genotypes
        found = np.asarray(scores, float)
        known = () if self.scores is None else (self.scores,)
        self.scores = np.concatenate([*known, found], axis=2)
        self.fitness = fitness_of(self.scores)


def in_space(space: SearchSpace, form: Any, genotype: Any) -> Any:
    """The canonical form of an architecture if the space has it, or else the architecture."""
    try:
        space.one_hot(form)
    except ValueError:
        return genotype
    return form
