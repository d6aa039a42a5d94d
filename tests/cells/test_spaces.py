import csv
import dataclasses
import functools
import gzip
import itertools
import math
import re
import sys
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, squared_gradient_norm
from measuring import DARTS_V2
from scipy import stats

from nasi_jax.cells import (
    SEARCH_SPACES,
    DartsGenotype,
    Nasbench101Genotype,
    Nasbench201Genotype,
    evaluation_network,
    parse_genotype,
    search_space,
)
from nasi_jax.cells.darts import CELLS, DARTS_OPS, EDGES, NODES
from nasi_jax.cells.layers import norm, ops
from nasi_jax.cells.nasbench1shot1 import NUM_PARENTS
from nasi_jax.cells.nasbench101 import NASBENCH101_OPS
from nasi_jax.cells.nasbench201 import EDGES as NASBENCH201_EDGES
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS
from nasi_jax.cells.transnas101 import TRANSNAS101_OPS
from nasi_jax.kernels import multiply_adds
from nasi_jax.types import NORM_MODES, Batch, DropPath, NetworkSpec

SPACES = [*SEARCH_SPACES]
FEW_OPS = {
    "darts": ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"),
    "nasbench201": NASBENCH201_OPS,
    "nasbench1shot1-2": NASBENCH101_OPS,
    "transnas101": TRANSNAS101_OPS,
}
"""A space of each family, and an operation of each kind."""
NUM_CLASSES = 3
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)

pytestmark = pytest.mark.usefixtures("unoptimized")


def small(name, **fields):
    """The space at its least size."""
    num_cells = 3 if name == "darts" else 1
    return search_space(name, **({"init_channels": 2, "num_cells": num_cells} | fields))


@functools.cache
def one_sample(name, ops, index):
    with jax.enable_x64(False):  # the same sample for every test
        return search_space(name, ops=ops).sample(jax.random.fold_in(jax.random.key(0), index))


def samples(space, number):
    return [one_sample(space.name, space.ops, index) for index in range(number)]


def some_weights(space, dtype=jnp.float32, seed=0):
    """Different weights for all options, as a softmax gives them."""
    rng = np.random.default_rng(seed)
    return {
        name: jax.nn.softmax(jnp.asarray(rng.normal(size=alpha.shape), dtype))
        for name, alpha in space.init_alpha().items()
    }


def filled(shapes, dtype, seed=0):
    """Normal values of the size of He's, without the compilation that `init` takes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.normal(size=leaf.shape) * math.sqrt(2 / max(1, math.prod(leaf.shape[-4:-1]))),
            dtype,
        ),
        shapes,
    )


@functools.cache
def supernet_of(space, norm, dtype=jnp.float32):
    """The compiled supernet as a function of the weights, and its variables."""
    net = space.supernet(NUM_CLASSES, NetworkSpec(norm=norm, param_dtype=dtype))
    inputs, weights = INPUTS.astype(dtype), some_weights(space, dtype)
    shapes = jax.eval_shape(net.init, jax.random.key(0), inputs, weights)
    variables = {"params": filled(shapes["params"], dtype)}
    if norm == "frozen":
        apply = jax.jit(functools.partial(net.apply, mutable=["batch_stats"]))
        variables |= apply(variables, inputs[::-1] + 1, weights)[1]
    apply = jax.jit(net.apply)
    return SimpleNamespace(
        net=net,
        inputs=inputs,
        variables=variables,
        inherited=space.inherit(variables),
        logits=lambda weights: np.asarray(apply(variables, inputs, weights)),
    )


def assert_supernet_is_network(space, genotype, norm="batch", dtype=jnp.float32, tolerance=1e-4):
    supernet = supernet_of(space, norm, dtype)
    weights = {name: values.astype(dtype) for name, values in space.one_hot(genotype).items()}
    logits = supernet.logits(weights)
    network = space.network(
        genotype, NUM_CLASSES, NetworkSpec(norm=norm, param_dtype=dtype), form="search"
    )
    expected = np.asarray(network.apply(supernet.inherited, supernet.inputs))
    scale = np.abs(expected).max()
    assert logits.shape == expected.shape == (len(INPUTS), NUM_CLASSES)
    assert logits.dtype == expected.dtype == dtype and 1e-6 < scale < np.inf
    np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=tolerance)


def count_parameters(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


# Contracts of every space


def test_names_are_the_keys():
    assert [space.name for space in SEARCH_SPACES.values()] == SPACES


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_frozen_and_hashable(name):
    space = SEARCH_SPACES[name]
    assert hash(space) == hash(dataclasses.replace(space)) and space == dataclasses.replace(space)
    assert space != dataclasses.replace(space, init_channels=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        space.init_channels = 3


@pytest.mark.parametrize("name", SPACES)
def test_structure_of_alpha(name):
    space = SEARCH_SPACES[name]
    alpha = space.init_alpha()
    assert set(space.num_selected()) == set(space.labels()) == set(alpha)
    for entry, values in alpha.items():
        rows, columns = space.labels()[entry]
        assert values.shape == (len(rows), len(columns)) and values.dtype == jnp.float32
        np.testing.assert_array_equal(values, np.zeros(values.shape))


@pytest.mark.parametrize("name", SPACES)
def test_one_hot_is_undone_by_discretize(name):
    space = SEARCH_SPACES[name]
    genotypes = samples(space, 50)
    assert len(set(genotypes)) > 40
    for genotype in genotypes:
        weights = space.one_hot(genotype)
        assert space.discretize(weights) == genotype
        for entry, alpha in space.init_alpha().items():
            values = np.asarray(weights[entry])
            assert values.shape == alpha.shape and values.dtype == np.float32
            assert set(np.unique(values)) <= {0, 1}
            ones = values.sum(axis=1)
            if name == "darts":  # two edges for each node, at most one operation an edge
                assert ones.max() == 1
                nodes = np.array([node for _, node in EDGES])
                assert [ones[nodes == node].sum() for node in NODES] == [2] * 4
            else:
                np.testing.assert_array_equal(ones, [space.num_selected()[entry]] * len(ones))


@pytest.mark.parametrize("name", SPACES)
def test_text_of_a_genotype(name):
    for genotype in samples(SEARCH_SPACES[name], 50):
        assert parse_genotype(genotype.to_text()) == genotype
        assert hash(parse_genotype(genotype.to_text())) == hash(genotype)


@pytest.mark.parametrize("name", SPACES)
def test_sample_is_a_function_of_its_key(name):
    space = SEARCH_SPACES[name]
    one, again, other = (space.sample(jax.random.key(seed)) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("name", SPACES)
def test_choices_name_what_discretize_decides(name):
    space = SEARCH_SPACES[name]
    alpha = {
        entry: jnp.asarray(np.random.default_rng(0).normal(size=values.shape), jnp.float32)
        for entry, values in space.init_alpha().items()
    }
    choices = space.choices(alpha)
    assert len({choice.name for choice in choices}) == len(choices)
    for choice in choices:
        assert choice.scores.shape == (len(choice.options),)
        assert 1 <= choice.num_selected <= len(choice.options)
        assert np.isfinite(choice.scores).all() and (np.asarray(choice.scores) < 0).all()
    gradient = jax.grad(lambda a: sum(jnp.max(choice.scores) for choice in space.choices(a)))
    assert all(np.abs(values).max() > 0 for values in gradient(alpha).values())


def decisions(genotype):
    """`(kind, what was chosen)` of every independent decision that a genotype shows."""
    if isinstance(genotype, Nasbench201Genotype):
        return [("op", op) for op in genotype.ops]
    if isinstance(genotype, Nasbench101Genotype):
        ops = [("op", op) for op in genotype.ops[1:-1]]
        return ops + [(v, genotype.parents(v)) for v in range(1, len(genotype.ops))]
    found = []
    for cell in CELLS:
        edges = getattr(genotype, cell)
        found += [("op", edge.op) for edge in edges]
        found += [(n, (edges[2 * n].node, edges[2 * n + 1].node)) for n in range(len(NODES))]
    return found


@pytest.mark.parametrize("name", SPACES)
def test_samples_cover_the_space_evenly(name):
    space = SEARCH_SPACES[name]
    counts = {}
    for genotype in samples(space, 150):
        for kind, chosen in decisions(genotype):
            counts.setdefault(kind, {}).setdefault(chosen, 0)
            counts[kind][chosen] += 1
    if name == "darts":
        sizes = {"op": 7} | {n: math.comb(node, 2) for n, node in enumerate(NODES)}
    elif name in ("nasbench201", "transnas101"):
        sizes = {"op": len(space.ops)}
    else:
        read = enumerate(NUM_PARENTS[space.space], start=1)
        sizes = {"op": 3} | {vertex: math.comb(vertex, number) for vertex, number in read}
    assert {kind: len(seen) for kind, seen in counts.items()} == sizes
    for kind, size in sizes.items():
        if size > 1:
            assert stats.chisquare([*counts[kind].values()]).pvalue > 1e-3, kind


# Supernet and network


@pytest.mark.parametrize("name", SPACES)
def test_supernet_with_one_hot_weights_is_the_network(name, x64):
    """In float64: float32 differed by 2e-5, as batch statistics of few places amplify it."""
    space = small(name)
    genotypes = samples(space, 8)
    assert len(set(genotypes)) == 8
    for genotype in genotypes:
        assert_supernet_is_network(space, genotype, dtype=jnp.float64, tolerance=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("nasbench201", "nasbench1shot1-1") else [pytest.mark.slow]
        )
        for name in SPACES
    ],
)
def test_the_derivative_of_what_is_chosen_needs_nothing_else(name, x64):
    """Of x in one-hot weights: in those of the operations chosen, and of all inputs."""
    space, spec = small(name), NetworkSpec(param_dtype=jnp.float64)
    known = supernet_of(space, "batch", jnp.float64)
    batch = Batch(known.inputs, jnp.arange(len(known.inputs)) % NUM_CLASSES)

    def slope_of(one_hot):
        supernet = space.supernet(NUM_CLASSES, spec, one_hot=one_hot)

        def x(weights):
            return squared_gradient_norm(supernet, known.variables["params"], weights, batch)

        return jax.jit(jax.grad(x))

    mixed, chosen = map(slope_of, (False, True))
    sizes = []
    for genotype in samples(space, 3):
        one_hot = space.one_hot(genotype)
        weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), one_hot)
        expected = {
            name: values if name.startswith("inputs") else values * weights[name]
            for name, values in mixed(weights).items()
        }
        sizes.append(np.abs(flat(expected)).max())
        np.testing.assert_allclose(flat(chosen(weights)), flat(expected), atol=1e-9 * sizes[-1])
    assert max(sizes) > 0


@pytest.mark.parametrize("norm", ["frozen", "none"])
@pytest.mark.parametrize("name", SPACES)
def test_supernet_is_the_network_in_the_other_norm_modes(name, norm):
    space = small(name)
    for genotype in samples(space, 2):
        assert_supernet_is_network(space, genotype, norm)


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("darts", DARTS_OPS[1:]),
        ("darts", ("skip_connect", "dil_conv_3x3")),
        ("nasbench201", ("none", "skip_connect", "nor_conv_3x3")),
        ("nasbench1shot1-2", ("maxpool3x3", "conv1x1-bn-relu")),
        ("transnas101", ("nor_conv_3x3", "skip_connect")),
    ],
    ids=["darts without none", "darts 2", "nasbench201", "nasbench1shot1", "transnas101"],
)
def test_reduced_ops(name, ops):
    space = small(name, ops=ops)
    alpha = space.init_alpha()
    whole = SEARCH_SPACES[name].init_alpha()
    entries = (*CELLS, "cell", "ops")
    for entry, values in alpha.items():
        columns = len(ops) if entry in entries else whole[entry].shape[1]
        assert values.shape == (len(whole[entry]), columns)
    used = {op for g in samples(space, 20) for kind, op in decisions(g) if kind == "op"}
    assert used == (set(ops) - {"none"} if name == "darts" else set(ops))
    for genotype in samples(space, 2):
        assert space.discretize(space.one_hot(genotype)) == genotype
        assert_supernet_is_network(space, genotype)


@pytest.mark.parametrize("num_cells", [4, 5, 10])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_stages_of_darts_of_any_length(num_cells, norm):
    # 1, 2 and 3 normal cells in a row: the last ones leave layers behind that nothing reads.
    space = small("darts", num_cells=num_cells, ops=("skip_connect", "dil_conv_3x3"))
    for genotype in samples(space, 1):
        assert_supernet_is_network(space, genotype, norm)


@pytest.mark.parametrize("name", FEW_OPS)
def test_supernet_jit_is_eager(name):
    space = small(name, ops=FEW_OPS[name])
    supernet = supernet_of(space, "batch")
    weights = some_weights(space)
    eager = np.asarray(supernet.net.apply(supernet.variables, INPUTS, weights))
    scale = np.abs(eager).max()
    np.testing.assert_allclose(supernet.logits(weights) / scale, eager / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SPACES)
def test_weights_matter_everywhere(name):
    """Every weight has a derivative, other than those of `none`."""
    space = small(name)
    supernet = supernet_of(space, "none")
    weights = some_weights(space)

    def total(weights):
        return jnp.sum(jnp.sin(supernet.net.apply(supernet.variables, INPUTS, weights)))

    gradient = jax.jit(jax.grad(total))(weights)
    for entry, (_, columns) in space.labels().items():
        for column, option in enumerate(columns):
            values = np.asarray(gradient[entry][:, column])
            assert (values == 0).all() if option == "none" else (values != 0).all()


@pytest.mark.parametrize("norm", NORM_MODES)
@pytest.mark.parametrize("name", SPACES)
def test_param_dtype(name, norm, x64):
    space = small(name)
    genotype = samples(space, 1)[0]
    for dtype in (jnp.float32, jnp.float64):
        inputs = jnp.asarray(INPUTS, dtype)
        weights = jax.tree.map(
            lambda values, dtype=dtype: values.astype(dtype), some_weights(space)
        )
        nets = [
            (space.supernet(NUM_CLASSES, NetworkSpec(norm=norm, param_dtype=dtype)), (weights,))
        ]
        for form in ("search", "evaluation"):
            spec = NetworkSpec(norm=norm, param_dtype=dtype)
            nets.append((space.network(genotype, NUM_CLASSES, spec, form=form), ()))
        for net, arguments in nets:
            init = net.init_with_output
            logits, variables = jax.eval_shape(init, jax.random.key(0), inputs, *arguments)
            assert (logits.shape, logits.dtype) == ((len(INPUTS), NUM_CLASSES), dtype)
            assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(dtype)}
            assert ("batch_stats" in variables) == (norm == "frozen")


@pytest.mark.parametrize("name", FEW_OPS)
def test_parameters_have_different_values(name):
    """Cells and edges that are stacked for a scan are not initialized alike."""
    space = small(name, num_cells=4 if name == "darts" else 2)
    init = space.supernet(NUM_CLASSES, NetworkSpec(init="pytorch")).init
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fifth of the default's time
    variables = jax.jit(init)(key, INPUTS, space.init_alpha())
    kernels = [
        kernel
        for path, leaf in jax.tree.leaves_with_path(variables["params"])
        if path[-1].key == "kernel"
        for kernel in np.asarray(leaf).reshape(-1, *leaf.shape[-4:])
    ]
    first = [kernel.ravel()[0] for kernel in kernels]
    assert len(set(first)) == len(first) > 50


# Bad arguments


@pytest.mark.parametrize(
    ("name", "fields", "parts"),
    [
        ("nope", {}, ["unknown space 'nope'", "darts, nasbench201, nasbench1shot1-1"]),
        ("darts", {"ops": ("skip", "none")}, ["unknown op 'skip' in darts", "skip_connect"]),
        ("nasbench201", {"ops": ("max_pool_3x3",)}, ["unknown op 'max_pool_3x3' in nasbench201"]),
        ("nasbench1shot1-3", {"ops": ("none",)}, ["unknown op 'none' in nasbench1shot1-3"]),
        (
            "darts",
            {"ops": ("skip_connect",) * 2},
            ["ops must differ", "skip_connect, skip_connect"],
        ),
        ("darts", {"ops": ("none",)}, ["other than none", "got none"]),
        ("nasbench201", {"ops": ()}, ["ops must differ"]),
        ("darts", {"num_cells": 2}, ["num_cells of darts must be at least 3, got 2"]),
        ("nasbench201", {"num_cells": 0}, ["num_cells of nasbench201 must be at least 1, got 0"]),
        ("darts", {"init_channels": 0}, ["init_channels of darts must be at least 1, got 0"]),
        ("nasbench1shot1-1", {"init_channels": -4}, ["at least 1, got -4"]),
    ],
)
def test_bad_fields(name, fields, parts):
    with pytest.raises(ValueError) as error:
        search_space(name, **fields)
    for part in parts:
        assert part in str(error.value)


def test_good_fields():
    assert search_space("darts") == SEARCH_SPACES["darts"] == search_space("darts", ops=None)
    space = search_space("nasbench201", ops=NASBENCH201_OPS[:2], init_channels=4, num_cells=2)
    assert (space.ops, space.init_channels, space.num_cells) == (NASBENCH201_OPS[:2], 4, 2)


# Parameters of the networks that were trained


def test_parameters_of_nasbench201_networks(data_file):
    with open(data_file("nasbench201_cifar10.csv")) as file:
        rows = [(row["arch_str"], int(row["params"])) for row in csv.DictReader(file)]
    chosen = np.random.default_rng(0).choice(len(rows), 30, replace=False)
    ordered = sorted(rows, key=lambda row: row[1])
    space = SEARCH_SPACES["nasbench201"]
    for text, params in [ordered[0], ordered[-1], *(rows[index] for index in chosen)]:
        assert count_parameters(space.network(parse_genotype(text), 10)) == params, text


@pytest.fixture(scope="module")
def nasbench101(data_file):
    """Rows as dicts."""
    with gzip.open(data_file("nasbench101_30k.csv.gz"), "rt") as file:
        return list(csv.DictReader(file))


def nasbench101_cell(row):
    size = int(row["vertices"])
    bits = np.array([*map(int, row["adjacency"])]).reshape(size, size).tolist()
    return Nasbench101Genotype(tuple(map(tuple, bits)), tuple(row["ops"].split(",")))


def vertex_orders(genotype):
    """The cell with its vertices in every order that keeps the matrix upper triangular."""
    size = len(genotype.ops)
    for inner in itertools.permutations(range(1, size - 1)):
        order = [0, *inner, size - 1]
        matrix = np.array(genotype.matrix)[np.ix_(order, order)]
        if not np.tril(matrix).any():
            ops = tuple(genotype.ops[vertex] for vertex in order)
            yield Nasbench101Genotype(tuple(map(tuple, matrix.tolist())), ops)


def test_parameters_of_nasbench101_networks(nasbench101):
    """Three vertices that the output reads share 128 channels as 43, 43 and 42, in their order.

    The table names one cell of an isomorphism class and the parameters of maybe another one
    (1,011 of its 30,001 rows, all with three such vertices), so there some order must fit.
    """
    space = SEARCH_SPACES["nasbench1shot1-1"]
    for index in np.random.default_rng(0).choice(len(nasbench101), 20, replace=False):
        row = nasbench101[index]
        genotype = nasbench101_cell(row)
        joined = [vertex for vertex in genotype.parents(len(genotype.ops) - 1) if vertex > 0]
        orders = vertex_orders(genotype) if len(joined) == 3 else [genotype]
        counts = (count_parameters(space.network(order, 10)) for order in orders)
        assert int(row["params"]) in counts, row


def test_parameters_of_darts_v2():
    space = search_space("darts", init_channels=36, num_cells=20)
    assert count_parameters(space.network(parse_genotype(DARTS_V2), 10)) == 3_349_342


@pytest.mark.parametrize(
    "text",
    [
        "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|",
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
        "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
    ],
    ids=["residual", "all-conv"],
)
def test_parameters_of_known_nasbench201_cells(data_file, text):
    with open(data_file("nasbench201_cifar10.csv")) as file:
        params = {row["arch_str"]: int(row["params"]) for row in csv.DictReader(file)}
    network = SEARCH_SPACES["nasbench201"].network(parse_genotype(text), 10)
    assert count_parameters(network) == params[text]


def multiply_adds_of(network, size):
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), inputs)
    return multiply_adds(network.apply, variables, inputs)


def test_multiply_adds_of_the_largest_nasbench201_cell():
    """220.12 M by the benchmark's authors (NATS-Bench)."""
    network = SEARCH_SPACES["nasbench201"].network(
        Nasbench201Genotype(("nor_conv_3x3",) * 6), 10, NetworkSpec(norm="none")
    )
    assert multiply_adds_of(network, 32) == 220_119_680


def test_multiply_adds_of_darts_v2_on_imagenet(monkeypatch):
    """544.59 M by ptflops (github.com/quark0/darts/issues/46), which counts more than layers.

    It adds 2 for each number that is normalized, and 1 for each that a ReLU or a pool reads. The
    paper's 574 M is of another count, which that issue could not reproduce either.
    """
    counted = dict.fromkeys(("normalized", "relu", "pooled"), 0)

    def counting(name, function, index=0):
        def count(*args, **kwargs):
            counted[name] += args[index].size
            return function(*args, **kwargs)

        return count

    network = evaluation_network(
        parse_genotype(DARTS_V2), 1000, init_channels=48, num_cells=14, stem="imagenet"
    )
    layers = multiply_adds_of(network, 224)
    assert layers == 529_911_552
    for module, name, what, index in (
        (nn, "relu", "relu", 0),
        (ops, "max_pool", "pooled", 0),
        (norm.Norm, "__call__", "normalized", 1),
    ):
        monkeypatch.setattr(module, name, counting(what, getattr(module, name), index))
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    whole = layers + 2 * counted["normalized"] + counted["relu"] + counted["pooled"]
    assert round(whole / 1e6, 2) == 544.59


def test_stem_of_imagenet():
    """Three convolutions of stride 2; the first input of the first cell is twice as large."""
    genotype = small("darts").sample(jax.random.key(0))
    sizes = {"init_channels": 2, "num_cells": 3}
    network = evaluation_network(genotype, 3, NetworkSpec(norm="none"), **sizes, stem="imagenet")
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    shapes = {name: layer for name, layer in variables["params"].items() if "stem" in name}
    assert {name: leaf["kernel"].shape for name, leaf in shapes.items() if "norm" not in name} == {
        "stem_0": (3, 3, 3, 1),
        "stem_1": (3, 3, 1, 2),
        "stem_2": (3, 3, 2, 2),
    }
    assert set(variables["params"]["first_0"]) - {"norm"} == {"even", "odd"}


# DARTS


def test_edges_of_darts():
    assert len(EDGES) == 14
    assert [*EDGES] == [(i, j) for j in range(2, 6) for i in range(j)]
    assert EDGES[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize("num_cells", [3, 5, 8, 20])
def test_reductions_of_darts(num_cells):
    space = search_space("darts", init_channels=2, num_cells=num_cells, ops=("skip_connect",))
    supernet = space.supernet(10)

    def shapes_of(key):
        variables = supernet.init(key, INPUTS, space.init_alpha())
        return variables["params"], space.inherit(variables)["params"]

    stacked, shapes = jax.eval_shape(shapes_of, jax.random.key(0))
    reductions = [number for number in range(num_cells) if f"halving_{number}" in stacked]
    assert reductions == [num_cells // 3, 2 * num_cells // 3]
    channels = [shapes[f"second_{index}"]["conv"]["kernel"].shape[-1] for index in range(num_cells)]
    passed = [sum(reduction <= index for reduction in reductions) for index in range(num_cells)]
    assert channels == [2 * 2**number for number in passed]
    assert shapes["stem"]["kernel"].shape == (3, 3, 3, 6)
    assert shapes["head"]["kernel"].shape == (4 * 8, 10)


def darts_rule(logits, ops):
    """The rule of DARTS on the logits of one cell, in plain NumPy."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    if "none" in ops:
        weights[:, ops.index("none")] = -1
    edges, start = [], 0
    for node in range(2, 6):
        block = weights[start : start + node]
        for source in sorted(range(node), key=lambda source: -block[source].max())[:2]:
            edges.append((ops[int(block[source].argmax())], source))
        start += node
    return edges


@pytest.mark.parametrize("ops", [DARTS_OPS, DARTS_OPS[1:], ("sep_conv_3x3", "none")], ids=len)
def test_discretize_is_the_rule_of_darts(ops):
    space = search_space("darts", ops=ops)
    for seed in range(100 if ops == DARTS_OPS else 10):
        rng = np.random.default_rng(seed)
        logits = {cell: rng.normal(size=(14, len(ops))).astype(np.float32) for cell in CELLS}
        cells = {cell: darts_rule(logits[cell], list(ops)) for cell in CELLS}
        alpha = {cell: jnp.asarray(values) for cell, values in logits.items()}
        assert space.discretize(alpha) == DartsGenotype(**cells)


def test_none_never_wins_but_weakens_its_edge():
    space = SEARCH_SPACES["darts"]
    normal = np.zeros((14, 8), np.float32)
    normal[:, 0] = 9  # none is the largest everywhere
    normal[:, 5] = 1
    normal[EDGES.index((1, 4)), 0] = 20  # the strongest none: the weakest edge
    normal[EDGES.index((1, 4)), 6] = 8
    cell = space.discretize({"normal": jnp.asarray(normal), "reduce": jnp.zeros((14, 8))})
    assert {edge.op for edge in cell.normal} == {"sep_conv_5x5"}
    assert [edge.node for edge in cell.normal[4:6]] == [0, 2]
    # Without any preference the first operation and the first edges win.
    assert set(cell.reduce) == {("max_pool_3x3", 0), ("max_pool_3x3", 1)}


def test_evaluation_form_of_darts_normalizes_no_pool():
    edges = [("max_pool_3x3", 0), ("avg_pool_3x3", 1)] * 4
    space = small("darts")
    genotype = DartsGenotype(edges, edges)

    def layers(form):
        network = space.network(genotype, 10, NetworkSpec(norm="frozen"), form=form)
        shapes = jax.eval_shape(network.init, jax.random.key(0), INPUTS)
        return {str(path) for path, _ in jax.tree.leaves_with_path(shapes["batch_stats"])}

    # Mean and variance of 3 cells with 8 edges.
    assert sum("pool" in layer for layer in layers("search")) == 3 * 8 * 2
    assert layers("evaluation") == {layer for layer in layers("search") if "pool" not in layer}


# NAS-Bench-201


@pytest.mark.parametrize(
    ("text", "other"),
    [
        # Three ways to pass the input on, ...
        ("|I~0|+|-~0|I~1|+|-~0|-~1|I~2|", "|-~0|+|-~0|-~1|+|I~0|-~1|-~2|"),
        ("|I~0|+|-~0|-~1|+|-~0|I~1|-~2|", "|-~0|+|I~0|-~1|+|-~0|-~1|I~2|"),
        ("|I~0|+|-~0|-~1|+|-~0|I~1|-~2|", "|-~0|+|-~0|-~1|+|I~0|-~1|-~2|"),
        # ... three to pass nothing, ...
        ("|I~0|+|I~0|-~1|+|-~0|-~1|-~2|", "|-~0|+|-~0|-~1|+|-~0|-~1|-~2|"),
        ("|I~0|+|-~0|-~1|+|-~0|-~1|I~2|", "|-~0|+|I~0|-~1|+|-~0|I~1|-~2|"),
        # ... and two to pass it on twice.
        ("|I~0|+|I~0|I~1|+|-~0|-~1|I~2|", "|I~0|+|I~0|-~1|+|-~0|I~1|I~2|"),
    ],
)
def test_network_reads_the_nodes_that_arch_str_names(text, other):
    supernet = supernet_of(small("nasbench201"), "batch")
    logits = []
    for short in (text, other):
        genotype = parse_genotype(short.replace("I", "skip_connect").replace("-", "none"))
        logits.append(supernet.logits(SEARCH_SPACES["nasbench201"].one_hot(genotype)))
    np.testing.assert_array_equal(logits[0], logits[1])


def test_nasbench201_has_15625_cells(data_file):
    space = SEARCH_SPACES["nasbench201"]
    texts = [genotype.to_text() for genotype in space.genotypes()]
    assert len(texts) == len(set(texts)) == 15_625
    with open(data_file("nasbench201_cifar10.csv")) as file:
        assert {row["arch_str"] for row in csv.DictReader(file)} == set(texts)
    reduced = search_space("nasbench201", ops=NASBENCH201_OPS[1:3])
    assert len(set(reduced.genotypes())) == 2**6


# TransNAS-Bench-101


def test_transnas101_has_4096_cells():
    cells = [*SEARCH_SPACES["transnas101"].genotypes()]
    texts = [cell.to_text() for cell in cells]
    assert len(set(texts)) == len(set(cells)) == 4_096
    assert [*map(parse_genotype, texts)] == cells
    assert (texts[0], texts[-1]) == ("64-41414-0_00_000", "64-41414-3_33_333")


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("0_00_000", 43_599),  # stem and head
        ("1_23_012", 9_432_399),
        ("1_11_111", 565_071),
        ("2_22_222", 4_670_031),
        ("1_02_333", 22_544_719),
        ("3_33_333", 41_435_727),
    ],
)
def test_parameters_of_transnas101_networks(text, params):
    """As the authors' MacroNet has them for the 47 classes of scenes."""
    network = evaluation_network(parse_genotype(f"64-41414-{text}"), 47)
    assert count_parameters(network) == params


def transnas101_logits(genotype, params, images, num_cells):
    """A network without normalization, edge by edge, with PyTorch's padding."""

    def conv(inputs, kernel, stride):
        margin = [(len(kernel) // 2,) * 2] * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            inputs, kernel, (stride, stride), margin, dimension_numbers=dimensions
        )

    def edge(op, layer, inputs, stride):
        if op == "none":
            return 0
        active = jax.nn.relu(inputs)
        if op != "skip_connect":
            return conv(active, layer[op]["conv"]["kernel"], stride)
        if stride == 1:
            return inputs
        shifted = jnp.pad(active, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        halves = zip(("even", "odd"), (active, shifted), strict=True)
        return jnp.concatenate([conv(x, layer[op][h]["kernel"], 2) for h, x in halves], axis=-1)

    states = conv(images, params["stem"]["kernel"], 2)
    states = conv(jax.nn.relu(states), params["second_stem"]["conv"]["kernel"], 2)
    for stage, length in enumerate((2 * num_cells, 2 * num_cells, num_cells)):
        for cell in range(length):
            layers = params.get(f"halving_{stage}", {})
            if cell > 0:
                stack = params.get(f"stage_{stage}", {})
                layers = jax.tree.map(lambda leaf, cell=cell: leaf[cell - 1], stack)
            nodes = [states, 0, 0, 0]
            for (source, node), op in zip(NASBENCH201_EDGES, genotype.ops, strict=True):
                stride = 2 if cell == source == 0 else 1
                layer = layers.get(f"edge_{source}_{node}")
                nodes[node] += edge(op, layer, nodes[source], stride)
            states = nodes[3]
    features = jnp.mean(states, axis=(1, 2))
    return features @ params["head"]["kernel"] + params["head"]["bias"][None]


@pytest.mark.parametrize("size", [32, 40])  # the latter is odd where it is to be halved
@pytest.mark.parametrize("num_cells", [1, 2])
@pytest.mark.parametrize("text", ["1_23_012", "3_12_231"])
def test_transnas101_network_is_what_its_cell_says(text, num_cells, size, x64):
    genotype = parse_genotype(f"64-41414-{text}")
    space = small("transnas101", num_cells=num_cells)
    spec = NetworkSpec(norm="none", param_dtype=jnp.float64)
    network = space.network(genotype, NUM_CLASSES, spec, form="search")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    params = filled(shapes["params"], jnp.float64)
    logits = network.apply({"params": params}, images)
    expected = transnas101_logits(genotype, params, images, num_cells)
    np.testing.assert_allclose(logits, expected, rtol=1e-10)


def test_cells_in_a_row_of_transnas101(x64):
    space = small("transnas101", num_cells=2)
    for genotype in samples(space, 2):
        assert_supernet_is_network(space, genotype, dtype=jnp.float64, tolerance=1e-10)


# NAS-Bench-1Shot1

PARENTS = {1: (1, 2, 2, 2, 2), 2: (1, 1, 2, 2, 3), 3: (1, 1, 1, 2, 2, 2)}
NUM_GENOTYPES = {1: 14_580, 2: 29_160, 3: 1_312_200}
NUM_HASHES = {1: 2_685, 2: 7_773, 3: 55_854}


@functools.cache
def hashes(number):
    """All hashes of a space: those of its graphs, pruned, with all operations."""
    graphs = search_space(f"nasbench1shot1-{number}", ops=NASBENCH101_OPS[:1]).genotypes()
    pruned = {genotype.prune().matrix for genotype in graphs}
    return {
        Nasbench101Genotype(matrix, ("input", *ops, "output")).module_hash()
        for matrix in pruned
        for ops in itertools.product(NASBENCH101_OPS, repeat=len(matrix) - 2)
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_parents_of_1shot1(number):
    assert NUM_PARENTS[number] == PARENTS[number] and sum(PARENTS[number]) == 9
    space = SEARCH_SPACES[f"nasbench1shot1-{number}"]
    chosen = {
        f"inputs_{'output' if vertex == space.num_vertices + 1 else vertex}": count
        for vertex, count in enumerate(PARENTS[number], start=1)
        if count < vertex
    }
    assert space.num_selected() == {"ops": 1} | chosen
    for genotype in samples(space, 50):
        counts = tuple(len(genotype.parents(v)) for v in range(1, len(genotype.ops)))
        assert counts == PARENTS[number] and np.sum(genotype.matrix) == 9


@pytest.mark.parametrize("number", [1, 2, 3])
def test_discretize_of_1shot1_takes_the_largest(number):
    space = SEARCH_SPACES[f"nasbench1shot1-{number}"]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        logits = {
            name: rng.normal(size=values.shape).astype(np.float32)
            for name, values in space.init_alpha().items()
        }
        genotype = space.discretize({name: jnp.asarray(value) for name, value in logits.items()})
        best = [NASBENCH101_OPS[column] for column in logits["ops"].argmax(axis=1)]
        assert genotype.ops == ("input", *best, "output")
        for vertex, count in enumerate(PARENTS[number], start=1):
            label = "output" if vertex == len(PARENTS[number]) else vertex
            row = logits.get(f"inputs_{label}", np.zeros((1, vertex)))[0]
            expected = sorted(np.argsort(-row, kind="stable")[:count].tolist())
            assert genotype.parents(vertex) == tuple(expected)


@pytest.mark.parametrize(("number", "other"), [*itertools.permutations([1, 2, 3], 2)])
def test_one_hot_refuses_a_cell_of_another_space(number, other):
    space = SEARCH_SPACES[f"nasbench1shot1-{number}"]
    foreign = samples(SEARCH_SPACES[f"nasbench1shot1-{other}"], 50)[0]
    message = re.escape(f"not a cell of {space.name}: its vertices read {PARENTS[number]} others")
    with pytest.raises(ValueError, match=message):
        space.one_hot(foreign)
    with pytest.raises(ValueError, match=message):
        space.network(foreign, 10, form="search")


@pytest.mark.parametrize("number", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_number_of_1shot1_cells(number):
    seen = 0
    distinct = set()
    for genotype in SEARCH_SPACES[f"nasbench1shot1-{number}"].genotypes():
        seen += 1
        matrix = "".join(str(bit) for row in genotype.matrix for bit in row)
        ops = "".join(str(NASBENCH101_OPS.index(op)) for op in genotype.ops[1:-1])
        distinct.add(sys.intern(matrix + ops))
    assert seen == len(distinct) == NUM_GENOTYPES[number]
    assert len(hashes(number)) == NUM_HASHES[number]


@pytest.mark.parametrize("number", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_hashes_agree_with_nasbench101(nasbench101, number):
    members = [row["hash"] in hashes(number) for row in nasbench101]
    assert members == [row[f"in_1shot1_s{number}"] == "1" for row in nasbench101]
    assert len(members) == 30_001 and any(members) and not all(members)
    genotype = samples(SEARCH_SPACES[f"nasbench1shot1-{number}"], 50)[0]
    assert genotype.module_hash() in hashes(number)


# Not of TransNAS-Bench-101, where a statistic would be over 3 numbers: its last images are 1x1.
@pytest.mark.parametrize("name", [name for name in FEW_OPS if name != "transnas101"])
def test_bfloat16_activations(name):
    """Close to float32, with parameters, logits and gradients of parameters in float32."""
    space = small(name, init_channels=4, ops=FEW_OPS[name])
    weights, key = some_weights(space), jax.random.key(0)
    reference = space.supernet(10)
    supernet = space.supernet(10, NetworkSpec(dtype=jnp.bfloat16))
    if name == "nasbench201":
        inits = (jax.jit(net.init)(key, INPUTS, weights) for net in (supernet, reference))
        variables, others = inits
        chex.assert_trees_all_equal(variables, others)
    shapes = jax.eval_shape(supernet.init, key, INPUTS, weights)
    variables = filled(shapes, jnp.float32)

    def loss(net):
        def of(variables):
            logits = net.apply(variables, INPUTS, weights)
            return jnp.mean(jnp.square(logits)), logits

        (_, logits), gradient = jax.jit(jax.value_and_grad(of, has_aux=True))(variables)
        return logits, gradient

    (logits, gradient), (expected, slopes) = loss(supernet), loss(reference)
    assert logits.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(gradient, variables)
    distance = float(jnp.linalg.norm(logits - expected) / jnp.linalg.norm(expected))
    assert 0 < distance < 0.1
    ours, theirs = (jax.flatten_util.ravel_pytree(each)[0] for each in (gradient, slopes))
    cosine = float(ours @ theirs / jnp.linalg.norm(ours) / jnp.linalg.norm(theirs))
    assert 0.9 < cosine < 1


@pytest.mark.usefixtures("x64")
def test_cells_in_a_scan_are_the_cells_one_by_one():
    """In outputs, in statistics and in gradients, with drop path and the second head."""
    ops = ("dil_conv_3x3", "avg_pool_3x3", *6 * ["skip_connect"])
    edges = tuple((op, index % 2) for index, op in enumerate(ops))
    genotype = DartsGenotype(normal=edges, reduce=edges)
    inputs = jnp.asarray(INPUTS, jnp.float64)
    path = DropPath(jnp.float64(0.3), jax.random.split(jax.random.key(0), len(inputs)))

    def results(scan_cells):
        spec = NetworkSpec(norm="running", param_dtype=jnp.float64, scan_cells=scan_cells)
        sizes = {"init_channels": 2, "num_cells": 10}  # stages of 3, 3 and 4 cells
        network = genotype.network(NUM_CLASSES, spec, auxiliary=True, **sizes)
        variables = filled(jax.eval_shape(network.init, jax.random.key(0), inputs), jnp.float64)

        def total(params):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            outputs, updates = network.apply(
                given, inputs, path, mutable=["batch_stats", "auxiliary"]
            )
            return jnp.sum(jnp.sin(outputs)), (updates, network.apply(given, inputs))

        num_scans = str(jax.make_jaxpr(network.apply)(variables, inputs)).count("scan[")
        return num_scans, jax.jit(jax.value_and_grad(total, has_aux=True))(variables["params"])

    (none, apart), (one, scanned) = results(False), results(True)
    assert (none, one) == (0, 1)
    chex.assert_trees_all_close(scanned, apart, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["running", "none"])
def test_cells_without_parameters_in_a_scan(norm):
    edges = tuple(("skip_connect", index % 2) for index in range(8))
    genotype = DartsGenotype(normal=edges, reduce=edges)
    spec = NetworkSpec(norm=norm, scan_cells=True)
    network = genotype.network(NUM_CLASSES, spec, init_channels=2, num_cells=10)
    variables = jax.eval_shape(network.init, jax.random.key(0), INPUTS)
    mutable = functools.partial(network.apply, mutable=["batch_stats"])
    _, updates = jax.eval_shape(mutable, variables, INPUTS)
    assert updates.get("batch_stats") == variables.get("batch_stats")
