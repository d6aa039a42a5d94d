"""Where the parameters of any function meet its activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nasi_jax.kernels.interpreter import ENTERED, Operation, intercept
from nasi_jax.types import ApplyFn, Params


def at_parameters(
    replace: Callable[[Operation], list[Any] | None],
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    others: Callable[[Operation], list[Any] | None] = lambda operation: None,
) -> jax.Array:
    """`apply_fn(params, inputs)` with operations of parameters and activations replaced.

    What is computed from parameters and numbers alone is a parameter here too: a kernel that is
    reshaped, stacked, sliced or made from others. It is not followed out of a scan or checkpoint.

    Args:
      replace: maps an operation, with the label True for each operand that is a parameter, to
        its outputs; None leaves it as it is.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.
      others: the same for operations of activations alone.

    Returns:
      The outputs.
    """

    def rule(operation: Operation) -> Any:
        if operation.name in ENTERED:
            return None
        paired = zip(operation.inputs, operation.labels, strict=True)
        has_parameter = any(operation.labels)
        if has_parameter and all(label or np.ndim(operand) == 0 for operand, label in paired):
            return operation.apply(*operation.inputs), True
        outputs = (replace if has_parameter else others)(operation)
        return None if outputs is None else (outputs, None)

    labels = [*[True] * len(jax.tree.leaves(params)), None]
    outputs: jax.Array = intercept(apply_fn, rule, params, inputs, labels=labels)
    return outputs
