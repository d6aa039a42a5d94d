"""Thousands of examples: in chunks, over the devices of a mesh, and block by block on the host."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import on_devices
from networks import INDEPENDENT, batch_normalized, inputs, jacobian, params

from nasi_jax.kernels import lanczos_spectrum, ntk, ntk_on_host, ntk_trace
from nasi_jax.kernels.ntk import Contraction
from nasi_jax.types import Batch

KEY = jax.random.key(0)


def mlp(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


MLP = {"first": (12, 16), "second": (16, 3)}


def kernel(params, x, **options):
    return ntk(mlp, params, x, coupled=False, **options)


def kernel_over_outputs(params, x, **options):
    return kernel(params, x, contraction="outputs", **options)


def trace(params, x, **options):
    batch = Batch(x, jnp.zeros(len(x), jnp.int32))
    return ntk_trace(KEY, mlp, params, batch, coupled=False, **options)


def lanczos(params, x, **options):
    return lanczos_spectrum(KEY, mlp, params, x, num_steps=4, num_probes=1, **options)[:2]


def temporaries(function, size, chunk_size):
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in MLP.items()}
    compute = jax.jit(functools.partial(function, chunk_size=chunk_size))
    lowered = compute.lower(shapes, jax.ShapeDtypeStruct((size, 12), jnp.float32))
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("function", [kernel, kernel_over_outputs, trace])
def test_memory_does_not_grow_with_the_examples(function):
    """32 examples at a time, of 1,000 and of 4,000."""
    few, many = (temporaries(function, size, 32) for size in (1_000, 4_000))
    assert many <= few + 1_024
    assert temporaries(function, 1_000, 128) > 1.5 * few


def test_memory_of_lanczos_is_that_of_its_vectors():
    """Twice the 5 vectors of B K numbers and 4 more, not the 12 numbers and more of activations."""
    few, many = (temporaries(lanczos, size, 32) for size in (1_000, 4_000))
    assert many - few <= 3_000 * 3 * 4 * 14


@pytest.mark.parametrize("contraction", get_args(Contraction))
@pytest.mark.parametrize("two", [False, True])
def test_the_kernel_on_the_host_is_the_whole(two, contraction, x64, tmp_path):
    """In chunks of 3 of 7 examples, and of 5 others; into a file too."""
    function, tree = INDEPENDENT["own"], params()
    first, second = (np.asarray(inputs(seed, size)) for seed, size in ((0, 7), (1, 5)))
    sets = (first, second) if two else (first,)
    labels = {"labels": np.arange(7) % 3, "other_labels": np.arange(5) % 3 if two else None}
    options = {"contraction": contraction, **labels}
    whole = ntk(function, tree, *sets, coupled=False, **options)
    found = ntk_on_host(function, tree, *sets, chunk_size=3, **options)
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9 * np.max(whole))
    out = np.lib.format.open_memmap(tmp_path / "kernel.npy", "w+", np.float32, whole.shape)
    assert ntk_on_host(function, tree, *sets, chunk_size=9, out=out, **options) is out
    np.testing.assert_allclose(np.load(tmp_path / "kernel.npy"), whole, rtol=1e-6, atol=1e-6)


def test_one_program_computes_all_blocks():
    """A function is traced as often for 1 block as for 6."""

    def times_traced(chunk_size):
        traced = []

        def function(params, x):
            traced.append(None)
            return INDEPENDENT["plain"](params, x)

        ntk_on_host(function, params(), inputs(size=6), chunk_size=chunk_size)
        return len(traced)

    assert times_traced(2) == times_traced(6)


def test_mirrored_blocks_are_computed_once():
    """Of 9 blocks 6, each of which is written twice, as it is and mirrored."""
    written = []

    class Recorded(np.ndarray):
        def __setitem__(self, place, block):
            written.append(place)
            super().__setitem__(place, block)

    out = np.empty((6, 3, 6, 3)).view(Recorded)
    ntk_on_host(INDEPENDENT["plain"], params(), inputs(size=6), chunk_size=2, out=out)
    assert len(written) == 2 * 6


@pytest.mark.parametrize("chunk_size", [1, 2, 9])
def test_lanczos_in_chunks(chunk_size, x64):
    compute = functools.partial(lanczos_spectrum, KEY, INDEPENDENT["own"], params(), inputs())
    whole = compute(num_steps=5, num_probes=2)
    chunked = compute(num_steps=5, num_probes=2, chunk_size=chunk_size)
    np.testing.assert_allclose(chunked.nodes, whole.nodes, rtol=1e-9)
    np.testing.assert_allclose(chunked.weights, whole.weights, rtol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_of_the_trace(chunk_size, x64):
    """The last one of 2 counts no example of 3 twice."""
    batch, expected = (
        Batch(inputs(), jnp.arange(3)),
        jacobian(INDEPENDENT["own"], params(), inputs()),
    )
    found = ntk_trace(KEY, INDEPENDENT["own"], params(), batch, chunk_size=chunk_size)
    np.testing.assert_allclose(found, np.sum(expected**2), rtol=1e-10)


def test_refusals():
    function, tree, x = INDEPENDENT["relu"], params(), inputs()
    batch = Batch(x, jnp.arange(3))
    for chunk_size in (0, -1):
        for compute in (
            functools.partial(ntk, function, tree, x),
            functools.partial(ntk_on_host, function, tree, x),
            functools.partial(ntk_trace, KEY, function, tree, batch),
            functools.partial(lanczos_spectrum, KEY, function, tree, x, num_steps=2),
        ):
            with pytest.raises(
                ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"
            ):
                compute(chunk_size=chunk_size)
    with pytest.raises(ValueError, match=r"kernel's shape \(3, 3, 3, 3\), got \(3, 3\)"):
        ntk_on_host(function, tree, x, chunk_size=2, out=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"batch statistics.*use ntk with coupled=True"):
        ntk_on_host(batch_normalized, tree, x, chunk_size=2)
    mesh = jax.make_mesh((1,), ("data",))
    lanczos = functools.partial(lanczos_spectrum, KEY, batch_normalized, tree, x, num_steps=2)
    for options in ({"chunk_size": 2}, {"mesh": mesh}):
        with pytest.raises(ValueError, match=r"batch statistics.*leave out chunk_size and mesh"):
            lanczos(**options)
    for compute in (
        functools.partial(ntk, batch_normalized, tree, x),
        functools.partial(ntk_trace, KEY, batch_normalized, tree, batch),
    ):
        with pytest.raises(ValueError, match="mesh splits the batch, and coupled=True needs"):
            compute(coupled=True, mesh=mesh)
        with pytest.raises(ValueError, match="mesh must have the axis 'data', got \\('batch',\\)"):
            compute(coupled=False, mesh=jax.make_mesh((1,), ("batch",)))


EIGHT_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from networks import INDEPENDENT, inputs, jacobian, params

from nasi_jax.kernels import lanczos_spectrum, ntk, ntk_on_host, ntk_trace
from nasi_jax.types import Batch

jax.config.update("jax_enable_x64", True)
KEY, SIZE = jax.random.key(0), 16


def own(params, x):
    return INDEPENDENT["own"](params, x)


def recurrent(params, x):
    # A derivative of one's own, and a scan that begins with zeros.
    rows = jnp.moveaxis(x.reshape(len(x), 6, 12), 1, 0)
    kernel = params["w"].reshape(12, 6)
    step = lambda state, row: (jnp.tanh(state + row @ kernel), None)
    state, _ = jax.lax.scan(step, jnp.zeros((len(x), 6), x.dtype), rows)
    return state[:, :3] + own(params, x)


def meshes():
    for count in (1, 2, 4, 8):
        yield count, Mesh(np.array(jax.devices()[:count]), ("data",))


def quantities(function, **options):
    def kernel(params, x):
        return ntk(function, params, x, coupled=False, **options)

    def trace(params, x):
        return ntk_trace(KEY, function, params, Batch(x, x), coupled=False, **options)

    def lanczos(params, x):
        return lanczos_spectrum(KEY, function, params, x, num_steps=4, num_probes=2, **options)[:2]

    return kernel, trace, lanczos


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(found, expected):
    return np.max(np.abs(flat(found) - flat(expected))) / np.max(np.abs(flat(expected)))


"""


def on_eight(script):
    process = on_devices(8, EIGHT_DEVICES + script)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_devices_agree_and_share_the_work():
    """To 1e-9 with one device and with the dense Jacobian; FLOPs a device fall as their number."""
    on_eight("""
tree, x = params(), inputs(size=SIZE)
rows = jacobian(own, tree, x)
single = [jax.jit(each)(tree, x) for each in quantities(own)]
assert distance(single[0], np.einsum("bkp,clp->bkcl", rows, rows)) < 1e-9
assert distance(single[1], np.sum(rows**2)) < 1e-9
first = None
for count, mesh in meshes():
    # As many at a time as a device has, for loops count once.
    computed = [*quantities(own, mesh=mesh)]
    computed[1] = quantities(own, mesh=mesh, chunk_size=SIZE)[1]
    compiled = [jax.jit(each).lower(tree, x).compile() for each in computed]
    for each, expected in zip(compiled, single, strict=True):
        assert distance(each(tree, x), expected) < 1e-9, (count, each)
    flops = np.array([each.cost_analysis()["flops"] for each in compiled])
    first = flops if first is None else first
    assert np.all(flops[:2] * count < 1.1 * first[:2]), (count, flops, first)
    assert flops[2] * count < 1.5 * first[2], (count, flops, first)  # vectors of 4 steps are alike
assert len(compiled[0](tree, x).sharding.device_set) == 8
""")


def test_devices_in_chunks():
    """Of a function that vma types refuse; 3 examples a device in chunks of 2, and 19 in blocks."""
    on_eight("""
tree, x = params(), inputs(size=24)
rows = jacobian(recurrent, tree, x)
dense = np.einsum("bkp,clp->bkcl", rows, rows)
mesh = jax.make_mesh((8,), ("data",))  # with explicit types, where that is the default
single = jax.jit(quantities(recurrent)[2])(tree, x)
kernel, trace, lanczos = quantities(recurrent, mesh=mesh, chunk_size=2)
assert distance(kernel(tree, x), dense) < 1e-9
assert distance(trace(tree, x), np.sum(rows**2)) < 1e-9
assert distance(jax.jit(lanczos)(tree, x), single) < 1e-9
found = ntk_on_host(recurrent, tree, x[:19], chunk_size=1, mesh=mesh)
assert distance(found, dense[:19, :, :19]) < 1e-9
for each in (kernel, trace, lanczos):
    with pytest.raises(ValueError, match="8 devices of mesh must divide .* examples, got 19"):
        each(tree, x[:19])
with pytest.raises(ValueError, match="8 devices of mesh must be no more than the 7 examples"):
    ntk_on_host(recurrent, tree, x[:7], chunk_size=1, mesh=mesh)
""")


def test_devices_in_float32():
    """Within twice what chunks change on one device, or two roundings; Lanczos within 1e-5.

    Chunks leave the sums over the vectors of Lanczos as they are, which devices take apart: of
    the largest number, 1.6e-6 on two devices where chunks changed 4.1e-7.
    """
    on_eight("""
def together(**options):
    return jax.jit(lambda *args: [each(*args) for each in quantities(own, **options)])

tree, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params(), inputs(size=SIZE)))
with jax.enable_x64(False):
    single, chunked = together()(tree, x), together(chunk_size=3)(tree, x)
    for count, mesh in [*meshes()][1:]:
        found = together(mesh=mesh)(tree, x)
        for each, expected, other in zip(found[:2], single, chunked):
            spread = distance(other, expected)
            assert distance(each, expected) <= max(2 * spread, 2.4e-7), (count, spread)
        assert distance(found[2], single[2]) < 1e-5, count
""")
