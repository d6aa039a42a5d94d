"""All architectures of a space, one after another from the most probable one on."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import Alpha, SearchSpace

_Options = frozenset[tuple[str, int, int]]
"""What an architecture is made of: entries of alpha by name, row and column."""


def by_probability(space: SearchSpace, alpha: Alpha) -> Iterator[Any]:
    """Yields architectures in the order of their probability under alpha, the highest first.

    With one-hot weights w of an architecture its logarithm is `sum w log_softmax(alpha)`, up to a
    constant, and `discretize(alpha)` is where it is highest. The options of architectures are the
    bases of a matroid (so many of a row; in DARTS one of each of two rows of a node), of which
    every base but the best has one option exchanged against a better base: so that the next one is
    always among the exchanges of those before it.

    Args:
      space: the search space.
      alpha: logits.

    Yields:
      Each architecture once.
    """
    logs = {name: np.asarray(jax.nn.log_softmax(each)) for name, each in alpha.items()}
    entries = [(name, *index) for name, each in logs.items() for index in np.ndindex(each.shape)]
    impossible = set[tuple[tuple[str, int], tuple[str, int, int]]]()
    best = space.discretize(alpha)
    seen, order = {_options_of(space, best)}, itertools.count()
    # Of exchanges that are not looked at yet; which of them are architectures is not known.
    heap: list[tuple[float, int, _Options, Any]] = []

    def push_exchanges(options: _Options) -> None:
        taken = {(name, row) for name, row, _ in options}
        total = sum(logs[name][row, column] for name, row, column in options)
        for old, new in itertools.product(options, entries):
            is_of_row = old[:2] == new[:2]
            if old[0] != new[0] or new in options or (new[:2] in taken and not is_of_row):
                continue
            if (old[:2], new) not in impossible:
                value = total - logs[old[0]][old[1:]] + logs[new[0]][new[1:]]
                heapq.heappush(heap, (-value, next(order), options - {old} | {new}, (old, new)))

    yield best
    push_exchanges(_options_of(space, best))
    while heap:
        _, _, options, (old, new) = heapq.heappop(heap)
        if options in seen or (old[:2], new) in impossible:
            continue
        seen.add(options)
        genotype = space.discretize(_weights(logs, options))
        if _options_of(space, genotype) == options:
            yield genotype
            push_exchanges(options)
        else:
            impossible.add((old[:2], new))


def _options_of(space: SearchSpace, genotype: Any) -> _Options:
    weights = {name: np.asarray(each) for name, each in space.one_hot(genotype).items()}
    return frozenset(
        (name, int(row), int(column))
        for name, each in weights.items()
        for row, column in np.argwhere(each)
    )


def _weights(logs: dict[str, np.ndarray], options: _Options) -> Alpha:
    weights = {name: np.zeros(each.shape, np.float32) for name, each in logs.items()}
    for name, row, column in options:
        weights[name][row, column] = 1
    return {name: jnp.asarray(each) for name, each in weights.items()}
