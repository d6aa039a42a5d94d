"""Algorithm 1 with every setting, against a transcription that takes its own gradients."""

import functools
from typing import get_args

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Toy, assert_same, flat, random_batch, squared_gradient_norm

from nasi_jax.cells import search_space
from nasi_jax.kernels import batch_gradient
from nasi_jax.search import (
    adaptive,
    fixed,
    gumbel_softmax,
    init_params,
    nasi,
    one_step_ascent,
    quantile,
)
from nasi_jax.types import Derivative, NetworkSpec

pytestmark = pytest.mark.usefixtures("keys_used_once")

NUM_STEPS = 4
SPACES = {
    "toy": Toy(),
    "nasbench201": search_space(
        "nasbench201", init_channels=2, num_cells=1, ops=("skip_connect", "nor_conv_1x1")
    ),
}


def algorithm(space="toy", optimizer=None, **settings):
    optimizer = one_step_ascent(NUM_STEPS) if optimizer is None else optimizer
    return nasi(SPACES[space], num_classes=4, optimizer=optimizer, **settings)


def step_key(step):
    return jax.random.key(10 + step)


def searched(each, num_steps=NUM_STEPS):
    """The state before, the state after, and what each step saw."""
    before = jax.jit(each.init)(jax.random.key(0), random_batch(0))
    state, infos, step_fn = before, [], jax.jit(each.step)
    for step in range(num_steps):
        state, info = step_fn(step_key(step), state, random_batch(step))
        infos.append(info)
    return before, state, infos


def own_traces(space, before, *, norm="batch", alphas=None, redraw=False, **sampling):
    """x and its gradient at every step, at alpha_0 = 0 or the given alphas."""
    space = SPACES[space]
    supernet = space.supernet(4, NetworkSpec(norm=norm))

    @jax.jit
    def trace(alpha, key, batch):
        params = before.params
        if redraw:
            key, params_key = jax.random.split(key)
            uniform = jax.tree.map(jax.nn.softmax, space.init_alpha())
            params = init_params(params_key, supernet, batch.inputs, uniform)
        sample_key, _ = jax.random.split(key)

        def x(alpha):
            weights = gumbel_softmax(sample_key, alpha, **sampling)
            kwargs = {"norm": norm, "reference": random_batch(0).inputs}
            return squared_gradient_norm(supernet, params, weights, batch, **kwargs)

        return jax.value_and_grad(x)(alpha)

    pairs = []
    for step in range(NUM_STEPS):
        alpha = space.init_alpha() if alphas is None else alphas[step]
        x, slope = trace(alpha, step_key(step), random_batch(step))
        pairs.append((float(x), flat(slope)))
    return pairs


def transcription(traces, *, penalty, nu, follow=False, radius=1.0):
    """Equations (14) and (18) in NumPy: alpha, and x, nu, R, ||G|| and the addend of each step."""
    alpha, largest, rows = 0.0, 0.0, []
    for step, (x, slope) in enumerate(traces):
        constraint = (nu + sum(x for x, _ in traces[:step])) / (step + 1) if follow else nu
        gradient = slope * (1 - penalty * (x > constraint))
        norm = np.linalg.norm(gradient)
        largest = max(largest, norm)
        update = radius / len(traces) * gradient / largest if largest > 0 else 0 * gradient
        alpha = alpha + update
        objective = x - penalty * max(0, x - constraint)
        rows.append((x, constraint, objective, norm, update))
    return alpha, rows


def unflat(vector, like):
    """The inverse of `flat`."""
    return jax.flatten_util.ravel_pytree(like)[1](jnp.asarray(vector, jnp.float32))


def assert_transcribed(state, infos, expected, rtol=1e-4):
    alpha, rows = expected
    for info, row in zip(infos, rows, strict=True):
        np.testing.assert_allclose(np.array(info[:4]), np.array(row[:4]), rtol=rtol)
        assert np.linalg.norm(flat(info.update) - row[4]) <= rtol
    assert np.linalg.norm(flat(state.alpha) - alpha) <= rtol


@pytest.mark.parametrize("space", SPACES)
def test_adaptive_tent(space):
    """The paper's search, with nu among the values of x, so that steps go up and down."""
    first = searched(algorithm(space, penalty=2.0, constraint=fixed(1.0)), 1)[2][0].trace
    nu = 0.9 * float(first)
    before, after, infos = searched(algorithm(space, penalty=2.0, constraint=adaptive(nu)))
    traces = own_traces(space, before)
    expected = transcription(traces, penalty=2.0, nu=nu, follow=True)
    assert len({x > constraint for x, constraint, *_ in expected[1]}) == 2
    assert_transcribed(after, infos, expected)
    assert_same(after.params, before.params)


@pytest.mark.parametrize("derivative", get_args(Derivative))
def test_fixed_cap(derivative):
    """At mu = 1 a step above nu adds nothing."""
    proxy = functools.partial(batch_gradient, derivative=derivative)
    probe = [float(info.trace) for info in searched(algorithm(constraint=fixed(1.0)))[2]]
    nu = float(np.median(probe))
    optimizer = one_step_ascent(NUM_STEPS, radius=0.3)
    before, after, infos = searched(
        algorithm(optimizer=optimizer, penalty=1.0, constraint=fixed(nu), proxy=proxy)
    )
    expected = transcription(own_traces("toy", before), penalty=1.0, nu=nu, radius=0.3)
    assert_transcribed(after, infos, expected)
    assert [bool(np.any(flat(info.update))) for info in infos] == [x < nu for x in probe]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.5},
        {"relaxation": "hard"},
        {"relaxation": "hard", "temperature": 2.0},
        {"relaxation": "path"},
    ],
)
def test_sampling(sampling):
    each = algorithm(penalty=1.0, constraint=fixed(1e9), **sampling)
    before, after, infos = searched(each)
    if "relaxation" in sampling:
        sampling = {**sampling, "num_selected": Toy().num_selected()}
    traces = own_traces("toy", before, **sampling)
    assert_transcribed(after, infos, transcription(traces, penalty=1.0, nu=1e9))


@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_norm_modes(norm):
    each = algorithm(penalty=1.0, constraint=fixed(1e9), spec=NetworkSpec(norm=norm))
    before, after, infos = searched(each)
    traces = own_traces("toy", before, norm=norm)
    assert_transcribed(after, infos, transcription(traces, penalty=1.0, nu=1e9))
    if norm == "none":
        assert before.reference is None
    else:
        assert_same(before.reference, random_batch(0).inputs)
        assert_same(after.reference, before.reference)
        # Another reference, other statistics, another x.
        moved = before._replace(reference=random_batch(1).inputs)
        _, info = jax.jit(each.step)(step_key(0), moved, random_batch(0))
        assert abs(info.trace / infos[0].trace - 1) > 1e-3


def test_penalty_and_constraint_of_the_default():
    """mu is 2, and nu starts at 500, here between the values of x, and follows the mean."""

    def proxy(key, apply_fn, params, batch):
        return 2000 * batch_gradient(key, apply_fn, params, batch)

    before, after, infos = searched(algorithm(proxy=proxy))
    traces = [(2000 * x, 2000 * slope) for x, slope in own_traces("toy", before)]
    expected = transcription(traces, penalty=2.0, nu=500.0, follow=True)
    assert {x > constraint for x, constraint, *_ in expected[1]} == {False, True}
    assert_transcribed(after, infos, expected)


@pytest.mark.parametrize(("level", "scale"), [(0.0, 1.0), (0.3, 1e4)])
@pytest.mark.parametrize("redraw", [False, True])
def test_quantile_constraint(level, scale, redraw):
    """Of x on the first batch at alpha_0, so in the scale of x whatever that is."""

    def proxy(key, apply_fn, params, batch):
        return scale * batch_gradient(key, apply_fn, params, batch)

    each = algorithm(constraint=quantile(level, num_samples=7), proxy=proxy, redraw=redraw)
    state = jax.jit(each.init)(jax.random.key(0), random_batch(0))
    _, sample_key = jax.random.split(jax.random.key(0))
    step_fn, samples = jax.jit(each.step), []
    for key in jax.random.split(sample_key, 7):
        after, info = step_fn(key, state, random_batch(0))
        assert info.constraint == after.constraint.nu == state.constraint.nu
        samples.append(info.trace)
    np.testing.assert_allclose(state.constraint.nu, np.quantile(samples, level), rtol=1e-4)


def test_alpha_of_the_state_does_not_enter_the_gradient():
    each = algorithm()
    state = jax.jit(each.init)(jax.random.key(0), random_batch(0))
    moved = state._replace(alpha=jax.tree.map(lambda leaf: leaf + 0.5 * leaf.size, state.alpha))
    moved.alpha["ops"] = moved.alpha["ops"].at[0, 0].add(1.0)
    step_fn = jax.jit(each.step)
    first, info = step_fn(step_key(0), state, random_batch(0))
    second, info_of_moved = step_fn(step_key(0), moved, random_batch(0))
    assert_same(info, info_of_moved)
    added = flat(second.alpha) - flat(moved.alpha)
    np.testing.assert_allclose(added, flat(first.alpha), atol=1e-6)


def test_moving_alpha_with_adam():
    """Against a loop with optax, whose gradients are taken at the alpha that it has reached."""
    # Optax itself mixes integers and floats in Adam's bias correction.
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(0.1)
        settings = {"penalty": 1.0, "constraint": fixed(1e9)}
        each = algorithm(optimizer=optimizer, move_alpha=True, **settings)
        before, after, infos = searched(each)
        alpha = Toy().init_alpha()
        opt_state, alphas = optimizer.init(alpha), []
        for step in range(NUM_STEPS):
            alphas.append(alpha)
            filled = alphas + [alpha] * (NUM_STEPS - len(alphas))
            x, slope = own_traces("toy", before, alphas=filled)[step]
            np.testing.assert_allclose(infos[step].trace, x, rtol=1e-4)
            of_the_loss = unflat(-slope, alpha)
            updates, opt_state = optimizer.update(of_the_loss, opt_state, alpha)
            alpha = optax.apply_updates(alpha, updates)
        np.testing.assert_allclose(flat(after.alpha), flat(alpha), atol=1e-4)
        # Adam's first steps are 0.1 in every entry whatever the gradient, later ones are not.
        staying = searched(algorithm(optimizer=optimizer, **settings))[1]
        assert np.max(np.abs(flat(staying.alpha) - flat(after.alpha))) > 1e-3


def test_eager_is_jit():
    each = algorithm()
    state = jax.jit(each.init)(jax.random.key(0), random_batch(0))
    eager = each.step(step_key(0), state, random_batch(1))
    compiled = jax.jit(each.step)(step_key(0), state, random_batch(1))
    for actual, desired in zip(eager, compiled, strict=True):
        np.testing.assert_allclose(flat(actual), flat(desired), rtol=1e-5, atol=1e-5)


def test_the_proxy_gets_a_key_of_its_own():
    """Another one at every step, and none that the sample was drawn from."""

    def proxy(key, apply_fn, params, batch):
        return jax.random.uniform(key) + 0 * jnp.sum(apply_fn(params, batch.inputs))

    draws = [float(info.trace) for info in searched(algorithm(proxy=proxy))[2]]
    expected = [
        float(jax.random.uniform(jax.random.split(step_key(step))[1])) for step in range(NUM_STEPS)
    ]
    assert draws == expected


@pytest.mark.parametrize("zeros", [(), (0, 1), (2,), range(6)])
def test_equation_18(zeros):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 9)) * np.array([1, 3, 0.1, 30, 1e-3, 2])[:, None]
    gradients[list(zeros)] = 0
    optimizer = one_step_ascent(6, radius=0.7)
    alpha = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((1, 3))}
    opt_state = optimizer.init(alpha)
    for row in jnp.asarray(gradients, jnp.float32):
        update, opt_state = optimizer.update(unflat(-row, alpha), opt_state)
        alpha = optax.apply_updates(alpha, update)
    pairs = [(0.0, gradient) for gradient in gradients]
    expected, _ = transcription(pairs, penalty=0.0, nu=1.0, radius=0.7)
    np.testing.assert_allclose(flat(alpha), expected, rtol=1e-5, atol=1e-8)
    assert np.linalg.norm(flat(alpha)) <= 0.7 * (1 + 1e-6)
    assert np.any(flat(alpha)) == (len(zeros) < 6)


def test_equal_gradients_reach_the_radius():
    optimizer, gradient = one_step_ascent(5, radius=0.7), {"a": jnp.asarray([[3.0, -4.0]])}
    opt_state, total = optimizer.init(gradient), 0.0
    for _ in range(5):
        update, opt_state = optimizer.update(gradient, opt_state)
        total = total + flat(update)
    np.testing.assert_allclose(total, [-0.7 * 0.6, 0.7 * 0.8], rtol=1e-6)


def test_redrawn_parameters():
    """Every step has a theta_0 of its own, and that of the state decides nothing."""
    each = algorithm("nasbench201", penalty=0.0, constraint=fixed(1.0), redraw=True)
    before, after, infos = searched(each)
    traces = own_traces("nasbench201", before, redraw=True)
    assert_transcribed(after, infos, transcription(traces, penalty=0.0, nu=1.0))
    once = own_traces("nasbench201", before)
    assert not any(np.isclose(x, y, rtol=0.01) for (x, _), (y, _) in zip(traces, once, strict=True))
    assert_same(after.params, before.params)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ("toy", {"constraint": adaptive(1.0)}),
        ("toy", {"constraint": adaptive(1.0), "redraw": True, "relaxation": "hard"}),
        ("toy", {"constraint": fixed(1.0), "spec": NetworkSpec(norm="frozen")}),
        ("nasbench201", {"constraint": adaptive(1.0)}),
    ],
)
def test_steps_in_one_call_are_steps_one_after_another(space, settings):
    """With nu among the values of x, so that it matters which steps came before."""
    each = algorithm(space, penalty=2.0, **settings)
    before, after, infos = searched(each)
    assert len({bool(info.trace > info.constraint) for info in infos}) == 2

    def keys(first):
        return jax.vmap(step_key)(jnp.arange(first, NUM_STEPS))

    examples = [*map(random_batch, range(NUM_STEPS))]
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    steps = jax.jit(each.steps)
    found, rows = steps(keys(0), before, batches, NUM_STEPS)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *infos)
    for actual, desired in ((found, after), (rows, expected)):
        assert jax.tree.structure(actual) == jax.tree.structure(desired)
        np.testing.assert_allclose(flat(actual), flat(desired), rtol=1e-4, atol=1e-5)
    # In two calls, of which the first leaves out what it is given too much.
    part, _ = steps(keys(0), before, batches, 2)
    assert_same(part.params, before.params)
    rest, _ = steps(keys(2), part, jax.tree.map(lambda leaf: leaf[2:], batches), 2)
    np.testing.assert_allclose(flat(rest), flat(after), rtol=1e-4, atol=1e-5)


def test_an_alpha_that_moves_is_refused_in_one_call():
    each = algorithm(move_alpha=True)
    state = jax.jit(each.init)(jax.random.key(0), random_batch(0))
    batches = jax.tree.map(lambda leaf: leaf[None], random_batch(0))
    with pytest.raises(ValueError, match="several samples in one call need a fixed alpha"):
        each.steps(step_key(0)[None], state, batches, 1)
