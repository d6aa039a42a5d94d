"""How sure a search is of each choice that it made: after T steps, and whenever one looks."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import Alpha, SearchSpace

ERROR = 0.05
"""The probability, at most, that `Evidence` calls any choice sure where no option is better."""

_PRECISION = 0.1
"""rho^2 of the mixture, the variance of its rate: bounds are narrowest after some hundred steps."""
_MOST_STEPS = 10**9
"""More than that are as good as never."""


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
    ranked = [_ranked(np.asarray(choice.scores)) for choice in choices]
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


class Verdict(NamedTuple):
    """Whether a choice is beyond noise, by `Evidence`.

    Attributes:
      name: the choice.
      sure: whether each option that wins is known to be better than each that loses.
      steps_to_sure: about how many more steps that would take if the differences stay what they
        are on average so far; 0 for a choice that is sure, None if they point the other way or it
        would take more than 10^9.
    """

    name: str
    sure: bool
    steps_to_sure: int | None


class Evidence:
    """A confidence sequence for every choice of a search: valid at any time that one stops.

    A step adds to the difference of two options' scores d_t = <grad (s_a - s_b)(alpha_{t-1}), u_t>.
    For the sum S of d_t / c_t and V of their squares, with a scale c_t of what came before t, the
    mixture over rates l ~ N(0, rho^2) of exp(l S - l^2 V / 2),

        E = (1 + rho^2 V)^(-1/2) exp(rho^2 S^2 / (2 (1 + rho^2 V))),

    is a nonnegative supermartingale that starts at 1 wherever d_t is symmetric about 0 given the
    past, however heavy its tails (de la Pena, 1999; Howard, Ramdas, McAuliffe and Sekhon, 2021),
    as it is where the two options can be exchanged. So E reaches P / `ERROR` at some time with a
    probability of at most `ERROR` / P, for one of P pairs of options (Ville), and an option is
    called better from then on. That is corrected for all pairs of all choices, and for looking
    after every step. Where the options differ in spread but not in the mean, d_t may be skewed,
    and the bound holds only approximately.

    With one theta_0 all of this is said of that theta_0; where every step draws one, of their mean.

    Attributes:
      num_steps: how many steps have been added.
    """

    def __init__(self, space: SearchSpace) -> None:
        """Starts before the first step, at alpha_0."""
        self.num_steps = 0
        self._space = space
        self._alpha = space.init_alpha()
        self._choices = choices = space.choices(self._alpha)
        self._scores = np.concatenate([np.asarray(choice.scores) for choice in choices])
        sizes = [len(choice.options) for choice in choices]
        self._starts = np.cumsum([0, *sizes])
        of_choice = np.repeat(np.arange(len(choices)), sizes)
        left, right = np.triu_indices(len(of_choice), 1)
        # Where all options win there is nothing to know.
        decides = np.array([each.num_selected < len(each.options) for each in choices])
        kept = (of_choice[left] == of_choice[right]) & decides[of_choice[left]]
        self._left, self._right, self._choice = left[kept], right[kept], of_choice[left[kept]]
        pairs = len(self._left)
        self._threshold = np.log(max(pairs, 1) / ERROR)
        self._squares = np.zeros(len(choices))
        self._sum, self._variance = np.zeros(pairs), np.zeros(pairs)
        self._better = np.zeros(pairs, int)

    def add(self, update: Alpha) -> None:
        """Takes what one step added to alpha, the next one in their order."""
        self._alpha, scores, change = _change(self._space, self._alpha, update)
        self._scores = np.asarray(scores)
        changes = np.asarray(change, float)
        differences = changes[self._left] - changes[self._right]
        scales = np.sqrt(self._squares / max(self.num_steps, 1))[self._choice]
        # From the second step on: of what came before the first nothing is known.
        terms = np.divide(differences, scales, out=np.zeros_like(differences), where=scales > 0)
        self._sum += terms
        self._variance += np.square(terms)
        reached = _log_mixture(self._sum, self._variance) >= self._threshold
        self._better = np.where(
            reached & (self._better == 0), np.sign(self._sum), self._better
        ).astype(int)
        squares = np.bincount(self._choice, np.square(differences), len(self._squares))
        self._squares += squares / np.maximum(np.bincount(self._choice, None, len(squares)), 1)
        self.num_steps += 1

    @property
    def all_sure(self) -> bool:
        """Whether every choice is."""
        return all(len(unsure) == 0 for _, unsure, _ in self._unsure_pairs())

    def verdicts(self) -> list[Verdict]:
        """A verdict for each choice of fewer than all of its options, in their order."""
        found = []
        for name, unsure, sign in self._unsure_pairs():
            totals = sign * self._sum[unsure]
            more = [*map(self._more_steps, totals, self._variance[unsure])]
            known = [each for each in more if each is not None]
            needed = max(known, default=0) if len(known) == len(more) else None
            found.append(Verdict(name, not more, needed))
        return found

    def _unsure_pairs(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Of each choice the pairs whose winner is not known to be better, 1 where it is left."""
        for index, choice in enumerate(self._choices):
            if choice.num_selected == len(choice.options):
                continue
            first, end = self._starts[index : index + 2]
            won = np.zeros(len(self._scores), bool)
            won[first + _ranked(self._scores[first:end])[: choice.num_selected]] = True
            decisive = (self._choice == index) & (won[self._left] != won[self._right])
            sign = np.where(won[self._left], 1, -1)
            unsure = np.flatnonzero(decisive & (self._better != sign))
            yield choice.name, unsure, sign[unsure]

    def _more_steps(self, total: float, variance: float) -> int | None:
        """How many more steps until a pair reaches the threshold, at its average so far."""

        def reaches(num_steps: int) -> bool:
            share = np.array(num_steps / self.num_steps)
            return bool(_log_mixture(share * total, share * variance) >= self._threshold)

        if total <= 0 or not reaches(_MOST_STEPS):
            return None
        steps = range(self.num_steps + 1, _MOST_STEPS)
        return bisect.bisect_left(steps, True, key=reaches) + 1


def _ranked(scores: np.ndarray) -> np.ndarray:
    """The options from the best on; among equal scores the first is better."""
    return np.argsort(-scores, kind="stable")


@functools.partial(jax.jit, static_argnums=0)
def _change(space: SearchSpace, alpha: Alpha, update: Alpha) -> tuple[Alpha, jax.Array, jax.Array]:
    """alpha after an update, its scores of all options, and how much the update changes them."""

    def scores(alpha: Alpha) -> jax.Array:
        return jnp.concatenate([choice.scores for choice in space.choices(alpha)])

    _, change = jax.jvp(scores, (alpha,), (update,))
    after = jax.tree.map(jnp.add, alpha, update)
    return after, scores(after), change


def _log_mixture(total: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log E of `Evidence`."""
    spread = 1 + _PRECISION * variance
    mixture: np.ndarray = (_PRECISION * np.square(total) / spread - np.log(spread)) / 2
    return mixture
