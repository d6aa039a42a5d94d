"""The outputs of a network's blocks and its last feature maps, by the names that it gives them."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from nasi_jax.kernels.interpreter import named
from nasi_jax.types import BLOCK, FEATURES, ApplyFn, Params


def block_outputs(
    apply_fn: ApplyFn, params: Params, inputs: jax.Array, given: Sequence[jax.Array] | None = None
) -> list[jax.Array]:
    """The outputs of a network's blocks, its stem and its cells, in order.

    They are what `jax.ad_checkpoint.checkpoint_name` gives the name `nasi_jax.types.BLOCK`, as all
    networks of this package do.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.
      given: see `interpreter.named`.

    Returns:
      `[B, ..., C]` for each.

    Raises:
      ValueError: if there are fewer than two.
      UnreadableProgram: if JAX writes the program in an unknown form.
    """
    outputs = named(apply_fn, BLOCK, params, inputs, given=given)
    if len(outputs) < 2:
        raise ValueError(
            "apply_fn must name the outputs of its blocks by "
            f"jax.ad_checkpoint.checkpoint_name(outputs, {BLOCK!r}); {len(outputs)} are named"
        )
    return outputs


def features(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> jax.Array:
    """The feature maps `[B, H, W, C]` whose mean over the image the last dense layer reads.

    They are what bears the name `nasi_jax.types.FEATURES`; arguments are those of `block_outputs`.

    Raises:
      ValueError: if not just one array does.
      UnreadableProgram: if JAX writes the program in an unknown form.
    """
    found = named(apply_fn, FEATURES, params, inputs)
    if len(found) != 1:
        raise ValueError(
            "apply_fn must name the feature maps before its last layer by "
            f"jax.ad_checkpoint.checkpoint_name(maps, {FEATURES!r}); {len(found)} are named"
        )
    return found[0]
