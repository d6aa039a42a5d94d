"""HNAS: trainability and generalization from the kernel of the labels' outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasi_jax.kernels.ntk import ntk
from nasi_jax.kernels.spectrum import spectrum
from nasi_jax.types import ApplyFn, Batch, Params


def hnas(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    mu: float = 1.0,
    nu: float = 0.0,
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """-(mu |M^2 - nu^2| + kappa / M), with M = sqrt(trace / B); more is better.

    Trace and condition number kappa are those of the kernel `[B, B]` of the outputs of the
    labels. From Shu et al., "Unifying and Boosting Gradient-Based Training-Free NAS" (HNAS,
    NeurIPS 2022, arXiv:2201.09785), who minimize what stands in brackets with batch statistics
    and B = 64, and choose nu and mu by Bayesian optimization on the accuracy of trained networks:
    the defaults here are none of theirs.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the kernel is taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      mu: weight of the distance of the mean trace to nu^2.
      nu: the square root of the mean trace that is aimed at.
      coupled: see `ntk`.
      chunk_size: see `ntk`.

    Returns:
      A scalar; -inf where the kernel is singular.

    Raises:
      ValueError: if the examples are coupled and `coupled` is not given.
    """
    del key
    kernel = ntk(
        apply_fn,
        params,
        batch.inputs,
        contraction="label",
        labels=batch.labels,
        coupled=coupled,
        chunk_size=chunk_size,
    )
    found = spectrum(kernel)
    mean = found.trace / batch.inputs.shape[0]
    return -(mu * jnp.abs(mean - nu**2) + found.condition_number * jax.lax.rsqrt(mean))
