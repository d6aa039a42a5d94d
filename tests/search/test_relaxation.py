"""Distribution and derivative of the sampled weights; the supernet as a function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, on_devices, random_batch, random_like
from scipy import special, stats

from nasi_jax.search import close_over, gumbel_softmax, init_params
from nasi_jax.search.relaxation import init_params_on_host
from nasi_jax.types import NORM_MODES, NetworkSpec

ALPHA = {"a": jnp.asarray([[0.5, -0.3, 1.2, 0.1], [0.0, 2.0, -1.0, 0.4]]), "b": jnp.zeros((1, 3))}
NUM_SELECTED = {"a": 2, "b": 1}
NUM_SAMPLES = 20_000


def test_rows_sum_to_one():
    for row in jax.tree.leaves(gumbel_softmax(jax.random.key(0), ALPHA, temperature=0.3)):
        np.testing.assert_allclose(np.sum(row, axis=1), 1, rtol=1e-6)


def test_temperature_divides_alpha_plus_noise():
    """The weights at tau = 1 are softmax(alpha + g), from which follow those at any other."""
    at_one = gumbel_softmax(jax.random.key(0), ALPHA)
    for tau in (0.1, 0.5, 3.0):
        weights = gumbel_softmax(jax.random.key(0), ALPHA, temperature=tau)
        for name in ALPHA:
            expected = special.softmax(np.log(at_one[name]) / tau, axis=1)
            np.testing.assert_allclose(weights[name], expected, rtol=1e-4, atol=1e-7)


def test_alpha_shifts_the_logits():
    noise = gumbel_softmax(jax.random.key(0), jax.tree.map(jnp.zeros_like, ALPHA))
    weights = gumbel_softmax(jax.random.key(0), ALPHA)
    for name in ALPHA:
        expected = special.softmax(np.log(noise[name]) + ALPHA[name], axis=1)
        np.testing.assert_allclose(weights[name], expected, rtol=1e-5)


def test_cold_samples_are_the_hard_ones_of_the_key():
    for seed in range(20):
        cold = gumbel_softmax(jax.random.key(seed), ALPHA, temperature=1e-4)
        hard = gumbel_softmax(jax.random.key(seed), ALPHA, relaxation="hard")
        for name in ALPHA:
            np.testing.assert_allclose(cold[name], hard[name], atol=1e-4)


def test_a_key_decides_the_sample():
    first, same, other = (gumbel_softmax(jax.random.key(seed), ALPHA) for seed in (0, 0, 1))
    for name in ALPHA:
        np.testing.assert_array_equal(first[name], same[name])
        assert np.all(first[name] != other[name])


def test_rows_and_entries_have_noise_of_their_own():
    alpha = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))}
    weights = gumbel_softmax(jax.random.key(0), alpha)
    rows = np.concatenate([weights["a"], weights["b"]])
    assert len(np.unique(rows, axis=0)) == 4


@functools.cache
def hard_samples(counted):
    def sample(key):
        selected = NUM_SELECTED if counted else None
        return gumbel_softmax(key, ALPHA, relaxation="hard", num_selected=selected)

    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    return jax.device_get(jax.jit(jax.vmap(sample))(keys))


@pytest.mark.parametrize("counted", [False, True])
def test_hard_weights_are_zero_and_one(counted):
    for name, weights in hard_samples(counted).items():
        assert np.all((weights == 0) | (weights == 1))
        assert np.all(np.sum(weights, axis=-1) == (NUM_SELECTED[name] if counted else 1))


def test_one_option_is_drawn_by_the_softmax_of_alpha():
    for name, weights in hard_samples(False).items():
        expected = NUM_SAMPLES * special.softmax(np.asarray(ALPHA[name], float), axis=1)
        for row in range(len(expected)):
            observed = np.sum(weights[:, row], axis=0)
            assert stats.chisquare(observed, expected[row]).pvalue > 1e-3


def test_two_options_are_drawn_without_replacement():
    weights = hard_samples(True)["a"]
    for row, p in enumerate(special.softmax(np.asarray(ALPHA["a"], float), axis=1)):
        pairs = [(i, j) for i in range(4) for j in range(i)]
        expected = [p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs]
        observed = [np.sum(weights[:, row, i] * weights[:, row, j]) for i, j in pairs]
        assert stats.chisquare(observed, NUM_SAMPLES * np.array(expected)).pvalue > 1e-3


def test_a_tie_selects_no_more_than_asked_for():
    """Beside such logits the noise is below the resolution of float32."""
    alpha = {"a": jnp.asarray([[1e9, 1e9, 1e9, 0.0]])}
    for count in (1, 2):
        weights = gumbel_softmax(
            jax.random.key(0), alpha, relaxation="hard", num_selected={"a": count}
        )
        assert np.sum(weights["a"]) == count


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("relaxation", ["soft", "hard", "hard-one", "path"])
def test_derivatives(relaxation, temperature):
    """That of the softmax; of the sampled path, of the options drawn alone."""
    cotangent = random_like(0, ALPHA)
    settings = {"temperature": temperature, "num_selected": NUM_SELECTED}

    def product(alpha):
        weights = gumbel_softmax(jax.random.key(0), alpha, relaxation=relaxation, **settings)
        return sum(jnp.vdot(weights[name], cotangent[name]) for name in alpha)

    slope = jax.grad(product)(ALPHA)
    soft = gumbel_softmax(jax.random.key(0), ALPHA, **settings)
    drawn = gumbel_softmax(jax.random.key(0), ALPHA, relaxation="hard", **settings)
    for name in ALPHA:
        w, c = np.asarray(soft[name], float), np.asarray(cotangent[name], float)
        if relaxation == "path":
            c = c * drawn[name]
        expected = w * (c - np.sum(w * c, axis=1, keepdims=True)) / temperature
        np.testing.assert_allclose(slope[name], expected, rtol=1e-4, atol=1e-6)


def test_weights_of_each_relaxation():
    """Of hard, hard-one and the sampled path the same noise, and as many options as they draw."""
    samples = {
        how: gumbel_softmax(jax.random.key(3), ALPHA, relaxation=how, num_selected=NUM_SELECTED)
        for how in ("soft", "hard", "hard-one", "path")
    }
    for name in ALPHA:
        order = np.argsort(-np.asarray(samples["soft"][name]), axis=1)
        for how, count in {
            "hard": NUM_SELECTED[name],
            "hard-one": 1,
            "path": NUM_SELECTED[name],
        }.items():
            expected = np.zeros(ALPHA[name].shape)
            np.put_along_axis(expected, order[:, :count], 1, axis=1)
            np.testing.assert_array_equal(samples[how][name], expected)


def test_inputs_have_a_relaxation_of_their_own():
    alpha = {"ops": jnp.zeros((2, 3)), "inputs_2": jnp.zeros((1, 4))}
    settings = {"num_selected": {"ops": 1, "inputs_2": 2}}
    key = jax.random.key(0)
    soft, hard = (
        gumbel_softmax(key, alpha, relaxation=how, **settings) for how in ("soft", "hard")
    )
    for of_ops, of_inputs in (("soft", "hard"), ("hard", "soft")):
        found = gumbel_softmax(
            key, alpha, relaxation=of_ops, input_relaxation=of_inputs, **settings
        )
        expected = {"soft": soft, "hard": hard}
        np.testing.assert_array_equal(found["ops"], expected[of_ops]["ops"])
        np.testing.assert_array_equal(found["inputs_2"], expected[of_inputs]["inputs_2"])


@pytest.mark.parametrize("norm", NORM_MODES)
def test_supernet_as_a_function(norm):
    """In mode frozen with the statistics of the reference at the parameters closed over."""
    supernet = Toy().supernet(4, NetworkSpec(norm=norm))
    inputs, reference = random_batch(0).inputs, random_batch(1, size=6).inputs
    weights = gumbel_softmax(jax.random.key(0), Toy().init_alpha())
    params = init_params(jax.random.key(1), supernet, inputs, weights)
    apply_fn = close_over(supernet, params, weights, norm=norm, reference=reference)
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    for theta in (params, moved):
        variables = {"params": theta}
        if norm == "frozen":
            _, statistics = supernet.apply(
                {"params": params}, reference, weights, mutable=["batch_stats"]
            )
            variables |= statistics
        expected = supernet.apply(variables, inputs, weights)
        np.testing.assert_allclose(apply_fn(theta, inputs), expected, rtol=1e-6)
    single, joint = apply_fn(params, inputs[:1]), apply_fn(params, inputs)[:1]
    assert np.allclose(single, joint, rtol=1e-4, atol=1e-5) == (norm != "batch")


def test_frozen_statistics_are_constants():
    """Not so as `close_over` were to differentiate them: through theta, or through the weights."""
    supernet = Toy().supernet(4, NetworkSpec(norm="frozen"))
    inputs, reference = random_batch(0).inputs, random_batch(1).inputs
    alpha = random_like(2, Toy().init_alpha())
    params = init_params(jax.random.key(1), supernet, inputs, alpha)
    _, statistics = supernet.apply({"params": params}, reference, alpha, mutable=["batch_stats"])

    def loss(params, alpha):
        apply_fn = close_over(supernet, params, alpha, norm="frozen", reference=reference)
        return jnp.sum(jnp.square(apply_fn(params, inputs)))

    def with_constants(params, alpha):
        outputs = supernet.apply({"params": params, **statistics}, inputs, alpha)
        return jnp.sum(jnp.square(outputs))

    actual, desired = (jax.grad(f, argnums=(0, 1))(params, alpha) for f in (loss, with_constants))
    jax.tree.map(
        lambda a, d: np.testing.assert_allclose(a, d, rtol=1e-4, atol=1e-5), actual, desired
    )


def test_parameters_follow_from_the_key():
    supernet, inputs = Toy().supernet(4), random_batch(0).inputs
    first, same, other = (
        init_params(jax.random.key(seed), supernet, inputs, Toy().init_alpha())
        for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.all(a != b)), first, other)))


def test_without_a_cpu_the_device_in_use_draws(monkeypatch):
    """As where JAX_PLATFORMS=cuda leaves it out, and inside of a program."""
    supernet, inputs, alpha = Toy().supernet(4), random_batch(0).inputs, Toy().init_alpha()

    def drawn(key):
        return init_params_on_host(key, supernet, inputs, alpha)

    on_host = drawn(jax.random.key(0))
    expected = init_params(jax.random.key(0), supernet, inputs, alpha)

    def no_such(backend=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", no_such)
    for found in (on_host, drawn(jax.random.key(0)), jax.jit(drawn)(jax.random.key(0))):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


TWO_DEVICES = """
import jax
from helpers import Toy, random_batch
from nasi_jax.search import relaxation

host, other = jax.devices()
draw, drawn_on = relaxation.init_params, []
def watched(*arguments):
    drawn_on.append(jax.config.jax_default_device)
    return draw(*arguments)
relaxation.init_params = watched
with jax.default_device(other):
    supernet, inputs, alpha = Toy().supernet(4), random_batch(0).inputs, Toy().init_alpha()
    params = relaxation.init_params_on_host(jax.random.key(0), supernet, inputs, alpha)
assert drawn_on == [host], drawn_on
assert {device for leaf in jax.tree.leaves(params) for device in leaf.devices()} == {other}
"""


def test_the_host_draws_for_the_device_in_use():
    process = on_devices(2, TWO_DEVICES)
    assert process.returncode == 0, process.stderr
