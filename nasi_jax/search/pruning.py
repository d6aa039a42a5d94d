"""Architectures out of a supernet, by what it scores without one of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import Alpha, SearchSpace

Masks = Mapping[str, np.ndarray]
"""For each entry of alpha `[rows, options]`, which options there are still."""

Fitness = Callable[[Sequence[Masks]], np.ndarray]
"""The fitness `[N]` of supernets with these options, among one another; more is better."""


class _Option(NamedTuple):
    name: str
    row: int
    column: int


def prune(space: SearchSpace, fitness: Fitness) -> Any:
    """Takes from every row the option without which the supernet is fittest, until all is chosen.

    In each round every option of every row that has too many is left out in turn, and from each
    such row the one is taken whose absence ranks highest among all of the round (Chen et al.,
    TE-NAS, ICLR 2021, arXiv:2102.11535).

    Args:
      space: a search space whose every choice is of a row of alpha, which DARTS' inputs are not.
      fitness: of supernets among one another.

    Returns:
      The architecture.

    Raises:
      ValueError: for another space.
    """
    masks = _all_options(space)
    while left := _open_options(space, masks, _rows(masks)):
        found = fitness([_without(masks, option) for option in left])
        best: dict[tuple[str, int], int] = {}
        for number, (name, row, _) in enumerate(left):
            if (name, row) not in best or found[number] > found[best[name, row]]:
                best[name, row] = number
        for number in best.values():
            masks = _without(masks, left[number])
    return space.discretize(_as_alpha(masks))


def perturb(key: jax.Array, space: SearchSpace, fitness: Fitness) -> Any:
    """Chooses row by row, in a random order, the option that the supernet misses most.

    An option's worth is what the fitness loses without it, while the rows before have their choice
    and those after it all options (Xiang et al., "Zero-Cost Operation Scoring in Differentiable
    Architecture Search", AAAI 2023, arXiv:2106.06799).

    Args:
      key: random key of the order, consumed.
      space: as in `prune`.
      fitness: of supernets among one another.

    Returns:
      The architecture.

    Raises:
      ValueError: as `prune` does.
    """
    masks = _all_options(space)
    rows = _rows(masks)
    for index in np.asarray(jax.random.permutation(key, len(rows))):
        name, row = rows[index]
        if left := _open_options(space, masks, [(name, row)]):
            found = fitness([_without(masks, option) for option in left])
            kept = np.argsort(found, kind="stable")[: space.num_selected()[name]]
            for option in (left[number] for number in set(range(len(left))) - {*kept.tolist()}):
                masks = _without(masks, option)
    return space.discretize(_as_alpha(masks))


def num_supernets(space: SearchSpace, method: str, walks: int) -> int:
    """How many supernets are scored by `prune`, or by so many walks of `perturb`; else 0."""
    counts = space.num_selected()
    alpha = space.init_alpha()
    sizes = [(each.shape[1], counts[name], len(each)) for name, each in alpha.items()]
    if method == "prune":
        return sum(rows * sum(range(least + 1, most + 1)) for most, least, rows in sizes)
    if method == "perturb":
        return walks * sum(rows * most for most, least, rows in sizes if most > least)
    return 0


def text_of(space: SearchSpace, masks: Masks) -> str:
    """The options that there are, row by row."""
    texts = []
    for name, (rows, columns) in space.labels().items():
        for row, each in zip(rows, masks[name], strict=True):
            options = "+".join(
                column for column, is_there in zip(columns, each, strict=True) if is_there
            )
            texts.append(f"{name} {row}: {options}")
    return "; ".join(texts)


def mixed_weights(space: SearchSpace, masks: Masks) -> Alpha:
    """Equal weights for the options that there are, whose sum in a row is the number selected."""
    weights = {}
    for name, each in masks.items():
        shares = each / np.sum(each, axis=1, keepdims=True)
        weights[name] = jnp.asarray(space.num_selected()[name] * shares, jnp.float32)
    return weights


def _all_options(space: SearchSpace) -> Masks:
    alpha = space.init_alpha()
    masks = {name: np.ones(each.shape, bool) for name, each in alpha.items()}
    if len(space.choices(alpha)) != len(_rows(masks)):
        raise ValueError(
            f"options are taken from a supernet whose choices are rows of alpha, those of "
            f"{space.name} are not: use another method"
        )
    return masks


def _rows(masks: Masks) -> list[tuple[str, int]]:
    return [(name, row) for name, each in masks.items() for row in range(len(each))]


def _open_options(
    space: SearchSpace, masks: Masks, rows: Sequence[tuple[str, int]]
) -> list[_Option]:
    """The options of those of the rows that have more than are selected."""
    counts = space.num_selected()
    return [
        _Option(name, row, int(column))
        for name, row in rows
        if masks[name][row].sum() > counts[name]
        for column in np.flatnonzero(masks[name][row])
    ]


def _without(masks: Masks, option: _Option) -> Masks:
    each = masks[option.name].copy()
    each[option.row, option.column] = False
    return {**masks, option.name: each}


def _as_alpha(masks: Masks) -> Alpha:
    return {name: jnp.asarray(each, jnp.float32) for name, each in masks.items()}
