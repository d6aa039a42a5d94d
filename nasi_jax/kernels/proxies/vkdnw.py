"""VKDNW: how evenly the Fisher information spreads over a network's parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nasi_jax.kernels.channels import eigenvalues, entropy
from nasi_jax.kernels.gradient import live_layers
from nasi_jax.kernels.proxies.proxy import without_norm
from nasi_jax.kernels.stacks import by_layer
from nasi_jax.types import ApplyFn, Batch, Params

_QUANTILES = np.linspace(0.1, 0.9, 9)


@without_norm
def vkdnw(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch, *, num_entries: int = 16
) -> jax.Array:
    """D + H / log 9: the number of layers, then the entropy H of the Fisher spectrum.

    H = -sum_q x_q log(x_q + 1e-10), where x are the nine deciles of the singular values of
    F = mean_n (L J_n)^T (L J_n), divided by their sum. J_n `[K, m]` is the Jacobian of example
    n's logits in m entries of the parameters, one a layer, and L the Cholesky factor of
    diag(q) - q q^T, q = 0.95 softmax(logits) + 0.05 / K. D counts the layers that the outputs
    depend on, a layer an array of `params` or a slice that a scan reads; so H, at most log 9,
    decides between networks of one D alone. More is better.

    From Tybl and Neumann, "VKDNW" (CVPR 2025, arXiv:2502.04975), as in their code: there L J stands
    where the Fisher matrix J^T (diag(q) - q q^T) J has L^T J; see `vkdnw_fisher`. They take the
    first entry of each of the first 128 arrays, 64 standard normal images, and normalization by
    its initial running statistics, which is none. Here it is the first entry of m = 16 layers,
    evenly spaced: for them 16 ranked as well as 128 (Spearman 0.810 and 0.814).

    Args:
      key: random key of the images, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, examples not coupled.
      params: its parameters.
      batch: inputs `[B, ...]`, of which only the shape is read.
      num_entries: m.

    Returns:
      A scalar.

    Raises:
      ValueError: if m is below 2.
    """
    return _score(key, apply_fn, params, batch, num_entries, transposed=False)


@without_norm
def vkdnw_fisher(
    key: jax.Array, apply_fn: ApplyFn, params: Params, batch: Batch, *, num_entries: int = 16
) -> jax.Array:
    """`vkdnw` of the Fisher matrix itself, F = mean_n J_n^T (diag(q) - q q^T) J_n.

    As the paper has it and its code has not. Arguments, errors and the result are those of `vkdnw`.
    """
    return _score(key, apply_fn, params, batch, num_entries, transposed=True)


def _score(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    num_entries: int,
    *,
    transposed: bool,
) -> jax.Array:
    if num_entries < 2:
        raise ValueError(f"num_entries must be at least 2, got {num_entries}")
    key_of_inputs, key_of_layers = jax.random.split(key)
    inputs = jax.random.normal(key_of_inputs, batch.inputs.shape, batch.inputs.dtype)
    live = jnp.concatenate(live_layers(key_of_layers, apply_fn, params, inputs))
    number = jnp.sum(live, dtype=jnp.int32)
    ranks = jnp.where(live, jnp.cumsum(live, dtype=jnp.int32) - 1, -1)
    order = jnp.arange(num_entries, dtype=jnp.int32)
    spaced = jnp.where(number < num_entries, order, order * number // num_entries)
    count = jnp.minimum(number, num_entries)

    logits, push = jax.linearize(lambda params: apply_fn(params, inputs), params)
    shapes = _layer_shapes(apply_fn, params, inputs)

    def column(rank: jax.Array) -> jax.Array:
        return push(_first_entries(params, shapes, ranks == rank))

    jacobian = lax.map(column, spaced)  # [m, B, K]
    jacobian = jnp.where((order < count)[:, None, None], jacobian, 0)
    # The spectrum's shape has no scale; with the largest at 1, squares do not vanish.
    largest = lax.stop_gradient(jnp.max(jnp.abs(jacobian)))
    jacobian /= jnp.where(largest > 0, largest, 1)
    shares = 0.95 * jax.nn.softmax(logits) + 0.05 / logits.shape[1]
    factor = _cholesky(shares)
    factor = jnp.swapaxes(factor, 1, 2) if transposed else factor
    rows = jnp.einsum("bij,mbj->bim", factor, jacobian)
    information = jnp.einsum("bim,bin->mn", rows, rows) / len(inputs)
    deciles = _deciles(eigenvalues(information), count)
    spread = jnp.where(jnp.sum(deciles) > 0, entropy(deciles, shift=1e-10), 0)
    return number.astype(logits.dtype) + spread / np.log(len(_QUANTILES))


def _layer_shapes(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> list[tuple[int, ...]]:
    """For each leaf its number of layers, and of the entries of each."""
    return [rows.shape for rows in by_layer(apply_fn, params, inputs, params)]


def _first_entries(params: Params, shapes: list[tuple[int, ...]], chosen: jax.Array) -> Params:
    """1 in the first entry of the layers that are chosen, and else 0."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([layers for layers, _ in shapes])
    tangents = [
        jnp.zeros(shape, leaf.dtype).at[:, 0].set(part.astype(leaf.dtype)).reshape(leaf.shape)
        for leaf, shape, part in zip(leaves, shapes, jnp.split(chosen, ends[:-1]), strict=True)
    ]
    return jax.tree.unflatten(structure, tangents)


def _cholesky(shares: jax.Array) -> jax.Array:
    """L `[B, K, K]` with L L^T = diag(q) - q q^T, of q `[B, K]` (Tanabe and Sagae, 1992).

    With r_j = 1 - q_1 - ... - q_j: L_jj = sqrt(q_j r_j / r_{j-1}), and below it
    L_ij = -q_i sqrt(q_j / (r_{j-1} r_j)). The last column is 0.
    """
    rest = 1 - jnp.cumsum(shares[:, :-1], axis=1)
    before = jnp.concatenate([jnp.ones_like(rest[:, :1]), rest[:, :-1]], axis=1)
    shares_but_last = shares[:, :-1]
    diagonal = jnp.sqrt(shares_but_last * rest / before)
    columns = jnp.sqrt(shares_but_last / (before * rest))
    size = shares.shape[1]
    below = -jnp.tril(shares[:, :, None] * columns[:, None, :], k=-1)
    square = jnp.pad(below, ((0, 0), (0, 0), (0, 1)))
    index = jnp.arange(size - 1)
    return square.at[:, index, index].set(diagonal)


def _deciles(descending: jax.Array, count: jax.Array) -> jax.Array:
    """The nine deciles of the first `count` of values, between which they are linear."""
    last = jnp.maximum(count - 1, 0)
    positions = jnp.asarray(1 - _QUANTILES, descending.dtype) * last.astype(descending.dtype)
    low = jnp.floor(positions).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    share = positions - low.astype(positions.dtype)
    return descending[low] * (1 - share) + descending[high] * share
