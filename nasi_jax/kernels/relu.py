"""The ReLUs of any function: measured one by one, or read as the binary codes of examples."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from nasi_jax.kernels.gradient import random_gradient
from nasi_jax.kernels.interpreter import Operation, UnreadableProgram, intercept, is_relu
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
    `checkpoint` are found; those inside of a while loop or a function with a derivative rule of its
    own are not. Where JAX writes programs in a form that is not known here (see
    `interpreter.UnreadableProgram`), the ReLUs found are those that are called as `jax.nn.relu`,
    `flax.linen.relu` or `flax.nnx.relu` at that moment, which a warning says.

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

    def tap(outputs: jax.Array) -> jax.Array:
        shapes.append(outputs.shape)
        if outputs.ndim < 2 or outputs.shape[0] != inputs.shape[0]:
            raise ValueError(
                f"a ReLU must be of shape [B, ..., C] with B = {inputs.shape[0]}, got one of shape "
                f"{outputs.shape}"
            )
        return tapped(measure, zero, outputs)

    def rule(operation: Operation) -> Any:
        return ([tap(*operation.apply(*operation.inputs))], None) if is_relu(operation) else None

    outputs: jax.Array
    try:
        outputs = intercept(apply_fn, rule, params, inputs)
    except UnreadableProgram as error:
        warnings.warn(f"ReLUs are found by their name: {error}", stacklevel=2)
        shapes.clear()
        with _relu_replaced(tap):
            outputs = apply_fn(params, inputs)
    if not shapes:
        raise ValueError("apply_fn must have a ReLU: jax.nn.relu or a maximum with 0; got none")
    return outputs


@contextlib.contextmanager
def _relu_replaced(tap: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
    """Has `tap` applied to the outputs of ReLUs that are called by these names meanwhile."""
    relu = jax.nn.relu
    modules: tuple[Any, ...] = (jax.nn, linen, nnx)
    for module in modules:
        module.relu = lambda array: tap(relu(array))
    try:
        yield
    finally:
        for module in modules:
            module.relu = relu


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
