"""The proxies of TE-NAS."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nasi_jax.kernels.ntk import ntk
from nasi_jax.kernels.relu import code_differences
from nasi_jax.kernels.spectrum import spectrum
from nasi_jax.types import ApplyFn, Batch, Params


def condition_number(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """-kappa, kappa = lambda_max / lambda_min of the NTK `[B, B]` of the summed logits.

    More, that is a smaller kappa, is better. From Chen et al. (TE-NAS, ICLR 2021,
    arXiv:2102.11535), whose code takes the gradients of the sum of the logits, with batch
    statistics, and the mean over three draws of the parameters. It is not the kernel of the
    outputs: products of two different outputs are in it.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the kernel is taken at.
      batch: inputs `[B, ...]`; the labels are not read.
      coupled: see `ntk`.
      chunk_size: see `ntk`.

    Returns:
      A scalar, at most -1; -inf where the kernel is singular.

    Raises:
      ValueError: if the examples are coupled and `coupled` is not given.
    """
    del key
    kernel = ntk(
        apply_fn,
        params,
        batch.inputs,
        contraction="summed_logits",
        coupled=coupled,
        chunk_size=chunk_size,
    )
    return -spectrum(kernel).condition_number


def linear_regions(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    num_inputs: int | None = None,
) -> jax.Array:
    """The number of linear regions that random inputs fall into; more is better.

    Two inputs are in one region if the same ReLUs are active for both. Only ReLUs count that the
    outputs depend on; see `tap_relus` for which are found. The count saturates at the number of
    inputs, and does so for any but a very thin network on very small inputs.

    From Chen et al., "Neural Architecture Search on ImageNet in Four GPU Hours" (TE-NAS, ICLR
    2021, arXiv:2102.11535). Their code feeds 3,000 crops of 3x3 pixels and one channel from
    normalized images, with batch statistics, to a network of one channel with weights by Kaiming
    et al., and counts all ReLUs of feature maps. Here the inputs are standard normal, as
    normalized pixels are of mean 0 and variance 1, and of the shape of the batch's.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape is read.
      num_inputs: number of random inputs; B if not given.

    Returns:
      A scalar, a whole number from 1 to `num_inputs` up to rounding.

    Raises:
      ValueError: if `num_inputs` is below 1; and see `tap_relus`.
    """
    count, *shape = batch.inputs.shape
    if num_inputs is not None:
        count = num_inputs
    if count < 1:
        raise ValueError(f"num_inputs must be at least 1, got {num_inputs}")
    key_of_inputs, key_of_cotangents = jax.random.split(key)
    inputs = jax.random.normal(key_of_inputs, (count, *shape), batch.inputs.dtype)
    differences, _ = code_differences(key_of_cotangents, apply_fn, params, inputs)
    # Every region's inputs add up to 1.
    return jnp.sum(1 / jnp.sum(differences == 0, axis=1).astype(differences.dtype))
