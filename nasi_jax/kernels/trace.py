"""The trace norm of the neural tangent kernel: exact, bounded from below, and by random probes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from nasi_jax.kernels.independence import require_independent
from nasi_jax.kernels.parts import Chunk, fold, over_devices, total, wide
from nasi_jax.kernels.per_example import default_chunk, squared_gradient_norms, squared_norm
from nasi_jax.types import ApplyFn, Batch, Derivative, Loss, Params


def mean_loss(outputs: jax.Array, labels: jax.Array, loss: Loss = "cross_entropy") -> jax.Array:
    """Mean loss over a batch.

    Args:
      outputs: `[B, K]`.
      labels: integers `[B]`.
      loss: `cross_entropy` of the softmax, or `mse`: `||one_hot(label) - output||^2`, summed over
        the outputs as in equation (4) of the paper.

    Returns:
      A scalar.

    Raises:
      AssertionError: for other shapes or types, which would broadcast to another loss.
    """
    chex.assert_rank([outputs, labels], [2, 1])
    chex.assert_type(labels, int)
    chex.assert_equal_shape_prefix([outputs, labels], 1)
    if loss == "mse":
        targets = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
        return jnp.mean(jnp.sum(jnp.square(targets - outputs), axis=-1))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def batch_gradient(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
    derivative: Derivative = "reverse",
    num_micro_batches: int = 1,
) -> jax.Array:
    """NASI's estimate of the NTK's trace norm: the squared norm of one mini-batch gradient.

    x = || b^-1 sum_i grad_theta L_i ||^2, summed over all parameters. This is the only quantity
    that the paper computes (its definition stands between equations (11) and (12)). It is a lower
    bound of the trace up to constants, and the quadratic form of the kernel of the batch in the
    gradient of the loss, not its trace.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters theta that the gradient is taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.
      derivative: how the estimate is itself differentiated, once, in what `apply_fn` closes over.
        `reverse` differentiates the squared norm as it stands. `forward` uses that, with
        v = grad_theta L held constant, d||grad_theta L||^2 = 2 d<grad_theta L, v>, where
        <grad_theta L, v> is a forward-mode derivative of L: no backward pass is differentiated,
        and the parameters get no second cotangent. A second differentiation of `forward` is
        wrong.
      num_micro_batches: how many parts of the batch to go through one after another. The gradient
        is a mean over the examples, so this changes nothing but the memory, which is that of one
        part: all else is computed anew for the derivative.

    Returns:
      A scalar, at least 0.

    Raises:
      ValueError: if the batch does not part evenly, or its examples are coupled, whose gradient is
        not a mean over parts.
    """
    del key
    if len(batch.labels) % num_micro_batches:
        raise ValueError(
            f"num_micro_batches must divide the batch size {len(batch.labels)}, "
            f"got {num_micro_batches}"
        )
    if num_micro_batches > 1:
        require_independent(apply_fn, params, batch.inputs, None)
    parts = jax.tree.map(lambda leaf: leaf.reshape(num_micro_batches, -1, *leaf.shape[1:]), batch)

    def loss_of(params: Params) -> jax.Array:
        def of_part(part: Batch) -> jax.Array:
            return mean_loss(apply_fn(params, part.inputs), part.labels, loss)

        if num_micro_batches == 1:
            return of_part(batch)
        return jnp.mean(lax.map(jax.checkpoint(of_part), parts))

    if derivative == "reverse":
        return squared_norm(jax.grad(loss_of)(params))
    # What apply_fn closes over is made an argument, and constant before the gradient is taken:
    # holding only the gradient constant would have JAX differentiate all of it, and then drop it.
    closed, closed_over = jax.closure_convert(loss_of, params)
    direction = jax.grad(closed)(lax.stop_gradient(params), *lax.stop_gradient(closed_over))
    _, slope = jax.jvp(lambda params: closed(params, *closed_over), (params,), (direction,))
    return squared_norm(direction) + 2 * (slope - lax.stop_gradient(slope))


def per_example_gradient(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    loss: Loss = "cross_entropy",
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """The middle member of inequality (11), without its constant: sum_x ||grad_theta L_x||^2.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the gradients are taken at.
      batch: inputs `[B, ...]` and integer labels `[B]`.
      loss: see `mean_loss`.
      coupled: see `squared_gradient_norms`.
      chunk_size: see `squared_gradient_norms`.

    Returns:
      A scalar, the sum over the batch.

    Raises:
      ValueError: if the examples are coupled and `coupled` is not given.
    """
    del key
    cotangents = _loss_gradients(apply_fn(params, batch.inputs), batch.labels, loss)
    norms = squared_gradient_norms(
        apply_fn,
        params,
        batch.inputs,
        cotangents[:, None],
        coupled=coupled,
        chunk_size=chunk_size,
    )
    return jnp.sum(norms)


def ntk_trace(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    coupled: bool | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The exact trace of the NTK of a batch: sum_x ||grad_theta f(x)||_F^2 (equation (9)).

    Over all outputs and all parameters; no Jacobian is held.

    Args:
      key: not used; here for the signature of a proxy.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobian is taken at.
      batch: inputs `[B, ...]`; the labels are not read.
      coupled: see `squared_gradient_norms`. True takes `B K` backward passes of the whole batch.
      chunk_size: see `squared_gradient_norms`. It bounds the memory, on each device, whatever the
        number of examples.
      mesh: devices that share the examples, which they must divide, along its axis `data`. Each
        has all parameters.

    Returns:
      A scalar, the sum over the batch and the outputs.

    Raises:
      ValueError: if the examples are coupled and `coupled` is not given, or is with a mesh, and
        for a chunk size or a mesh that is not as above.
    """
    del key
    like = jax.eval_shape(apply_fn, params, batch.inputs)
    chex.assert_rank(like, 2)
    require_independent(apply_fn, params, batch.inputs, coupled, mesh=mesh)
    eye = jnp.eye(like.shape[1], dtype=like.dtype)

    def part(params: Params, inputs: jax.Array) -> jax.Array:
        """The sum over the examples of one device."""
        count = inputs.shape[0]
        size = default_chunk(count, count) if chunk_size is None else chunk_size

        def add(found: jax.Array, chunk: Chunk) -> jax.Array:
            examples = chunk.of(inputs)
            norms = squared_gradient_norms(
                apply_fn,
                params,
                examples,
                jnp.broadcast_to(eye, (examples.shape[0], *eye.shape)),
                coupled=bool(coupled),
                chunk_size=chunk_size,
            )
            fresh = jnp.where(chunk.fresh[:, None], norms, 0)
            return found + jnp.sum(fresh, dtype=found.dtype)

        found = fold(add, jnp.zeros((), wide()), count, None if coupled else size)
        return total(found, mesh)

    trace: jax.Array = over_devices(part, mesh, summed=True)(params, batch.inputs)
    return trace.astype(like.dtype)


class Estimate(NamedTuple):
    """A mean over random probes: its value, and the standard error of that, NaN for one probe."""

    value: jax.Array
    standard_error: jax.Array


def random_cotangent_estimate(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    over: Literal["classes", "batch"] = "classes",
    num_probes: int = 8,
    coupled: bool | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """An unbiased estimate of the NTK's trace from random output cotangents, without labels.

    For v with independent entries -1 and 1, E ||J^T v||^2 = tr(J J^T) (Hutchinson, 1990).

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobian is taken at.
      batch: inputs `[B, ...]`; the labels are not read.
      over: `classes`: a probe is a v of its own in `{-1, 1}^K` for every example, which needs
        gradients of single examples; only products of two outputs of one example add variance.
        `batch`: a probe is one v in `{-1, 1}^(B x K)` and one backward pass of the whole batch,
        exact through batch statistics as well, but with a standard deviation near sqrt(2) times
        the trace where the kernel is near rank one, as it is at initialization.
      num_probes: number of probes averaged.
      coupled: for `classes`, see `squared_gradient_norms`.
      chunk_size: for `classes`, see `squared_gradient_norms`.

    Returns:
      The estimate of the sum over the batch and the outputs. For `classes` the standard error
      adds up those of the examples, whose probes are independent.

    Raises:
      ValueError: for an unknown `over`, for `num_probes` below 1, and for `classes` if the
        examples are coupled and `coupled` is not given.
    """
    if over not in ("classes", "batch"):
        raise ValueError(f"over must be classes or batch, got {over!r}")
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, got {num_probes}")
    like = jax.eval_shape(apply_fn, params, batch.inputs)
    chex.assert_rank(like, 2)
    size, outputs = like.shape
    if over == "classes":
        probes = jax.random.rademacher(key, (size, num_probes, outputs), like.dtype)
        samples = squared_gradient_norms(
            apply_fn, params, batch.inputs, probes, coupled=coupled, chunk_size=chunk_size
        )
    else:
        _, pull = jax.vjp(lambda params: apply_fn(params, batch.inputs), params)

        def sample(key: jax.Array) -> jax.Array:
            return squared_norm(pull(jax.random.rademacher(key, like.shape, like.dtype))[0])

        samples = lax.map(sample, jax.random.split(key, num_probes))[None]
    if num_probes > 1:
        variance = jnp.sum(jnp.var(samples, axis=1, ddof=1)) / num_probes
    else:
        variance = jnp.full((), jnp.nan, samples.dtype)
    return Estimate(jnp.sum(jnp.mean(samples, axis=1)), jnp.sqrt(variance))


def random_cotangent(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    coupled: bool | None = None,
    **options: Any,
) -> jax.Array:
    """The value of `random_cotangent_estimate`, as a proxy.

    Args:
      key: random key, consumed.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobian is taken at.
      batch: inputs `[B, ...]`; the labels are not read.
      coupled: see `squared_gradient_norms`.
      **options: those of `random_cotangent_estimate`.

    Returns:
      A scalar, the estimate of the sum over the batch and the outputs.

    Raises:
      ValueError: as `random_cotangent_estimate` does.
    """
    estimate = random_cotangent_estimate(key, apply_fn, params, batch, coupled=coupled, **options)
    return estimate.value


class TraceBounds(NamedTuple):
    """The members of inequalities (9) to (12), largest first, with the constant that holds.

    Attributes:
      trace: ||Theta||_tr = sum_x ||grad f(x)||_F^2, equation (9).
      per_example: gamma^-2 sum_x ||grad L_x||^2.
      mini_batch: b gamma^-2 sum_j || b^-1 sum_{x in X_j} grad L_x ||^2.
      estimate: m gamma^-2 || b^-1 sum_{x in X_1} grad L_x ||^2, from the first mini-batch alone.
        By (12) the trace is near it; it is not a bound.
      lipschitz: gamma.
    """

    trace: jax.Array
    per_example: jax.Array
    mini_batch: jax.Array
    estimate: jax.Array
    lipschitz: jax.Array


def trace_bounds(
    apply_fn: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    batch_size: int,
    loss: Loss = "cross_entropy",
    lipschitz: float | None = None,
    chunk_size: int | None = None,
) -> TraceBounds:
    """The chain trace >= per example >= mini-batch of inequalities (9) to (12), each computed.

    The paper prints gamma^-1 in (11) and (12); squaring (10) gives gamma^-2, which is used here.
    With it the chain holds as numbers.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`, each example on its own.
      params: parameters that the gradients are taken at.
      batch: inputs `[m, ...]` and integer labels `[m]`.
      batch_size: b, a divisor of m; mini-batches are consecutive examples.
      loss: see `mean_loss`.
      lipschitz: gamma, a bound of the norm of the loss's gradient in the outputs: sqrt(2) for
        the cross-entropy whatever the outputs. If not given, the largest such norm in the batch.
      chunk_size: see `squared_gradient_norms`.

    Returns:
      The members; the first three are in descending order.

    Raises:
      ValueError: if the examples are coupled, or `batch_size` does not divide m.
    """
    size = batch.inputs.shape[0]
    if batch_size < 1 or size % batch_size:
        raise ValueError(f"batch_size must divide the {size} examples, got {batch_size}")
    options: dict[str, Any] = {"chunk_size": chunk_size}
    key = jax.random.key(0)
    trace = ntk_trace(key, apply_fn, params, batch, **options)
    cotangents = _loss_gradients(apply_fn(params, batch.inputs), batch.labels, loss)
    largest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(cotangents), axis=-1)))
    gamma = largest if lipschitz is None else jnp.asarray(lipschitz, cotangents.dtype)
    norms = squared_gradient_norms(
        apply_fn, params, batch.inputs, cotangents[:, None], coupled=False, **options
    )
    parts = jax.tree.map(lambda array: array.reshape(-1, batch_size, *array.shape[1:]), batch)
    each = lax.map(lambda part: batch_gradient(key, apply_fn, params, part, loss=loss), parts)
    return TraceBounds(
        trace,
        jnp.sum(norms) / gamma**2,
        batch_size * jnp.sum(each) / gamma**2,
        size * each[0] / gamma**2,
        gamma,
    )


def _loss_gradients(outputs: jax.Array, labels: jax.Array, loss: Loss) -> jax.Array:
    """The gradient of every example's loss in its outputs, `[B, K]`."""
    size = outputs.shape[0]
    return size * jax.grad(mean_loss)(outputs, labels, loss)
