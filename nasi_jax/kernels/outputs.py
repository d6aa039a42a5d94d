"""The outputs of all layers of any function, measured one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from nasi_jax.kernels.interpreter import Operation, is_relu, multiply_accumulates
from nasi_jax.kernels.layers import at_parameters
from nasi_jax.kernels.tap import tapped
from nasi_jax.types import NORMALIZED, UNNORMALIZED, ApplyFn, Params

LayerKind = Literal["linear", "relu", "normalized", "unnormalized"]
"""Dense and convolutional layers; ReLUs; what normalization returns; what normalization reads."""

_NAMES = {NORMALIZED: "normalized", UNNORMALIZED: "unnormalized"}


def tap_outputs(
    measure: Callable[[jax.Array, jax.Array], Any],
    zero: Any,
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    *kinds: LayerKind,
) -> jax.Array:
    """`apply_fn(params, inputs)` with the outputs of layers of some kinds `tapped`.

    ReLUs are those that `tap_relus` finds. What normalization reads and returns is what has the
    names `nasi_jax.types.UNNORMALIZED` and `NORMALIZED`.

    Args:
      measure: see `tapped`; its array is the `[B, ..., C]` of a layer.
      zero: see `tapped`.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, channels last.
      params: its parameters.
      inputs: `[B, ...]`.
      *kinds: which layers.

    Returns:
      The outputs.

    Raises:
      ValueError: if there is no layer of these kinds.
      UnreadableProgram: if JAX writes the program in an unknown form.
    """
    found = []

    def tap(outputs: jax.Array) -> list[jax.Array]:
        found.append(outputs)
        return [tapped(measure, zero, outputs)]

    def linear(operation: Operation) -> list[Any] | None:
        if "linear" not in kinds or multiply_accumulates(operation) is None:
            return None
        return tap(*operation.apply(*operation.inputs))

    def other(operation: Operation) -> list[Any] | None:
        name = _NAMES.get(operation.read("name")[0]) if operation.name == "name" else None
        if name in kinds or ("relu" in kinds and is_relu(operation)):
            return tap(*operation.apply(*operation.inputs))
        return None

    outputs = at_parameters(linear, apply_fn, params, inputs, other)
    if not found:
        raise ValueError(f"apply_fn must have a layer that is {' or '.join(kinds)}; got none")
    return outputs
