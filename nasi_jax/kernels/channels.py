"""The spectrum of a feature map's channels, over examples and positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def covariance(features: jax.Array) -> jax.Array:
    """The covariance `[C, C]` of the channels of `[..., C]`, over all else."""
    rows = features.reshape(-1, features.shape[-1])
    rows -= jnp.mean(rows, axis=0, keepdims=True)
    return rows.T @ rows / rows.shape[0]


def eigenvalues(matrix: jax.Array) -> jax.Array:
    """The eigenvalues of a symmetric matrix without negative ones, from the largest on.

    As singular values, whose derivative is defined where some are equal.
    """
    return jnp.linalg.svd(matrix, compute_uv=False)


def entropy(values: jax.Array, shift: float = 0.0) -> jax.Array:
    """-sum p log(p + shift), p = values / sum of values; NaN where all are 0."""
    shares = values / jnp.sum(values)
    positive = shares + shift > 0
    return -jnp.sum(shares * jnp.log(jnp.where(positive, shares + shift, 1)))
