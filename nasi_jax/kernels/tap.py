"""Measurements inside of a network that add up in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from nasi_jax.kernels.interpreter import UnreadableProgram


def tapped(
    measure: Callable[[jax.Array, jax.Array], Any], zero: Any, array: jax.Array
) -> jax.Array:
    """The array itself, such that `zero` has the cotangent `measure(array, cotangent)`.

    Cotangents of one `zero` add up over all of its uses, the iterations of scans among them. So
    the gradient in `zero` is the sum of the measurements, with nothing else kept.

    Args:
      measure: maps an array and its cotangent to a pytree of the shapes and dtypes of `zero`.
      zero: a pytree of zeros.
      array: an intermediate result.

    Raises:
      UnreadableProgram: under the flag jax_custom_vjp3 of jax 0.10, which there loses an operand of
        such rules in some programs (a DARTS supernet's), and fails deep inside.
    """
    if getattr(jax.config, "jax_custom_vjp3", False) and jax.__version_info__ < (0, 11):
        raise UnreadableProgram("derivative rules under jax_custom_vjp3")

    @jax.custom_vjp
    def identity(zero: Any, array: jax.Array) -> jax.Array:
        return array

    def forward(zero: Any, array: jax.Array) -> tuple[jax.Array, jax.Array]:
        return array, array

    def backward(array: jax.Array, cotangent: jax.Array) -> tuple[Any, jax.Array]:
        return measure(array, cotangent), cotangent

    identity.defvjp(forward, backward)
    return identity(zero, array)
