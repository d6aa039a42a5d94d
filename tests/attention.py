"""An attention block with LayerNorm, as users bring it: in flax.linen, flax.nnx and equinox."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TOKENS, FEATURES, HEADS, HIDDEN, OUTPUTS = 5, 4, 2, 6, 3


def inputs(size=3):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(size, TOKENS, FEATURES)), jnp.float64)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        attend = nn.MultiHeadDotProductAttention(HEADS, **double)
        x = x + attend(nn.LayerNorm(**double)(x))
        hidden = nn.relu(nn.Dense(HIDDEN, **double)(nn.LayerNorm(**double)(x)))
        x = x + nn.Dense(FEATURES, **double)(hidden)
        return nn.Dense(OUTPUTS, **double)(jnp.mean(x, axis=1))


def attended(query, key, value, **_):
    """Attention in float64 throughout: that of nnx takes the softmax in float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": rngs}
        self.first_norm = nnx.LayerNorm(FEATURES, **double)
        self.attend = nnx.MultiHeadAttention(
            HEADS, FEATURES, decode=False, attention_fn=attended, **double
        )
        self.second_norm = nnx.LayerNorm(FEATURES, **double)
        self.widen = nnx.Linear(FEATURES, HIDDEN, **double)
        self.narrow = nnx.Linear(HIDDEN, FEATURES, **double)
        self.head = nnx.Linear(FEATURES, OUTPUTS, **double)

    def __call__(self, x):
        x = x + self.attend(self.first_norm(x))
        x = x + self.narrow(nnx.relu(self.widen(self.second_norm(x))))
        return self.head(jnp.mean(x, axis=1))


class Equinox(eqx.Module):
    first_norm: eqx.nn.LayerNorm
    attend: eqx.nn.MultiheadAttention
    second_norm: eqx.nn.LayerNorm
    widen: eqx.nn.Linear
    narrow: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        double = {"dtype": jnp.float64}
        self.first_norm = eqx.nn.LayerNorm(FEATURES, **double)
        self.attend = eqx.nn.MultiheadAttention(
            HEADS,
            FEATURES,
            use_query_bias=True,
            use_key_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            key=keys[0],
            **double,
        )
        self.second_norm = eqx.nn.LayerNorm(FEATURES, **double)
        self.widen = eqx.nn.Linear(FEATURES, HIDDEN, key=keys[1], **double)
        self.narrow = eqx.nn.Linear(HIDDEN, FEATURES, key=keys[2], **double)
        self.head = eqx.nn.Linear(FEATURES, OUTPUTS, key=keys[3], **double)

    def __call__(self, x):
        read = jax.vmap(self.first_norm)(x)
        x = x + self.attend(read, read, read)
        hidden = jax.nn.relu(jax.vmap(self.widen)(jax.vmap(self.second_norm)(x)))
        x = x + jax.vmap(self.narrow)(hidden)
        return self.head(jnp.mean(x, axis=0))


def linen():
    model = Linen()
    return model.apply, model.init(jax.random.key(0), inputs())


def of_nnx():
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


def equinox():
    params, static = eqx.partition(Equinox(jax.random.key(0)), eqx.is_inexact_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


MODELS = {"linen": linen, "nnx": of_nnx, "equinox": equinox}
"""Each makes `apply_fn` and its parameters, in float64."""
