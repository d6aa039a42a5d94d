"""Fisher: what the loss would change by if channels were removed one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax.kernels.relu import tap_relus
from nasi_jax.kernels.trace import mean_loss
from nasi_jax.types import ApplyFn, Batch, Loss, Params


def fisher(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
) -> jax.Array:
    """sum_r sum_c 1/(2B) sum_b (sum_p a_bpc dL/da_bpc)^2; more is better.

    The a `[B, positions, C]` are what ReLU r returns, channels last, and L is the mean loss of
    the batch; see `tap_relus` for which ReLUs are found. From Turner et al., "BlockSwap" (ICLR
    2020, arXiv:1906.04113), after Theis et al. (arXiv:1801.05787); as a score of architectures,
    from Abdelfattah et al. (ICLR 2021, arXiv:2101.08134), whose code runs with batch statistics,
    takes for a the outputs of convolutional and dense layers, before normalization, in place of
    those of ReLUs, and counts a channel once for each weight that leads to it.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.

    Returns:
      A scalar, at least 0.

    Raises:
      ValueError: see `tap_relus`.
    """
    del key
    dtype = np.promote_types(batch.inputs.dtype, jnp.float32)

    def measure(active: jax.Array, cotangent: jax.Array) -> jax.Array:
        products = (active * cotangent).astype(dtype)
        by_position = products.reshape(active.shape[0], -1, active.shape[-1])
        return jnp.sum(jnp.square(jnp.sum(by_position, axis=1))) / (2 * active.shape[0])

    def loss_of(zero: jax.Array) -> jax.Array:
        outputs = tap_relus(measure, zero, apply_fn, params, batch.inputs)
        return mean_loss(outputs, batch.labels, loss)

    return jax.grad(loss_of)(jnp.zeros((), dtype))
