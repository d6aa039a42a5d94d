"""NASI (Shu et al., ICLR 2022), Algorithm 1, as a pair of pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from nasi_jax.devices.mesh import DATA, everywhere, over_samples, sizes
from nasi_jax.kernels.trace import batch_gradient
from nasi_jax.search.objective import Constraint, ConstraintState, adaptive, penalized
from nasi_jax.search.relaxation import (
    close_over,
    gumbel_softmax,
    init_params,
    init_params_on_host,
)
from nasi_jax.types import (
    Alpha,
    Batch,
    NetworkSpec,
    Params,
    ProxyFn,
    Relaxation,
    SearchSpace,
)


class SearchState(NamedTuple):
    """State of a search.

    Attributes:
      alpha: architecture logits; `space.discretize` reads the result off them.
      params: theta_0 of the supernet, the same at every step unless it is redrawn.
      opt_state: state of the optimizer of alpha.
      constraint: state of nu.
      reference: inputs of the reference batch in norm mode `frozen`, else None.
    """

    alpha: Alpha
    params: Params
    opt_state: Any
    constraint: ConstraintState
    reference: jax.Array | None


class SearchInfo(NamedTuple):
    """Diagnostics of one step.

    Attributes:
      trace: x, the proxy of the sampled architecture.
      constraint: nu.
      objective: R.
      gradient_norm: L2 norm of the gradient of R in alpha, over all choices together.
      update: what the step added to alpha.
    """

    trace: jax.Array
    constraint: jax.Array
    objective: jax.Array
    gradient_norm: jax.Array
    update: Alpha


class SearchAlgorithm(NamedTuple):
    """A search as pure functions, which a caller may jit, and call in a loop of their own.

    Attributes:
      init: `(key, batch) -> SearchState`. Not to be compiled: as it stands it draws theta_0 on the
        host; see `init_params_on_host`.
      step: `(key, state, batch) -> (SearchState, SearchInfo)`.
      steps: `(keys [K], state, batches [K, B, ...], count, mesh=None) -> (SearchState,
        SearchInfo [K, ...])`: the first `count` of K steps in one program, whose samples are taken
        together, by the devices of a mesh (`nasi_jax.devices.mesh`) if there is one. The result
        is that of `step` one after another, but for rounding. Rows of the info from `count` on
        mean nothing.
    """

    init: Callable[[jax.Array, Batch], SearchState]
    step: Callable[[jax.Array, SearchState, Batch], tuple[SearchState, SearchInfo]]
    steps: Callable[..., tuple[SearchState, SearchInfo]]


def normalize_by_max_norm() -> optax.GradientTransformation:
    """Divides updates by the largest norm seen so far, the present one included.

    u_t = G_t / max(||G_1||_2, ..., ||G_t||_2), the norm taken over the whole pytree: the
    normalization of equation (18) of the paper. Zero stays zero.

    Returns:
      The transformation; its state is the largest norm so far.
    """

    def init(params: optax.Params) -> jax.Array:
        del params
        return jnp.zeros(())

    def update(
        updates: optax.Updates, largest: jax.Array, params: optax.Params | None = None
    ) -> tuple[optax.Updates, jax.Array]:
        del params
        largest = jnp.maximum(largest, optax.tree.norm(updates))
        divisor = jnp.where(largest > 0, largest, 1.0)
        return jax.tree.map(lambda leaf: leaf / divisor, updates), largest

    return optax.GradientTransformation(init, update)


def one_step_ascent(num_steps: int, *, radius: float = 1.0) -> optax.GradientTransformation:
    """The sum of equation (18): alpha* = alpha_0 + (xi / T) sum_t G_t / max_{s<=t} ||G_s||_2.

    As everywhere in optax the incoming gradients are those of a loss, here of -R.

    Args:
      num_steps: T.
      radius: xi, which bounds the norm of alpha* - alpha_0.

    Returns:
      The transformation of gradients of -R into updates of alpha.
    """
    return optax.chain(normalize_by_max_norm(), optax.scale(-radius / num_steps))


def nasi(
    space: SearchSpace,
    *,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    proxy: ProxyFn = batch_gradient,
    penalty: float = 2.0,
    constraint: Constraint | None = None,
    temperature: float = 1.0,
    relaxation: Relaxation = "soft",
    input_relaxation: Relaxation | None = None,
    redraw: bool = False,
    move_alpha: bool = False,
    spec: NetworkSpec = NetworkSpec(),
) -> SearchAlgorithm:
    """NASI in a search space.

    A step samples an architecture by Gumbel-softmax, takes the gradient of
    R = x - mu * max(0, x - nu) in alpha on one batch, and hands it to the optimizer.

    Args:
      space: what to search in.
      num_classes: outputs `K` of the supernet.
      optimizer: turns gradients of -R into updates of alpha: `one_step_ascent(T)` is the paper's.
      proxy: x, the score of a network at initialization.
      penalty: mu.
      constraint: the rule for nu; `adaptive(500.0)`, the paper's for DARTS, if not given.
      temperature: tau of the Gumbel-softmax.
      relaxation: of the sampled operations; see `gumbel_softmax`.
      input_relaxation: of the sampled inputs, if not the same.
      redraw: whether every step draws a theta_0 of its own, so that the sum of equation (18) is a
        mean over initializations as well. The paper draws one for all steps.
      move_alpha: whether gradients are taken at the alpha reached so far. The paper takes all of
        them at alpha_0 = 0; an optimizer such as `optax.adam` means to move.
      spec: what the supernet's layers have in common: the norm mode, the distribution of theta_0,
        the dtype of activations.

    Returns:
      The search as `init(key, batch)`, `step(key, state, batch)`, and several steps at a time.
    """
    rule = adaptive(500.0) if constraint is None else constraint
    supernet = space.supernet(num_classes, spec, one_hot=relaxation == "path")

    def drawn(
        key: jax.Array, alpha: Alpha, params: Params, batch: Batch
    ) -> tuple[jax.Array, Params]:
        """The key that is left, and the parameters of one sample."""
        if not redraw:
            return key, params
        key, params_key = jax.random.split(key)
        return key, init_params(params_key, supernet, batch.inputs, alpha)

    def trace_of(
        key: jax.Array,
        alpha: Alpha,
        params: Params,
        batch: Batch,
        reference: jax.Array | None,
    ) -> jax.Array:
        sample_key, proxy_key = jax.random.split(key)
        weights = gumbel_softmax(
            sample_key,
            alpha,
            temperature=temperature,
            relaxation=relaxation,
            input_relaxation=input_relaxation,
            num_selected=space.num_selected(),
        )
        apply_fn = close_over(supernet, params, weights, norm=spec.norm, reference=reference)
        trace = proxy(proxy_key, apply_fn, params, batch)
        chex.assert_shape(trace, ())
        return trace

    def init_fn(key: jax.Array, batch: Batch) -> SearchState:
        params_key, sample_key = jax.random.split(key)
        alpha = space.init_alpha()
        params = init_params_on_host(params_key, supernet, batch.inputs, alpha)
        # In a buffer of its own: the state may be donated, the batch not.
        reference = jnp.array(batch.inputs) if spec.norm == "frozen" else None

        def sample_traces(num_samples: int) -> jax.Array:
            def x(key: jax.Array) -> jax.Array:
                key, own = drawn(key, alpha, params, batch)
                return trace_of(key, alpha, own, batch, reference)

            return jax.lax.map(x, jax.random.split(sample_key, num_samples))

        return SearchState(
            alpha, params, optimizer.init(alpha), rule.init(sample_traces), reference
        )

    def sample(key: jax.Array, state: SearchState, batch: Batch) -> tuple[jax.Array, Alpha]:
        """x of an architecture and its derivative in alpha, which no other sample changes."""
        alpha = state.alpha if move_alpha else space.init_alpha()
        key, params = drawn(key, alpha, state.params, batch)
        return jax.value_and_grad(trace_of, argnums=1)(key, alpha, params, batch, state.reference)

    def ascend(
        state: SearchState, trace: jax.Array, slope: Alpha
    ) -> tuple[SearchState, SearchInfo]:
        """Moves alpha by the gradient of R, which follows from nu and the derivative of x."""
        nu = state.constraint.nu
        objective, rate = jax.value_and_grad(penalized)(trace, nu, penalty)
        gradient = jax.tree.map(lambda leaf: -rate * leaf, slope)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.alpha)
        info = SearchInfo(trace, nu, objective, optax.tree.norm(gradient), update)
        moved = state._replace(
            alpha=optax.apply_updates(state.alpha, update),
            opt_state=opt_state,
            constraint=rule.update(state.constraint, trace),
        )
        return moved, info

    def step_fn(key: jax.Array, state: SearchState, batch: Batch) -> tuple[SearchState, SearchInfo]:
        return ascend(state, *sample(key, state, batch))

    def steps_fn(
        keys: jax.Array,
        state: SearchState,
        batches: Batch,
        count: jax.Array | int,
        mesh: Mesh | None = None,
    ) -> tuple[SearchState, SearchInfo]:
        if move_alpha:
            raise ValueError("several samples in one call need a fixed alpha: not with move_alpha")

        def in_turns(
            keys: jax.Array, state: SearchState, batches: Batch
        ) -> tuple[jax.Array, Alpha]:
            return jax.lax.map(lambda each: sample(each[0], state, each[1]), (keys, batches))

        in_axes = (0, None, 0)
        # Under vmap kernels of their own for every sample are grouped convolutions, which are slow,
        # and samples join the examples, which then are not spread over devices.
        apart = redraw or sizes(mesh)[DATA] > 1
        several = in_turns if apart else jax.vmap(sample, in_axes)
        if mesh is None:
            samples = several(keys, state, batches)
        else:
            samples = over_samples(sample, several, mesh, in_axes)(keys, state, batches)
            # What follows is in the order of the steps, on every device the same.
            samples = jax.lax.with_sharding_constraint(samples, everywhere(mesh))
        constants = {"params": state.params, "reference": state.reference}

        def next_step(
            moving: SearchState, index_and_sample: tuple[jax.Array, tuple[jax.Array, Alpha]]
        ) -> tuple[SearchState, SearchInfo]:
            index, (trace, slope) = index_and_sample
            moved, info = ascend(moving, trace, slope)
            return jax.tree.map(functools.partial(jnp.where, index < count), moved, moving), info

        moving = state._replace(params=None, reference=None)
        moved, infos = jax.lax.scan(next_step, moving, (jnp.arange(len(keys)), samples))
        return moved._replace(**constants), infos

    return SearchAlgorithm(init_fn, step_fn, steps_fn)
