"""Discretization of alpha, as all search spaces share it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.types import Alpha, Choice


def selected(choice: Choice) -> tuple[int, ...]:
    """The indices of the winning options, ascending; among equal scores the first wins."""
    order = np.argsort(-np.asarray(choice.scores), kind="stable")
    return tuple(sorted(int(index) for index in order[: choice.num_selected]))


def random_alpha(key: jax.Array, alpha: Alpha) -> Alpha:
    """Standard normal logits of the structure of `alpha`: all rankings equally likely."""
    keys = jax.random.split(key, len(alpha))
    return {
        name: jax.random.normal(subkey, alpha[name].shape)
        for name, subkey in zip(sorted(alpha), keys, strict=True)
    }


def indicator(shape: tuple[int, int], positions: list[tuple[int, int]]) -> jax.Array:
    """A zero matrix with ones at the given positions."""
    weights = np.zeros(shape, np.float32)
    for row, column in positions:
        weights[row, column] = 1
    return jnp.asarray(weights)
