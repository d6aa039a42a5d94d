"""The proxies of feature maps and gradients that were published since 2021, against NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_batch
from jax.ad_checkpoint import checkpoint_name

from nasi_jax.cells import search_space
from nasi_jax.kernels.blocks import block_outputs, features
from nasi_jax.kernels.proxies import az_nas
from nasi_jax.kernels.proxies.apd import apd
from nasi_jax.kernels.proxies.az_nas import expressivity, progressivity, trainability
from nasi_jax.kernels.proxies.epsinas import epsinas
from nasi_jax.kernels.proxies.gradsign import gradsign
from nasi_jax.kernels.proxies.intrain import intrain, participation_ratio
from nasi_jax.kernels.proxies.lswag import lswag
from nasi_jax.kernels.proxies.meco import meco
from nasi_jax.kernels.proxies.near import near
from nasi_jax.kernels.proxies.proxy import all_scores
from nasi_jax.kernels.proxies.swap import NUM_EXAMPLES, swap
from nasi_jax.kernels.proxies.vkdnw import vkdnw, vkdnw_fisher
from nasi_jax.kernels.proxies.zen import zen
from nasi_jax.kernels.trace import mean_loss
from nasi_jax.search import close_over, init_params
from nasi_jax.types import BLOCK, FEATURES, NORMALIZED, UNNORMALIZED, Batch, NetworkSpec

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"w0": (2, 5), "w1": (5, 5), "w2": (5, 7), "w3": (7, 3), "unused": (5, 3)}


def normalize(x):
    x = checkpoint_name(x, UNNORMALIZED)
    mean = jnp.mean(x, axis=(0, 1, 2), keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=(0, 1, 2), keepdims=True) + 1e-5)
    return checkpoint_name(y, NORMALIZED)


def network(params, x, norm=normalize):
    """A stem, a residual block, a block of stride 2, a head, and a layer that leads nowhere."""
    h0 = checkpoint_name(norm(x @ params["w0"]), BLOCK)
    h1 = checkpoint_name(h0 + norm(jax.nn.relu(h0) @ params["w1"]), BLOCK)
    h2 = checkpoint_name(norm(jax.nn.relu(h1)[:, ::2, ::2] @ params["w2"]), BLOCK)
    maps = checkpoint_name(jax.nn.relu(h2), FEATURES)
    nowhere = jnp.mean(norm(jax.nn.relu(h1 @ params["unused"])), axis=(1, 2))
    return jnp.mean(maps, axis=(1, 2)) @ params["w3"] + 0 * nowhere


def unnormalized(params, x):
    return network(params, x, norm=lambda x: x)


def problem(seed=0, size=6):
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    inputs = jnp.asarray(rng.normal(size=(size, 4, 4, 2)))
    return params, Batch(inputs, jnp.asarray(rng.integers(3, size=size), jnp.int32))


def compute(proxy, apply_fn, params, batch, **options):
    def score(key, params, inputs):
        return proxy(key, apply_fn, params, batch._replace(inputs=inputs), **options)

    return float(jax.jit(score)(jax.random.key(0), params, batch.inputs))


def normal(key, shape):
    return np.asarray(jax.random.normal(key, shape, jnp.float64))


class ByHand:
    """What the network computes, layer by layer, in NumPy."""

    def __init__(self, params, x):
        self.w = {name: np.asarray(value) for name, value in params.items()}
        self.x = np.asarray(x)
        self.convs, self.norms, self.sds = [], [], []
        self.h0 = self._norm(self.x @ self.w["w0"])
        self.a0 = np.maximum(self.h0, 0)
        self.n1 = self._norm(self.a0 @ self.w["w1"])
        self.h1 = self.h0 + self.n1
        self.a1 = np.maximum(self.h1, 0)
        self.h2 = self._norm(self.a1[:, ::2, ::2] @ self.w["w2"])
        self.maps = np.maximum(self.h2, 0)
        self.means = self.maps.mean(axis=(1, 2))
        self.logits = self.means @ self.w["w3"]

    def _norm(self, x):
        self.convs.append(x)
        self.sds.append(np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5))
        self.norms.append((x - x.mean(axis=(0, 1, 2))) / self.sds[-1])
        return self.norms[-1]

    def norm_pulled(self, number, g):
        """The gradient before normalization layer `number`, from that behind it."""
        y, axes = self.norms[number], (0, 1, 2)
        return (g - g.mean(axis=axes) - y * (g * y).mean(axis=axes)) / self.sds[number]


# AZ-NAS.


def entropies(params, shape, key):
    net = ByHand(params, normal(key, shape))
    found = []
    for outputs in (net.h0, net.h1, net.h2):
        rows = outputs.reshape(-1, outputs.shape[-1])
        eigenvalues = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
        p = eigenvalues / eigenvalues.sum()
        found.append(-np.sum(p * np.log(p + 1e-8)))
    return np.array(found)


def test_expressivity_and_progressivity():
    params, batch = problem()
    of_inputs, _ = jax.random.split(jax.random.key(0))
    expected = entropies(params, batch.inputs.shape, of_inputs)
    np.testing.assert_allclose(
        compute(expressivity, network, params, batch), expected.sum(), rtol=1e-9
    )
    np.testing.assert_allclose(
        compute(progressivity, network, params, batch), np.diff(expected).min(), rtol=1e-9
    )


def gain(into, out_of):
    matrix = np.einsum("bhwi,bhwo->io", into, out_of) / np.prod(out_of.shape[:3])
    s = np.linalg.svd(matrix, compute_uv=False).max()
    return 2 - s - 1 / (s + 1e-6)


def signs_of(key, *arrays):
    keys = jax.random.split(key, len(arrays))
    return [
        np.asarray(jax.random.rademacher(key, array.shape, jnp.float64))
        for key, array in zip(keys, arrays, strict=True)
    ]


def test_trainability():
    params, batch = problem()
    of_inputs, of_signs = jax.random.split(jax.random.key(0))
    net = ByHand(params, normal(of_inputs, batch.inputs.shape))
    _, g1, g2 = signs_of(of_signs, net.h0, net.h1, net.h2)
    into_h0 = g1 + (net.norm_pulled(1, g1) @ net.w["w1"].T) * (net.h0 > 0)
    strided = net.norm_pulled(2, g2) @ net.w["w2"].T
    into_h1 = np.zeros_like(net.h1)
    into_h1[:, ::2, ::2] = strided
    into_h1 *= net.h1 > 0
    # Space to depth: of each 2x2 window all four positions.
    deep = np.concatenate([into_h1[:, r::2, c::2] for r in (0, 1) for c in (0, 1)], axis=-1)
    expected = np.mean([gain(into_h0, g1), gain(deep, g2)])
    np.testing.assert_allclose(compute(trainability, network, params, batch), expected, rtol=1e-9)


def test_trainability_of_blocks_that_read_two_others_and_of_an_identity():
    """What a block sends to the one before the last does not count."""
    params, batch = problem()

    def chain(params, x, last=0.0):
        h0 = checkpoint_name(x @ params["w0"], BLOCK)
        h1 = checkpoint_name(jnp.tanh(h0 @ params["w1"]), BLOCK)
        h2 = checkpoint_name(h1 + last * jnp.sin(h0) + last * h1, BLOCK)
        return jnp.mean(h2, axis=(1, 2))

    assert compute(trainability, chain, params, batch) == -np.inf

    of_inputs, of_signs = jax.random.split(jax.random.key(0))
    h0 = normal(of_inputs, batch.inputs.shape) @ np.asarray(params["w0"])
    w1 = np.asarray(params["w1"])
    _, g1, g2 = signs_of(of_signs, h0, h0, h0)
    into_h0 = (g1 * (1 - np.tanh(h0 @ w1) ** 2)) @ w1.T
    expected = np.mean([gain(into_h0, g1), gain(1.5 * g2, g2)])
    result = compute(trainability, functools.partial(chain, last=0.5), params, batch)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_what_is_computed_together_is_what_is_computed_alone(monkeypatch):
    """From the same key, and once for each function."""
    params, batch = problem()
    counted, outputs_of = [], az_nas.block_outputs

    def block_outputs(apply_fn, *args):
        counted.append(apply_fn)
        return outputs_of(apply_fn, *args)

    monkeypatch.setattr(az_nas, "block_outputs", block_outputs)
    trio = {each.__name__: each for each in (expressivity, progressivity, trainability)}

    def scores_of(proxies, **others):
        def scores(params, batch):
            return all_scores(key_of, apply_fns, proxies, params, batch)

        def key_of(name):
            return jax.random.key(len(name))

        apply_fns = dict.fromkeys(proxies, network) | others
        counted.clear()
        return jax.jit(scores)(params, batch), len(counted)

    def total(key, apply_fn, params, batch):
        return jnp.sum(apply_fn(params, batch.inputs))

    together, num_calls = scores_of({"total": total, **trio})
    for name, proxy in trio.items():
        alone, num_alone = scores_of({name: proxy})
        assert alone[name] == pytest.approx(float(together[name]), rel=1e-9)
        assert num_alone == num_calls > 0
    assert together.keys() == {"total", *trio} and len({*map(float, together.values())}) == 4
    apart, twice = scores_of(trio, expressivity=unnormalized)
    assert twice == 2 * num_calls
    assert apart["trainability"] == together["trainability"]
    assert apart["expressivity"] != together["expressivity"]


@pytest.mark.parametrize("proxy", [expressivity, progressivity, trainability])
def test_the_derivative_goes_through_all_blocks(proxy):
    """In the first layer, from which on normalization hands on every change."""
    params, batch = problem()
    direction = jnp.asarray(np.random.default_rng(1).normal(size=SHAPES["w0"]))

    def score(step):
        moved = {**params, "w0": params["w0"] + step * direction}
        return proxy(jax.random.key(0), network, moved, batch)

    slope = jax.jit(jax.grad(score))(0.0)
    above, below = (jax.jit(score)(step) for step in (1e-5, -1e-5))
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-5)


def test_blocks_in_every_space():
    """The stem and each cell, reductions between stages too; the features behind the last."""
    cases = {"nasbench201": (3, 12), "nasbench1shot1-2": (2, 7), "darts": (5, 6)}
    for name, (num_cells, count) in cases.items():
        space, batch = search_space(name, init_channels=2, num_cells=num_cells), random_batch(0)
        supernet = space.supernet(3, NetworkSpec(), one_hot=True)
        weights = space.one_hot(space.sample(jax.random.key(0)))

        def trace(key, supernet=supernet, weights=weights, batch=batch):
            params = init_params(key, supernet, batch.inputs, weights)
            apply_fn = close_over(supernet, params, weights, norm="batch")
            blocks = block_outputs(apply_fn, params, batch.inputs)
            return blocks, features(apply_fn, params, batch.inputs)

        blocks, maps = jax.eval_shape(trace, jax.random.key(0))
        assert len(blocks) == count
        assert blocks[0].shape[1:3] == batch.inputs.shape[1:3]
        assert maps.shape[1:3] == blocks[-1].shape[1:3] == (2, 2)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (expressivity, "must name the outputs of its blocks"),
        (epsinas, "must name the feature maps"),
        (zen, "must name the feature maps"),
        (apd, "must have a layer that is normalized"),
    ],
)
def test_what_has_no_names_is_refused(proxy, message):
    params, batch = problem()
    with pytest.raises(ValueError, match=message):
        compute(proxy, lambda params, x: jax.nn.relu(x[:, 0, 0] @ params["w0"]), params, batch)


# The others.


def test_meco():
    params, batch = problem()
    of_inputs, _ = jax.random.split(jax.random.key(0))
    image = normal(of_inputs, (1, *batch.inputs.shape[1:]))
    net = ByHand(params, image)

    def smallest(outputs, count=None):
        rows = outputs[0].reshape(-1, outputs.shape[-1]).T
        with np.errstate(invalid="ignore"):
            matrix = np.nan_to_num(np.corrcoef(rows if count is None else rows[:count]))
        scale = 1 if count is None else len(rows) / count
        return scale * np.linalg.eigvalsh(matrix)[0]

    layers = [*net.convs, *net.norms, net.a0, net.a1, net.maps]
    expected = sum(smallest(layer) for layer in layers)
    np.testing.assert_allclose(compute(meco, network, params, batch), expected, atol=1e-9)
    expected = sum(smallest(layer, 2) for layer in layers)
    assert expected > 0.1
    result = compute(meco, network, params, batch, num_channels=2)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_near():
    params, batch = problem()
    net = ByHand(params, batch.inputs)

    def rank(outputs):
        channels = outputs.shape[-1]
        singular = np.linalg.svd(outputs.reshape(-1, channels)[:channels], compute_uv=False)
        p = singular / singular.sum()
        return np.exp(-np.sum(p[p > 0] * np.log(p[p > 0])))

    layers = [*net.convs, *net.norms, net.a0, net.a1, net.maps, net.logits]
    expected = sum(rank(layer) for layer in layers)
    np.testing.assert_allclose(compute(near, network, params, batch), expected, rtol=1e-9)


def kernels_drawn(key, params):
    """Standard normal kernels, as the proxies draw them."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def patterns(net):
    rows = [np.moveaxis(active > 0, 0, -1).reshape(-1, len(active)) for active in net]
    return len(np.unique(np.concatenate(rows), axis=0))


def test_swap():
    params, batch = problem(size=NUM_EXAMPLES + 2)
    of_kernels, _ = jax.random.split(jax.random.key(0))
    net = ByHand(kernels_drawn(of_kernels, params), batch.inputs[:NUM_EXAMPLES])
    expected = patterns([net.a0, net.a1, net.maps])
    assert expected > 100
    assert compute(swap, network, params, batch) == expected

    parameters = sum(math.prod(SHAPES[name]) for name in ("w0", "w1", "w2", "w3")) / 1000
    result = compute(swap, network, params, batch, center=0.5, width=0.4)
    regularized = expected * np.exp(-((parameters - 0.5) ** 2) / 0.4)
    np.testing.assert_allclose(result, regularized, rtol=1e-9)
    with pytest.raises(ValueError, match="come together"):
        compute(swap, network, params, batch, center=0.5)


@pytest.mark.parametrize("num_entries", [3, 16])
def test_vkdnw(num_entries):
    """With 16 entries there are fewer layers than that."""
    params, batch = problem()
    of_inputs, _ = jax.random.split(jax.random.key(0))
    x = normal(of_inputs, batch.inputs.shape)
    live = ["w0", "w1", "w2", "w3"]  # in the order of the leaves
    chosen = [live[number * 4 // 3] for number in range(3)] if num_entries == 3 else live
    step = 1e-6

    def logits(name=None, sign=0):
        moved = {key: np.array(value) for key, value in params.items()}
        if name is not None:
            moved[name].flat[0] += sign * step
        return np.asarray(unnormalized(moved, jnp.asarray(x)))

    jacobian = np.stack(
        [(logits(name, 1) - logits(name, -1)) / (2 * step) for name in chosen], axis=-1
    )
    powers = np.exp(logits())
    q = 0.95 * powers / powers.sum(axis=1, keepdims=True) + 0.05 / 3
    code = fisher = 0
    for jacobian_n, q_n in zip(jacobian, q, strict=True):
        matrix = np.diag(q_n) - np.outer(q_n, q_n)
        # The factor of a matrix that is singular: rank K - 1.
        factor = np.zeros((3, 3))
        factor[:, :2] = np.linalg.cholesky(matrix + 1e-13 * np.eye(3))[:, :2]
        np.testing.assert_allclose(factor @ factor.T, matrix, atol=1e-9)
        rows = factor @ jacobian_n
        code = code + rows.T @ rows / len(x)
        fisher = fisher + jacobian_n.T @ matrix @ jacobian_n / len(x)
    for proxy, information in ((vkdnw, code), (vkdnw_fisher, fisher)):
        singular = np.linalg.svd(information, compute_uv=False)
        deciles = np.quantile(singular, np.arange(1, 10) / 10)
        shares = deciles / deciles.sum()
        entropy = -np.sum(shares * np.log(shares + 1e-10))
        result = compute(proxy, unnormalized, params, batch, num_entries=num_entries)
        np.testing.assert_allclose(result - 4, entropy / np.log(9), rtol=1e-5)
    assert np.abs(code - fisher).max() > 0.01 * np.abs(fisher).max()
    with pytest.raises(ValueError, match="num_entries"):
        compute(vkdnw, unnormalized, params, batch, num_entries=1)


@pytest.mark.parametrize("variance", ["running", "batch"])
def test_zen(variance):
    params, batch = problem()
    of_kernels, of_inputs, of_changes, _ = jax.random.split(jax.random.key(0), 4)
    drawn = kernels_drawn(of_kernels, params)
    x = normal(of_inputs, batch.inputs.shape)
    y = x + 0.01 * normal(of_changes, batch.inputs.shape)
    one, other = ByHand(drawn, x), ByHand(drawn, y)
    expected = np.log(np.abs(one.maps - other.maps).sum(axis=(1, 2, 3)).mean())
    for before, after in zip(one.convs, other.convs, strict=True):
        v = before.var(axis=(0, 1, 2))
        if variance == "running":
            v = 0.81 + 0.09 * v + 0.1 * after.var(axis=(0, 1, 2))
        expected += np.log(np.sqrt(v.mean()))
    result = compute(zen, network, params, batch, variance=variance)
    # The running variance takes var(y) for var(x).
    np.testing.assert_allclose(result, expected, atol=2e-3 if variance == "running" else 1e-9)


def test_epsinas():
    params, batch = problem()
    values = (1e-3, 3.0)  # the first of them below what is added to a variance
    found = []
    for value in values:
        constant = {name: np.full(shape, value) for name, shape in SHAPES.items()}
        means = ByHand(constant, batch.inputs).means.ravel()
        scaled = (means - means.min()) / (means.max() - means.min())
        scaled[scaled < 1e-12] = np.nan
        found.append(scaled)
    expected = np.nanmean(np.abs(found[0] - found[1])) / np.nanmean(found)
    result = compute(epsinas, network, params, batch, values=values)
    assert expected > 1e-4
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_gradsign():
    params, batch = problem()

    def gradient(image, label):
        def loss(params):
            return mean_loss(network(params, image[None]), label[None], "cross_entropy")

        return jax.grad(loss)(params)

    signs = [jax.tree.map(np.sign, gradient(*example)) for example in zip(*batch, strict=True)]
    expected = sum(np.abs(np.sum([sign[name] for sign in signs], axis=0)).sum() for name in SHAPES)
    assert compute(gradsign, network, params, batch) == expected > 0


def cross_entropy_gradient(params, inputs, labels):
    def loss(params):
        return mean_loss(network(params, jnp.asarray(inputs)), labels, "cross_entropy")

    return {name: np.asarray(value) for name, value in jax.grad(loss)(params).items()}


def test_intrain():
    params, batch = problem()
    of_inputs, of_labels = jax.random.split(jax.random.key(0))
    x = normal(of_inputs, batch.inputs.shape)
    labels = jax.random.randint(of_labels, (len(x),), 0, 3)
    gamma = 0.0
    for outputs in ByHand(params, x).convs:
        c = np.cov(outputs.reshape(-1, outputs.shape[-1]).T, bias=True)
        c += 1e-10 * np.eye(len(c))
        gamma += np.log(np.trace(c) ** 2 / np.trace(c @ c))
    result = compute(participation_ratio, network, params, batch)
    np.testing.assert_allclose(result, gamma, rtol=1e-9)
    evenness = sum(
        min(1, np.std(g) / (np.abs(g).max() + 1e-10))
        for g in cross_entropy_gradient(params, x, labels).values()
    )
    expected = gamma * (1 + evenness) / np.log(4)
    np.testing.assert_allclose(compute(intrain, network, params, batch), expected, rtol=1e-9)


def test_lswag():
    params, batch = problem()
    parts = [
        cross_entropy_gradient(params, *part)
        for part in zip(np.split(batch.inputs, 2), np.split(batch.labels, 2), strict=True)
    ]
    steadiness = 0.0
    for name in ("w0", "w1", "w2", "w3"):
        deviations = np.std([np.abs(part[name]) for part in parts], axis=0)
        steadiness += np.log(np.sum(1 / deviations[deviations > 0]))
    net = ByHand(params, batch.inputs)
    expected = steadiness * patterns([net.a0, net.a1, net.maps])
    np.testing.assert_allclose(compute(lswag, network, params, batch), expected, rtol=1e-9)


def test_apd():
    params, batch = problem()
    net = ByHand(params, batch.inputs)
    ranks = 0.0
    for outputs in net.norms:
        rows = outputs.reshape(-1, outputs.shape[-1])
        ranks += np.linalg.norm(rows) ** 2 / np.linalg.norm(rows, 2) ** 2
    densities = sum(
        np.abs(net.w[name]).sum() / np.linalg.norm(net.w[name]) for name in ("w0", "w1", "w2", "w3")
    )
    np.testing.assert_allclose(compute(apd, network, params, batch), ranks * densities, rtol=1e-9)
