"""From alpha to the weights of a supernet, and from weights to a function of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nasi_jax.types import Alpha, ApplyFn, NormMode, Params, Relaxation


def gumbel_softmax(
    key: jax.Array,
    alpha: Alpha,
    *,
    temperature: float = 1.0,
    relaxation: Relaxation = "soft",
    input_relaxation: Relaxation | None = None,
    num_selected: Mapping[str, int] | None = None,
) -> Alpha:
    """Samples relaxed architectures: softmax((alpha + g) / tau), g ~ Gumbel(0, 1), row by row.

    The reparameterization of equation (15) of the paper, and those of SNAS (Xie et al., 2019) and
    GDAS (Dong and Yang, 2019), whose weights are 0 and 1; see `Relaxation`.

    Args:
      key: random key, consumed.
      alpha: logits, `[rows, options]` each.
      temperature: tau, above 0.
      relaxation: of the operations.
      input_relaxation: of the entries whose name begins with `inputs`; that of the operations if
        not given.
      num_selected: for each entry of alpha, how many options of a row are drawn; 1 each if not
        given. The k largest of alpha + g are a sample of k options without replacement.

    Returns:
      Weights of the structure of `alpha`.
    """
    chex.assert_rank(list(alpha.values()), 2)
    keys = jax.random.split(key, len(alpha))
    weights = {}
    for name, subkey in zip(sorted(alpha), keys, strict=True):
        logits = alpha[name] + jax.random.gumbel(subkey, alpha[name].shape, alpha[name].dtype)
        soft = jax.nn.softmax(logits / temperature)
        how = (name.startswith("inputs") and input_relaxation) or relaxation
        if how == "soft":
            weights[name] = soft
            continue
        count = 1 if num_selected is None or how == "hard-one" else num_selected[name]
        _, winners = lax.top_k(logits, count)
        drawn = jnp.sum(jax.nn.one_hot(winners, logits.shape[-1], dtype=soft.dtype), axis=1)
        through = soft * drawn if how == "path" else soft
        weights[name] = through + lax.stop_gradient(drawn - through)
    return weights


def init_params(key: jax.Array, supernet: nn.Module, inputs: jax.Array, weights: Alpha) -> Params:
    """Draws the parameters theta_0 of a supernet.

    By XLA's own generator (`rbg` keys), made from the given key: on CPU the default one takes
    12 to 26 seconds to compile for the parameters of a supernet, this one 3 to 8. The draw is
    a function of the key on one kind of device; another kind may draw other numbers. See
    `init_params_on_host`.

    Args:
      key: random key, consumed.
      supernet: maps `(inputs, weights)` to outputs.
      inputs: any inputs of the right shape `[B, ...]`.
      weights: any weights of the structure of alpha.

    Returns:
      The collection `params` of the supernet.
    """
    words = jax.random.bits(key, (4,), jnp.uint32)
    variables = supernet.init(jax.random.wrap_key_data(words, impl="rbg"), inputs, weights)
    return variables["params"]


def init_params_on_host(
    key: jax.Array, supernet: nn.Module, inputs: jax.Array, weights: Alpha
) -> Params:
    """`init_params` as the host's CPU draws them, in the memory of the device that is in use.

    So that they are the same on every device, and because the draws of a supernet take a GPU half a
    minute to compile. Where JAX_PLATFORMS leaves out the CPU, or inside of `jit`, the device draws
    them. The arguments are those of `init_params`.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with jax.ensure_compile_time_eval():
        in_use = jnp.zeros(()).sharding
    with jax.default_device(host):
        params = _draw(key, supernet, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), weights)
    return jax.device_put(params, in_use)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(
    key: jax.Array, supernet: nn.Module, inputs: jax.ShapeDtypeStruct, weights: Alpha
) -> Params:
    return init_params(key, supernet, jnp.zeros(inputs.shape, inputs.dtype), weights)


def close_over(
    supernet: nn.Module,
    params: Params,
    weights: Alpha,
    *,
    norm: NormMode,
    reference: jax.Array | None = None,
) -> ApplyFn:
    """The supernet at given weights as a function of parameters and inputs.

    Args:
      supernet: maps `(inputs, weights)` to outputs.
      params: parameters that the frozen statistics are taken at.
      weights: relaxed or one-hot weights.
      norm: the supernet's norm mode.
      reference: inputs `[R, ...]` whose statistics normalize in mode `frozen`, those of this
        very architecture, as constants.

    Returns:
      `apply_fn(params, inputs)`.
    """
    statistics: Any = {}
    if norm == "frozen":
        # Given beforehand, as the branches of a supernet for one-hot weights each fill in a part.
        shapes = jax.eval_shape(supernet.init, jax.random.key(0), reference, weights)
        blank = jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes["batch_stats"]
        )
        _, statistics = supernet.apply(
            {"params": params, "batch_stats": blank}, reference, weights, mutable=["batch_stats"]
        )
        statistics = lax.stop_gradient(statistics)

    def apply_fn(params: Params, inputs: jax.Array) -> jax.Array:
        outputs = supernet.apply({"params": params, **statistics}, inputs, weights)
        return jnp.asarray(outputs)

    return apply_fn
