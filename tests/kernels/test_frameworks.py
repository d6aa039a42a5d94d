"""Models of flax.linen, flax.nnx and equinox against dense Jacobians and counts by hand.

With JAX's programs read, and where they cannot be read.
"""

import functools

import attention
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import INDEPENDENT, cotangents, jacobian
from networks import inputs as images
from networks import params as arrays

from nasi_jax.cells import search_space
from nasi_jax.kernels import (
    PROXIES,
    flops,
    interpreter,
    multiply_adds,
    ntk,
    ntk_trace,
    num_params,
    random_cotangent_estimate,
    squared_gradient_norms,
)
from nasi_jax.kernels.modules import scan_axes
from nasi_jax.kernels.proxies.proxy import for_norm, norm_of
from nasi_jax.kernels.tap import tapped
from nasi_jax.search import close_over, init_params
from nasi_jax.types import Batch, NetworkSpec


def key():
    return jax.random.key(0)


@pytest.fixture
def others_rules():
    """JAX's own settings: flax and equinox promote dtypes and ranks."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def make_unreadable(monkeypatch):
    """From now on JAX writes its programs in a form that is not known here."""

    def refuse():
        raise interpreter.UnreadableProgram("nothing")

    monkeypatch.setattr(interpreter, "check", refuse)


@pytest.fixture
def unreadable(monkeypatch):
    """JAX writes its programs in a form that is not known here."""
    make_unreadable(monkeypatch)


@pytest.fixture(params=["read", "unread"])
def reading(request):
    """Once with programs read, and once where they cannot be."""
    if request.param == "unread":
        request.getfixturevalue("unreadable")
    return request.param


def batch():
    inputs = attention.inputs()
    return Batch(inputs, jnp.arange(len(inputs)) % attention.OUTPUTS)


def dense_rows(apply_fn, params):
    jitted = jax.jit(jax.jacrev(apply_fn))(params, batch().inputs)
    leaves = jax.tree.leaves(jitted)
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)


@pytest.mark.usefixtures("others_rules")
@pytest.mark.parametrize("name", attention.MODELS)
def test_attention_against_its_jacobian(name, reading):
    apply_fn, params = attention.MODELS[name]()
    rows = dense_rows(apply_fn, params)
    kernel = jax.jit(lambda p, x: ntk(apply_fn, p, x))(params, batch().inputs)
    dense = np.einsum("bkp,clp->bkcl", rows, rows)
    np.testing.assert_allclose(kernel, dense, rtol=1e-9, atol=1e-9 * np.max(dense))

    trace = jax.jit(lambda p, b: ntk_trace(key(), apply_fn, p, b))(params, batch())
    np.testing.assert_allclose(trace, np.sum(rows**2), rtol=1e-9)

    directions = np.random.default_rng(2).normal(size=(3, 2, attention.OUTPUTS))
    norms = jax.jit(lambda p, x: squared_gradient_norms(apply_fn, p, x, jnp.asarray(directions)))
    expected = np.sum(np.einsum("bmk,bkp->bmp", directions, rows) ** 2, axis=-1)
    np.testing.assert_allclose(norms(params, batch().inputs), expected, rtol=1e-9)

    probes = jax.jit(lambda p, b: random_cotangent_estimate(key(), apply_fn, p, b, num_probes=64))(
        params, batch()
    )
    assert abs(probes.value - np.sum(rows**2)) < 5 * probes.standard_error


TOKENS_THROUGH = attention.FEATURES * (4 * attention.FEATURES + 2 * attention.HIDDEN)
"""Products of a token: four projections, and the two layers behind them."""


@pytest.mark.usefixtures("others_rules")
@pytest.mark.parametrize("name", attention.MODELS)
def test_counts_of_attention(name, reading):
    apply_fn, params = attention.MODELS[name]()
    if name != "linen" and reading == "unread":
        with pytest.raises(interpreter.UnreadableProgram, match="cannot read"):
            flops(key(), apply_fn, params, batch())
        return
    expected = attention.TOKENS * TOKENS_THROUGH + attention.FEATURES * attention.OUTPUTS
    assert multiply_adds(apply_fn, params, batch().inputs) == expected
    np.testing.assert_allclose(flops(key(), apply_fn, params, batch()), expected, rtol=1e-6)
    # The bias of the keys adds the same to all scores of a token, which the softmax takes away.
    # In floating point a derivative of about 1e-18 is left of it, so that it counts or not.
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    counted = float(num_params(key(), apply_fn, params, batch()))
    assert counted in (size, size - attention.FEATURES)


@pytest.mark.usefixtures("x64", "unreadable")
@pytest.mark.parametrize("name", INDEPENDENT)
def test_norms_by_gradients(name):
    """Of every kind of layer, as `test_norms` has them where programs are read."""
    function, args = INDEPENDENT[name], (arrays(), images(), cotangents())
    norms = jax.jit(lambda *args: squared_gradient_norms(function, *args))(*args)
    rows = np.einsum("bmk,bkp->bmp", args[2], jacobian(function, *args[:2]))
    np.testing.assert_allclose(norms, np.sum(rows**2, axis=-1), rtol=1e-10)


SPACES = ("nasbench201", "darts", "nasbench1shot1-1", "nasbench1shot1-2", "nasbench1shot1-3")
READ_NOWHERE_ELSE = ("synflow",)
"""What has no other way than reading the program."""


def drawn(supernet, inputs, weights):
    """Parameters of the shapes of a supernet's: to draw its own takes seconds to compile."""
    rng = np.random.default_rng(4)

    def draw(like):
        fan_in = max(1, int(np.prod(like.shape[-4:-1])))
        return jnp.asarray(rng.normal(size=like.shape) * np.sqrt(2 / fan_in), like.dtype)

    init = functools.partial(init_params, supernet=supernet, inputs=inputs, weights=weights)
    return jax.tree.map(draw, jax.eval_shape(init, key()))


def scores(space, names, norm="frozen"):
    """Of one architecture in its supernet, by name; compiled together where the norm is one."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)
    data = Batch(inputs, jnp.array([0, 1, 2, 1]))
    weights = space.one_hot(space.sample(jax.random.key(3)))
    found = {}
    for mode in (norm, "none"):
        together = [name for name in names if norm_of(PROXIES[name], norm) == mode]
        supernet = space.supernet(3, NetworkSpec(norm=mode), one_hot=True)
        params = drawn(supernet, inputs, weights)

        def score(params, inputs, mode=mode, supernet=supernet, together=together):
            apply_fn = close_over(supernet, params, weights, norm=mode, reference=inputs)
            batch = data._replace(inputs=inputs)
            return {
                name: for_norm(PROXIES[name], mode)(key(), apply_fn, params, batch)
                for name in together
            }

        if together:
            found |= jax.jit(score).lower(params, inputs).compile()(params, inputs)
    return {name: float(value) for name, value in found.items()}


def few_and_all(names):
    """The first of them, and the others as slow tests."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize("name", few_and_all(SPACES))
def test_our_networks_where_programs_are_unreadable(name, monkeypatch):
    fields = {"ops": ("none", "nor_conv_3x3", "avg_pool_3x3")} if name == "nasbench201" else {}
    space = search_space(name, init_channels=4, num_cells=3 if name == "darts" else 1, **fields)
    names = ("num_params", "flops", "grad_norm", "zico", "fisher", "naswot", "per_example_gradient")
    read = scores(space, names)
    make_unreadable(monkeypatch)
    with pytest.warns(UserWarning, match="ReLUs are found by their name"):
        unread = scores(space, names)
    for proxy, value in read.items():
        np.testing.assert_allclose(unread[proxy], value, rtol=1e-5, err_msg=proxy)
    with pytest.raises(interpreter.UnreadableProgram, match="cannot read"):
        scores(space, READ_NOWHERE_ELSE)


class Stack(nn.Module):
    """A convolution, then the same dense layer thrice in a scan, then one that it shares."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, feature_group_count=2, name="conv")(x))
        x = jnp.mean(x, axis=(1, 2))
        scan = nn.scan(_Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="stack")(x, None)
        twice = nn.Dense(4, name="twice")
        return nn.Dense(3, name="head")(twice(nn.relu(twice(x))))


class _Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, name="dense")(x)), None


def test_a_flax_module_with_scans_groups_and_a_shared_layer(reading):
    model = Stack()
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 4)), jnp.float32)
    variables = model.init(key(), inputs)
    convolution = 3 * 3 * (3 * 3 * 2) * 4
    expected = convolution + 3 * 16 + 2 * 16 + 12
    found = flops(key(), model.apply, variables, Batch(inputs, jnp.arange(4) % 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    axes = scan_axes(model.apply, variables, inputs)
    sliced = jax.tree.map(lambda leaf: False, variables)
    sliced["params"]["stack"] = jax.tree.map(lambda leaf: True, sliced["params"]["stack"])
    assert [bool(number) for number in axes] == jax.tree.leaves(sliced)
    if reading == "read":
        assert multiply_adds(model.apply, variables, inputs) == expected
    else:  # a scan may be traced several times
        with pytest.raises(interpreter.UnreadableProgram):
            multiply_adds(model.apply, variables, inputs)


@pytest.mark.parametrize("proxy", ["naswot", "fisher"])
def test_relus_of_a_flax_module(proxy, monkeypatch):
    model = Stack()
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(4, 6, 6, 4)), jnp.float32)
    variables = model.init(key(), inputs)
    batch = Batch(inputs, jnp.arange(4) % 3)
    read = PROXIES[proxy](key(), model.apply, variables, batch)
    make_unreadable(monkeypatch)
    with pytest.warns(UserWarning, match="ReLUs are found by their name"):
        unread = PROXIES[proxy](key(), model.apply, variables, batch)
    np.testing.assert_allclose(unread, read, rtol=1e-5)


FLAGS = tuple(
    name
    for name in ("jax_scan3", "jax_remat3", "jax_custom_jvp3", "jax_custom_vjp3")
    if name in jax.config.values
)
"""How JAX is to write its programs one day, as far as the version at hand knows."""


@pytest.fixture
def flagged(request):
    """JAX with one of the flags on."""

    def switch(to):
        jax.config.update(request.param, to)
        jax.clear_caches()
        interpreter.check.cache_clear()

    switch(True)
    yield request.param
    switch(False)


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimized")
@pytest.mark.filterwarnings("ignore:ReLUs are found by their name")
@pytest.mark.parametrize("flagged", FLAGS, indirect=True)
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_the_same_scores_or_none_with_each_flag(name, flagged):
    """No score that is silently another one: JAX or we refuse, or it is the same."""
    space = search_space(name, init_channels=4, num_cells=3 if name == "darts" else 1)
    with_flag = {}
    for proxy in PROXIES:
        try:
            with_flag |= scores(space, [proxy])
        except (interpreter.UnreadableProgram, NotImplementedError) as refusal:
            assert str(refusal)
    jax.config.update(flagged, False)
    jax.clear_caches()
    interpreter.check.cache_clear()
    for proxy, value in scores(space, with_flag).items():
        np.testing.assert_allclose(with_flag[proxy], value, rtol=1e-4, err_msg=proxy)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="rules are whole from jax 0.11 on")
@pytest.mark.parametrize("flagged", ["jax_custom_vjp3"], indirect=True)
def test_rules_that_jax_breaks_are_refused(flagged):
    with pytest.raises(interpreter.UnreadableProgram, match=flagged):
        tapped(lambda array, cotangent: jnp.sum(cotangent), 0.0, jnp.ones(2))


class Custom(nn.Module):
    """A parameter of a name of its own, which a scan of the module's reads slice by slice."""

    @nn.compact
    def __call__(self, x):
        stack = self.param("stack", nn.initializers.ones, (3, 4, 4))
        state, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)
        return state


@pytest.mark.usefixtures("unreadable")
def test_what_flax_cannot_say_is_refused():
    inputs = jnp.ones((2, 4))
    variables = Custom().init(key(), inputs)
    assert scan_axes(Custom().apply, variables, inputs) is None
    for proxy in ("num_params", "grad_norm", "flops"):
        with pytest.raises(interpreter.UnreadableProgram):
            PROXIES[proxy](key(), Custom().apply, variables, Batch(inputs, jnp.zeros(2, jnp.int32)))


def test_relus_keep_their_names(unreadable):
    before = jax.nn.relu, nn.relu

    def fails(params, x):
        raise KeyError("within")

    with pytest.warns(UserWarning), pytest.raises(KeyError, match="within"):
        PROXIES["naswot"](key(), fails, {}, Batch(jnp.ones((2, 2)), jnp.zeros(2, jnp.int32)))
    assert (jax.nn.relu, nn.relu) == before


def test_an_operation_with_a_function_that_is_not_known_is_refused():
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()
    hidden = jax.shard_map(lambda x: x + 1, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(interpreter.UnreadableProgram, match="shard_map"):
        interpreter.intercept(hidden, lambda operation: None, jnp.ones(2))


def test_a_parameter_that_is_missing_is_refused():
    operation = interpreter.Operation("scan", {}, [], [], (), 1, list)
    with pytest.raises(interpreter.UnreadableProgram, match="scan without 'jaxpr'"):
        operation.read("jaxpr")
