"""The work of a forward pass."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nasi_jax.kernels.gradient import A_FEW, random_gradient
from nasi_jax.kernels.interpreter import Operation, multiply_accumulates
from nasi_jax.kernels.layers import at_parameters
from nasi_jax.kernels.modules import are_all_linear, at_layers, multiply_adds_of_layers
from nasi_jax.kernels.tap import tapped
from nasi_jax.types import ApplyFn, Batch, Params


def flops(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """Multiply-accumulates of one example's forward pass, which the field calls FLOPs.

    More is better, as a proxy. Counted are dense and convolutional layers whose kernel comes
    from `params`, grouped and depthwise ones too, once for each iteration of a scan. An addition
    and a multiplication are one operation. Not counted: biases, normalization, activations,
    pools, products of two activations, and layers that the outputs do not depend on, as those of
    an operation that a supernet's one-hot weights leave out. What a layer costs is known when the
    function is traced; whether it counts, from a backward pass of the first 4 examples.

    The layers of flax modules are those that flax names, see `modules.at_layers`; of any other
    function they are read in its program.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`; the labels are not read.

    Returns:
      A float32 scalar, of a relative accuracy of about 1e-7.

    Raises:
      UnreadableProgram: if it takes reading a program, and JAX writes it in an unknown form.
    """
    inputs = batch.inputs[:A_FEW]

    def outputs_of(zero: jax.Array) -> jax.Array:
        def counted(count: int, outputs: jax.Array) -> jax.Array:
            def measure(outputs: jax.Array, cotangent: jax.Array) -> jax.Array:
                return count * jnp.any(cotangent != 0).astype(jnp.float32)

            return tapped(measure, zero, outputs)

        def of_module(path: tuple[str, ...], count: int, outputs: jax.Array) -> jax.Array:
            return counted(count, outputs)

        def of_operation(operation: Operation) -> list[Any] | None:
            count = multiply_accumulates(operation)
            if count is None:
                return None
            (outputs,) = operation.apply(*operation.inputs)
            return [counted(count, outputs)]

        if are_all_linear(apply_fn, params, inputs):
            return at_layers(of_module, apply_fn, params, inputs)
        return at_parameters(of_operation, apply_fn, params, inputs)

    total = random_gradient(key, outputs_of, jnp.zeros((), jnp.float32))
    return total / inputs.shape[0]


def multiply_adds(apply_fn: ApplyFn, params: Params, inputs: Any) -> int:
    """Multiply-accumulates of one example's forward pass, by tracing alone.

    What `flops` counts, and layers that the outputs do not depend on too.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, or their shapes.
      inputs: `[B, ...]`, or their shape.

    Returns:
      The number of them.

    Raises:
      UnreadableProgram: if it takes reading a program, and JAX writes it in an unknown form.
    """
    total = multiply_adds_of_layers(apply_fn, params, inputs)
    if total is not None:
        return total // inputs.shape[0]
    counts: dict[tuple[int, ...], int] = {}

    def note(operation: Operation) -> None:
        if (count := multiply_accumulates(operation)) is not None:
            counts[operation.site] = count * operation.repeats

    jax.eval_shape(functools.partial(at_parameters, note, apply_fn), params, inputs)
    return sum(counts.values()) // inputs.shape[0]
