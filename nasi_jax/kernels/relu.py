"""The ReLUs of any function: measured one by one, or read as the binary codes of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.intercept import Operation, intercept
from nasi_jax.kernels.tap import tapped
from nasi_jax.types import ApplyFn, Params


def tap_relus(
    measure: Callable[[jax.Array, jax.Array], Any],
    zero: Any,
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
) -> jax.Array:
    """`apply_fn(params, inputs)` with the outputs of all its ReLUs `tapped`.

    A ReLU is `jax.nn.relu`, or a maximum with the number 0. Those inside of a scan, `jit` or
    `checkpoint` are found; those inside of a branch, a while loop or a function with a derivative
    rule of its own are not.

    Args:
      measure: see `tapped`; its array is the `[B, ..., C]` that a ReLU returns.
      zero: see `tapped`.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.

    Returns:
      The outputs.

    Raises:
      ValueError: if there is no ReLU, or one whose first axis is not the batch.
    """
    shapes = []

    def rule(operation: Operation) -> Any:
        if not _is_relu(operation):
            return None
        (outputs,) = operation.apply(*operation.inputs)
        shapes.append(outputs.shape)
        if outputs.ndim < 2 or outputs.shape[0] != inputs.shape[0]:
            raise ValueError(
                f"a ReLU must be of shape [B, ..., C] with B = {inputs.shape[0]}, got one of shape "
                f"{outputs.shape}"
            )
        return [tapped(measure, zero, outputs)], None

    outputs: jax.Array = intercept(apply_fn, rule, params, inputs)
    if not shapes:
        raise ValueError("apply_fn must have a ReLU: jax.nn.relu or a maximum with 0; got none")
    return outputs


def code_differences(
    key: jax.Array, apply_fn: ApplyFn, params: Params, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """In how many ReLUs each two examples differ: one is active there, the other not.

    Only ReLUs that the outputs depend on count; see `random_gradient`.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.

    Returns:
      The differences `[B, B]`, and the number of ReLUs of one example. Exact up to 2^24.

    Raises:
      ValueError: see `tap_relus`.
    """
    dtype = np.promote_types(inputs.dtype, jnp.float32)
    batch_size = inputs.shape[0]

    def measure(active: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        signs = jnp.where(active > 0, 1, -1).astype(dtype).reshape(batch_size, -1)
        units = signs.shape[1]
        counts = jnp.any(cotangent != 0).astype(dtype)
        return counts * (units - signs @ signs.T) / 2, counts * units

    def outputs_of(zero: tuple[jax.Array, jax.Array]) -> jax.Array:
        return tap_relus(measure, zero, apply_fn, params, inputs)

    zero = jnp.zeros((batch_size, batch_size), dtype), jnp.zeros((), dtype)
    return random_gradient(key, outputs_of, zero)


def _is_relu(operation: Operation) -> bool:
    if operation.name == "max":
        return any(map(_is_zero, operation.inputs))
    return operation.name == "custom_jvp_call" and _is_maximum_with_zero(
        operation.params["call_jaxpr"].jaxpr
    )


def _is_maximum_with_zero(jaxpr: Jaxpr) -> bool:
    if len(jaxpr.eqns) != 1:
        return False
    (eqn,) = jaxpr.eqns
    if eqn.primitive.name in ("jit", "pjit"):
        return _is_maximum_with_zero(eqn.params["jaxpr"].jaxpr)
    numbers = [atom.val for atom in eqn.invars if isinstance(atom, Literal)]
    return eqn.primitive.name == "max" and any(map(_is_zero, numbers))


def _is_zero(value: Any) -> bool:
    """Whether a value is the number 0 itself, as it stands in the program."""
    return not isinstance(value, jax.Array) and np.ndim(value) == 0 and bool(value == 0)
