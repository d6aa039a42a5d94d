"""SynFlow: the flow through a network whose parameters are all positive."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.kernels.interpreter import Operation, multiply_accumulates
from nasi_jax.kernels.layers import at_parameters
from nasi_jax.kernels.proxies.proxy import without_norm
from nasi_jax.types import ApplyFn, Batch, Params


@without_norm
def synflow(key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch) -> jax.Array:
    """log sum theta dR/dtheta over kernels, at theta = |theta|; more is better.

    R is the sum of the outputs for one input of ones. Kernels are the parameters of dense and
    convolutional layers; biases, and scales and shifts of normalization, enter R by their
    magnitudes but are not summed over. From Tanaka et al. (NeurIPS 2020, arXiv:2006.05467), who
    prune by it; as a score of architectures, from Abdelfattah et al. (ICLR 2021,
    arXiv:2101.08134), who compute it in float64 without normalization, scale and shift included:
    use the norm mode `none`. With batch statistics it is another quantity, and with a batch of
    one input of little sense. The logarithm is not theirs.

    Should R overflow, input and biases are made smaller by 2^-112. Everything in a network of
    layers, ReLUs and pools, skip connections too, then shrinks by that factor, and its logarithm
    is added back. So in float32 the sum may be up to 2^240, about 1e72. Networks with operations
    that are not positively homogeneous are exact up to the largest float only.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, differentiable in forward
        mode.
      params: parameters theta.
      batch: inputs `[B, ...]`, of which only the shape is read.

    Returns:
      A scalar; inf beyond the limit above, and -inf if no kernel leads to an output.
    """
    del key
    positive = jax.tree.map(jnp.abs, params)
    ones = jnp.ones((1, *batch.inputs.shape[1:]), batch.inputs.dtype)

    def flow(scale: jax.Array) -> jax.Array:
        def total(growth: jax.Array) -> jax.Array:
            def replace(operation: Operation) -> list[Any] | None:
                if operation.name == "add":
                    operands = [
                        operand * scale.astype(operand.dtype) if label else operand
                        for operand, label in zip(operation.inputs, operation.labels, strict=True)
                    ]
                    return operation.apply(*operands)
                if multiply_accumulates(operation) is None:
                    return None
                (outputs,) = operation.apply(*operation.inputs)
                return [outputs * (1 + growth.astype(outputs.dtype))]

            return jnp.sum(at_parameters(replace, apply_fn, positive, ones * scale))

        # With every kernel times 1 + growth, the derivative is the sum over kernels. In forward
        # mode, because cotangents of early layers would overflow whatever the scale.
        one = jnp.ones_like(scale)
        return jax.jvp(total, (jnp.zeros_like(scale),), (one,))[1]

    one = jnp.ones((), batch.inputs.dtype)
    overflows = ~jnp.isfinite(lax.stop_gradient(flow(one)))
    scale = jnp.where(overflows, one * 2.0**-112, one)
    return jnp.log(flow(scale)) - jnp.log(scale)
