"""Whether the examples of a batch are independent of each other in a function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nasi_jax.kernels.interpreter import closed_over
from nasi_jax.types import ApplyFn, Params


def examples_are_coupled(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> bool:
    """Whether the output of one example depends on the other examples in its batch.

    Seen by computing: two batches of two with the first example in common give it the same
    outputs, or not. While a function is being traced, arrays without values are replaced by
    random ones, so that it is seen there too, before anything is compiled.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`; the first example is looked at.

    Returns:
      A plain bool, also while a function is being traced.
    """
    two = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    function, arrays = closed_over(apply_fn, params, two)
    with jax.ensure_compile_time_eval():
        rng = np.random.default_rng(0)
        arrays = [_concrete(rng, array) for array in arrays]
        leaves = [_concrete(rng, leaf) for leaf in jax.tree.leaves(params)]
        first = _concrete(rng, inputs)[:1]
        rows = []
        for _ in range(2):
            second = jnp.asarray(rng.uniform(size=first.shape), first.dtype)
            outputs = function(arrays, *leaves, jnp.concatenate([first, second]))
            rows.append(np.asarray(outputs[0][0]))
    return not np.array_equal(rows[0], rows[1], equal_nan=True)


def require_independent(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    coupled: bool | None,
    *,
    mesh: Mesh | None = None,
    way_out: str = "pass coupled=True for gradients through the whole batch",
) -> None:
    """Refuses coupled examples where the caller has not said what they are.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.
      coupled: what the caller says; None if nothing.
      mesh: devices that each get a part of the batch, if any do.
      way_out: what else to do, as it is said to the user.

    Raises:
      ValueError: if nothing was said and the examples are coupled, or if they are said to be, and
        there is a mesh.
    """
    if coupled and mesh is not None:
        raise ValueError("mesh splits the batch, and coupled=True needs the whole: leave one out")
    if coupled is None and examples_are_coupled(apply_fn, params, inputs):
        raise ValueError(
            "the outputs of one example depend on the other examples of its batch (batch "
            "statistics?), so an example has no gradient of its own: use the norm mode frozen or "
            f"none, or {way_out}"
        )


def _concrete(rng: np.random.Generator, array: Any) -> jax.Array:
    """The array itself, or one of its shape and kind if it has no values."""
    if not isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
        return jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), array.shape)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros(array.shape, array.dtype)
    # Positive, so that nothing cancels and variances are ones; of a size that a deep network
    # neither dies out nor overflows with.
    fan_in = int(np.prod(array.shape[-4:-1])) if array.ndim > 1 else 1
    return jnp.asarray(rng.uniform(0.5, 1.5, array.shape) / fan_in, array.dtype)
