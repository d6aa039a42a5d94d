"""How sure a search is of each choice that it made."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import Alpha, SearchSpace


class Margin(NamedTuple):
    """The gap between the last option that won and the first that lost.

    Attributes:
      name: the choice.
      winner: the option that only just won.
      runner_up: the option that only just lost.
      margin: the difference of their scores.
      standard_error: of that difference; NaN after a single step.
    """

    name: str
    winner: str
    runner_up: str
    margin: float
    standard_error: float

    @property
    def ratio(self) -> float:
        """The margin in standard errors: below about 2 the choice is noise."""
        if self.margin == 0:
            return 0.0
        with np.errstate(divide="ignore"):
            return float(np.divide(self.margin, self.standard_error))


def margins(space: SearchSpace, alpha: Alpha, updates: Alpha) -> list[Margin]:
    """The margin of every choice with its standard error over the steps.

    alpha is the sum of T updates from independent samples, so a score s(alpha) has the standard
    error sqrt(T Var_t[<grad s(alpha), u_t>]) to first order (delta method). For updates that
    depend on each other, as those of an optimizer with momentum, it is too small.

    Args:
      space: the search space.
      alpha: logits at the end.
      updates: what each step added to alpha, `[T, rows, options]` each.

    Returns:
      A margin a choice, in the order of `space.choices`. A choice of all its options has none.
    """
    choices = space.choices(alpha)
    ranked = [np.argsort(-np.asarray(choice.scores), kind="stable") for choice in choices]
    gaps = {
        index: (int(order[choice.num_selected - 1]), int(order[choice.num_selected]))
        for index, (choice, order) in enumerate(zip(choices, ranked, strict=True))
        if choice.num_selected < len(choice.options)
    }
    if not gaps:
        return []

    def gaps_of(alpha: Alpha) -> jax.Array:
        scores = [choice.scores for choice in space.choices(alpha)]
        return jnp.stack(
            [scores[index][win] - scores[index][lose] for index, (win, lose) in gaps.items()]
        )

    @jax.jit
    def gaps_with_errors(alpha: Alpha, updates: Alpha) -> tuple[jax.Array, jax.Array]:
        slopes = jax.jacrev(gaps_of)(alpha)
        terms = [jnp.einsum("cro,tro->tc", slopes[name], updates[name]) for name in alpha]
        samples = functools.reduce(jnp.add, terms)
        variance = len(samples) * jnp.var(samples, axis=0, ddof=1)
        return gaps_of(alpha), jnp.sqrt(variance)

    values, errors = gaps_with_errors(alpha, updates)
    return [
        Margin(
            choices[index].name,
            choices[index].options[win],
            choices[index].options[lose],
            float(value),
            float(error),
        )
        for (index, (win, lose)), value, error in zip(gaps.items(), values, errors, strict=True)
    ]
