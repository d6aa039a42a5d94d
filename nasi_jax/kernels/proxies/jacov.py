"""Jacobian covariance: how differently a network responds to different examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.types import ApplyFn, Batch, Params


def jacov(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """-sum_i (log(v_i + k) + 1 / (v_i + k)), k = 1e-5; more is better, at most -B.

    The v_i are the eigenvalues of the correlation matrix `[B, B]` of the gradients of the summed
    outputs in each example's inputs. All of them are 1 at the best, where no two gradients are
    correlated. From the first version of Mellor et al., "Neural Architecture Search without
    Training" (arXiv:2006.04647), and as `jacob_cov` in Abdelfattah et al. (ICLR 2021,
    arXiv:2101.08134), both with batch statistics. As in theirs, the gradient is that of the sum
    over the whole batch, through the statistics.

    The v_i come from a singular value decomposition, because the smallest ones decide and in
    float32 those of the correlation matrix have errors of the size of k. An example whose
    gradient is constant has no correlations; it counts as a v_i of 0, where theirs returns NaN.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`; the labels are not read.

    Returns:
      A scalar.
    """
    del key
    gradients = jax.grad(lambda inputs: jnp.sum(apply_fn(params, inputs)))(batch.inputs)
    size = gradients.shape[0]
    rows = gradients.reshape(size, -1)
    rows /= _or_one(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    rows -= jnp.mean(rows, axis=1, keepdims=True)
    rows *= lax.rsqrt(_or_one(jnp.sum(jnp.square(rows), axis=1, keepdims=True)))
    # Columns of zeros, for the eigenvalues that are 0 because there are few inputs.
    missing = max(0, size - rows.shape[1])
    singular = jnp.linalg.svd(jnp.pad(rows, ((0, 0), (0, missing))), compute_uv=False)
    shifted = jnp.square(singular) + 1e-5
    return -jnp.sum(jnp.log(shifted) + 1 / shifted)


def _or_one(array: jax.Array) -> jax.Array:
    return jnp.where(array > 0, array, 1)
