"""The spectrum of a kernel: from its Gram matrix, or by Lanczos iterations without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from nasi_jax.kernels.independence import require_independent
from nasi_jax.kernels.parts import Chunk, fold, over_devices, total
from nasi_jax.types import ApplyFn, Params


class Spectrum(NamedTuple):
    """What the eigenvalues of a kernel say.

    Attributes:
      eigenvalues: `[N]`, largest first.
      trace: their sum.
      largest: the largest.
      smallest: the smallest.
      condition_number: largest / smallest; infinite where the smallest is not above 0.
      effective_rank: exp(-sum p log p) with p the eigenvalues over their sum (Roy and Vetterli,
        2007): N if all are equal, 1 if one is all.
    """

    eigenvalues: jax.Array
    trace: jax.Array
    largest: jax.Array
    smallest: jax.Array
    condition_number: jax.Array
    effective_rank: jax.Array


def spectrum(kernel: jax.Array) -> Spectrum:
    """All of `Spectrum` from one symmetric matrix.

    Args:
      kernel: `[N, N]`, or a kernel `[B, K, B, K]` that keeps its outputs, which is a matrix of
        `N = B K` rows. In float32, eigenvalues below about 1e-6 of the largest are noise.

    Returns:
      The eigenvalues, and what follows from them.

    Raises:
      ValueError: if it is not square.
    """
    size = round(kernel.size**0.5)
    if kernel.ndim not in (2, 4) or kernel.shape[: kernel.ndim // 2] * 2 != kernel.shape:
        raise ValueError(f"a kernel is [N, N] or [B, K, B, K], got shape {kernel.shape}")
    eigenvalues = jnp.linalg.eigvalsh(kernel.reshape(size, size))[::-1]
    largest, smallest = eigenvalues[0], eigenvalues[-1]
    shares = jnp.maximum(eigenvalues, 0) / jnp.sum(jnp.maximum(eigenvalues, 0))
    entropy = -jnp.sum(jax.scipy.special.xlogy(shares, shares))
    positive = smallest > 0
    ratio = largest / jnp.where(positive, smallest, 1)
    return Spectrum(
        eigenvalues,
        jnp.trace(kernel.reshape(size, size)),
        largest,
        smallest,
        jnp.where(positive, ratio, jnp.inf),
        jnp.exp(entropy),
    )


class LanczosSpectrum(NamedTuple):
    """An estimated spectrum: eigenvalues with weights, one list for each probe.

    Attributes:
      nodes: `[num_probes, num_steps]`, Ritz values. Their extremes approach those of the kernel.
      weights: `[num_probes, num_steps]`, how large a share of the `N` eigenvalues each stands
        for; they sum to 1 for a probe.
      size: N.
    """

    nodes: jax.Array
    weights: jax.Array
    size: int

    def sum_of(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Estimates sum_i g(lambda_i), and its standard error over the probes.

        Args:
          values: g at `nodes`.
        """
        samples = self.size * jnp.sum(self.weights * values, axis=1)
        count = samples.shape[0]
        spread = jnp.std(samples, ddof=1) if count > 1 else jnp.full((), jnp.nan, samples.dtype)
        return jnp.mean(samples), spread / jnp.sqrt(jnp.asarray(count, samples.dtype))


def lanczos_spectrum(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    *,
    num_steps: int = 32,
    num_probes: int = 4,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> LanczosSpectrum:
    """Stochastic Lanczos quadrature of the NTK of a batch, which is never formed.

    A step multiplies by Theta = J J^T: one backward pass and one forward-mode pass of the whole
    batch, so that memory is that of a gradient whatever K, and batch statistics are gone through
    exactly. With full reorthogonalization. (Golub and Welsch, 1969; Ubaru, Chen and Saad, 2017.)

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobian is taken at.
      inputs: `[B, ...]`.
      num_steps: Lanczos steps, at most `B K`.
      num_probes: random starting vectors, of entries -1 and 1.
      chunk_size: how many examples the passes take at a time, on each device. It bounds the
        memory: all that grows with B are vectors of length `B K`, about two for each step. Outputs
        are computed anew in every pass. If not given, all are taken at once, and computed once.
      mesh: devices that share the examples, which they must divide, along its axis `data`. Each
        has all parameters, and its examples' part of the vectors; gradients are summed over all.

    Returns:
      The spectrum of the matrix of `N = B K` rows.

    Raises:
      ValueError: for numbers or a mesh that are not as above, and with a chunk size or a mesh if
        the examples are coupled.
      AssertionError: if the outputs are not `[B, K]`.
    """
    outputs = jax.eval_shape(apply_fn, params, inputs)
    chex.assert_rank(outputs, 2)
    chex.assert_equal_shape_prefix([inputs, outputs], 1)
    size = outputs.size
    if not 1 <= num_steps <= size:
        raise ValueError(f"num_steps must be from 1 to B K = {size}, got {num_steps}")
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, got {num_probes}")
    if chunk_size is not None or mesh is not None:
        require_independent(apply_fn, params, inputs, None, way_out="leave out chunk_size and mesh")

    def start(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(key, (size,), outputs.dtype)
        return (signs / jnp.linalg.norm(signs)).reshape(outputs.shape)

    def part(params: Params, inputs: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The diagonals of the tridiagonal matrices, by vectors of which a device has a part."""
        if chunk_size is None:
            push, pull = _products(apply_fn, params, inputs)
        else:
            push, pull = _products_in_chunks(apply_fn, params, inputs, chunk_size)

        def multiply(vector: jax.Array) -> jax.Array:
            return push(total(pull(vector.reshape(-1, outputs.shape[1])), mesh)).reshape(-1)

        def tridiagonal(start: jax.Array) -> tuple[jax.Array, jax.Array]:
            def step(
                basis: jax.Array, index: jax.Array
            ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                vector = multiply(basis[index])
                diagonal = total(jnp.vdot(basis[index], vector), mesh)
                # Rows not yet filled are zeros, so this is against all vectors so far; twice, for
                # once leaves what rounding has put back.
                for _ in range(2):
                    vector -= total(basis @ vector, mesh) @ basis
                norm = jnp.sqrt(total(jnp.vdot(vector, vector), mesh))
                # An exhausted space goes on with zeros.
                following = jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), 0)
                return basis.at[index + 1].set(following), (diagonal, norm)

            basis = jnp.zeros((num_steps + 1, start.size), start.dtype).at[0].set(start.reshape(-1))
            _, diagonals = lax.scan(step, basis, jnp.arange(num_steps))
            return diagonals

        return lax.map(tridiagonal, jnp.moveaxis(starts, 1, 0))

    starts = jax.vmap(start, out_axes=1)(jax.random.split(key, num_probes))
    diagonals = over_devices(part, mesh, summed=True)(params, inputs, starts)

    def quadrature(diagonals: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        diagonal, off = diagonals
        matrix = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        return nodes, jnp.square(vectors[0])

    nodes, weights = lax.map(quadrature, diagonals)
    return LanczosSpectrum(nodes, weights, size)


Push = Callable[[Params], jax.Array]
"""Maps a direction in the parameters to J times it, `[B, K]`."""

Pull = Callable[[jax.Array], Params]
"""Maps `[B, K]` to J^T times it, a gradient."""


def _products(apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> tuple[Push, Pull]:
    _, push = jax.linearize(lambda params: apply_fn(params, inputs), params)
    transposed = jax.linear_transpose(push, params)
    return push, lambda vector: transposed(vector)[0]


def _products_in_chunks(
    apply_fn: ApplyFn, params: Params, inputs: jax.Array, chunk_size: int
) -> tuple[Push, Pull]:
    count = inputs.shape[0]
    like = jax.eval_shape(apply_fn, params, inputs)

    def of(chunk: Chunk) -> Push:
        return lambda params: apply_fn(params, chunk.of(inputs))

    def push(direction: Params) -> jax.Array:
        def write(products: jax.Array, chunk: Chunk) -> jax.Array:
            _, product = jax.jvp(of(chunk), (params,), (direction,))
            return lax.dynamic_update_slice_in_dim(products, product, chunk.start, 0)

        return fold(write, jnp.zeros(like.shape, like.dtype), count, chunk_size)

    def pull(vector: jax.Array) -> Params:
        def add(gradient: Params, chunk: Chunk) -> Params:
            _, transposed = jax.vjp(of(chunk), params)
            (of_chunk,) = transposed(jnp.where(chunk.fresh[:, None], chunk.of(vector), 0))
            return jax.tree.map(jnp.add, gradient, of_chunk)

        return fold(add, jax.tree.map(jnp.zeros_like, params), count, chunk_size)

    return push, pull
