"""The genotypes' text and JSON forms: round trips, real cells, and texts that are refused."""

import csv
import gzip
import itertools
import json
import os
import random
import re
import warnings
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nasi_jax.cells.darts import DARTS_OPS, DartsGenotype
from nasi_jax.cells.genotype import genotype_to_dict, is_live
from nasi_jax.cells.nasbench1shot1 import Nasbench1Shot1
from nasi_jax.cells.nasbench101 import NASBENCH101_OPS, Nasbench101Genotype
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS, Nasbench201, Nasbench201Genotype
from nasi_jax.cells.spaces import families, genotype_from_dict, parse_genotype
from nasi_jax.cells.transnas101 import TRANSNAS101_OPS, Transnas101, Transnas101Genotype

DATA = Path(os.environ.get("NASI_DATA", Path(__file__).parents[3] / "shared" / "data"))

# quark0/darts, cnn/genotypes.py.
DARTS_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
# The first four of the five nodes of its normal cell; node 3 reads node 0 twice.
NASNET_NORMAL = (
    "[('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 0), ('sep_conv_3x3', 0), "
    "('avg_pool_3x3', 1), ('skip_connect', 0), ('avg_pool_3x3', 0), ('avg_pool_3x3', 0)]"
)
ARCH = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
SPEC = (
    "ModelSpec(matrix=[[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], "
    "ops=['input', 'conv3x3-bn-relu', 'maxpool3x3', 'output'])"
)
MICRO = "64-41414-1_23_012"
VALID = (DARTS_V2, ARCH, SPEC, MICRO)
VALID_JSON = tuple(json.dumps(genotype_to_dict(parse_genotype(text))) for text in VALID)

NO_DARTS = "not a genotype of the form Genotype(normal=..., normal_concat=..., reduce=..., "
NO_SPEC = "not a genotype of the form ModelSpec(matrix=..., ops=...): "
NO_ARCH = "not a NAS-Bench-201 arch_str: "
NO_MICRO = "not a TransNAS-Bench-101 micro cell: "
NO_FORMAT = "a genotype in JSON is an object whose 'format' is one of: darts, "
ONLY_RANGE = "the only call inside a genotype is range(first, last + 1)"
ONLY_LITERALS = "a genotype takes nothing but literals"
TOO_LONG = "a genotype has at most 10000 characters, this has "
ENTRIES = "the matrix holds 0 and 1, and no 1 on or below the diagonal; row 0, column 0 holds "


def short_id(value):
    return ascii(value)[:40]


def attempt(read, text):
    """The genotype and "", or None and the message; anything but these two is an error here."""
    genotype, message = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            genotype = read(text)
        except ValueError as error:
            assert type(error) is ValueError, repr(error)
            message = str(error)
            message.encode()
    assert not caught, [str(warning.message) for warning in caught]
    if genotype is None:
        assert len(message.splitlines()) == 1, message
        assert len(message) <= 400, message
        assert " at 0x" not in message
    return genotype, message


def refused(read, text, part):
    genotype, message = attempt(read, text)
    assert genotype is None, genotype
    assert part in message


def swapped(text, old, new):
    """The text with the first `old` in it exchanged."""
    assert old in text
    return text.replace(old, new, 1)


def darts_cells():
    op = st.sampled_from(DARTS_OPS[1:])

    def node_edges(node):
        sources = st.permutations(range(node)).map(lambda order: order[:2])
        return st.tuples(op, op, sources).map(lambda t: [(t[0], t[2][0]), (t[1], t[2][1])])

    return st.tuples(*map(node_edges, range(2, 6))).map(lambda pairs: [*chain(*pairs)])


@st.composite
def nasbench101_genotypes(draw, *, with_path=False, max_size=7):
    size = draw(st.integers(2, max_size))
    matrix = [
        [draw(st.integers(0, 1)) if row < column else 0 for column in range(size)]
        for row in range(size)
    ]
    if with_path:
        via = draw(st.integers(1, size - 1))
        matrix[0][via] = 1
        if via < size - 1:
            matrix[via][size - 1] = 1
    inner = draw(st.lists(st.sampled_from(NASBENCH101_OPS), min_size=size - 2, max_size=size - 2))
    return Nasbench101Genotype(matrix=matrix, ops=["input", *inner, "output"])


DARTS_GENOTYPES = st.builds(DartsGenotype, normal=darts_cells(), reduce=darts_cells())
NASBENCH201_GENOTYPES = st.builds(
    Nasbench201Genotype, ops=st.lists(st.sampled_from(NASBENCH201_OPS), min_size=6, max_size=6)
)
TRANSNAS101_GENOTYPES = st.builds(
    Transnas101Genotype, ops=st.lists(st.sampled_from(TRANSNAS101_OPS), min_size=6, max_size=6)
)
GENOTYPES = st.one_of(
    DARTS_GENOTYPES, NASBENCH201_GENOTYPES, nasbench101_genotypes(), TRANSNAS101_GENOTYPES
)


# Round trips


@settings(max_examples=300, deadline=None)
@given(GENOTYPES)
def test_round_trips(genotype):
    text = genotype.to_text()
    for padded in (text, f"\n  {text}\t\n"):
        for read in (parse_genotype, type(genotype).from_text):
            again = read(padded)
            assert type(again) is type(genotype)
            assert again == genotype
            assert hash(again) == hash(genotype)
            assert again.to_text() == text

    fields = genotype_to_dict(genotype)
    assert families()[fields["format"]] is type(genotype)
    assert fields["format"] == genotype.family
    unshared = json.loads(json.dumps(fields))
    assert unshared == fields
    assert genotype_from_dict(fields) == genotype
    assert genotype_to_dict(genotype_from_dict(unshared)) == unshared
    assert fields == unshared, "genotype_from_dict changed its argument"
    for indent in (None, 2):
        assert parse_genotype(json.dumps(fields, indent=indent)) == genotype


@settings(max_examples=100, deadline=None)
@given(DARTS_GENOTYPES, st.data())
def test_the_order_of_a_nodes_edges_does_not_matter(genotype, data):
    edges = list(genotype.normal)
    assert all(edges[i].node < edges[i + 1].node for i in (0, 2, 4, 6))
    for i in (0, 2, 4, 6):
        if data.draw(st.booleans()):
            edges[i : i + 2] = edges[i + 1], edges[i]
    assert DartsGenotype(normal=edges, reduce=genotype.reduce) == genotype


def test_text_forms():
    concat = "range(2, 6)"
    published = parse_genotype(DARTS_V2).to_text()
    assert re.findall(r"\w+_concat=([^a-z]*range\([^)]*\))", published) == [concat, concat]
    assert parse_genotype(ARCH).to_text() == ARCH
    assert parse_genotype(SPEC).to_text() == SPEC
    assert parse_genotype(MICRO).ops == (
        "skip_connect",
        "nor_conv_1x1",
        "nor_conv_3x3",
        "none",
        "skip_connect",
        "nor_conv_1x1",
    )
    assert parse_genotype(ARCH).ops == (
        "avg_pool_3x3",
        "nor_conv_1x1",
        "skip_connect",
        "none",
        "nor_conv_3x3",
        "skip_connect",
    )


# Published cells


def test_darts_v1():
    genotype = parse_genotype(DARTS_V1)
    assert genotype.normal == (
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    )
    assert genotype.reduce[2:4] == (("max_pool_3x3", 0), ("skip_connect", 2))
    assert genotype.reduce[6:] == (("avg_pool_3x3", 0), ("skip_connect", 2))
    assert genotype != parse_genotype(DARTS_V2)


def test_darts_v2():
    genotype = parse_genotype(DARTS_V2)
    assert genotype.normal[4:] == (
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    )
    assert genotype.reduce == (
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
    )
    assert parse_genotype(DARTS_V2.replace("[2, 3, 4, 5]", "range(2, 6)")) == genotype


def test_two_edges_from_one_node_are_refused():
    text = re.sub(r"normal=\[.*?\]", lambda match: f"normal={NASNET_NORMAL}", DARTS_V2)
    assert NASNET_NORMAL in text
    refused(parse_genotype, text, "node 3 of the normal cell reads node 0 twice")


def test_all_of_nasbench201_round_trips():
    path = DATA / "nasbench201_cifar10.csv"
    if not path.exists():
        pytest.skip(f"needs the NAS-Bench-201 table {path} (set NASI_DATA to its folder)")
    with path.open(newline="") as file:
        texts = [row["arch_str"] for row in csv.DictReader(file)]
    genotypes = [parse_genotype(text) for text in texts]
    assert [genotype.to_text() for genotype in genotypes] == texts
    assert len(set(genotypes)) == len(texts) == 15_625


def test_isomorphism_keys_of_nasbench201_are_its_classes():
    path = DATA / "nasbench201_cifar10.csv"
    if not path.exists():
        pytest.skip(f"needs the NAS-Bench-201 table {path} (set NASI_DATA to its folder)")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [parse_genotype(row["arch_str"]).isomorphism_key() for row in rows]
    classes = [row["iso_class"] for row in rows]
    assert len(set(keys)) == len(set(classes)) == len(set(zip(keys, classes, strict=True))) == 6_466


def test_isomorphism_key():
    key = Nasbench201Genotype.isomorphism_key
    none, skip, one, three, _ = NASBENCH201_OPS
    cell = Nasbench201Genotype(ops=(one, none, three, none, none, skip))
    assert key(cell) == "#+#+#+((0)@nor_conv_1x1)@nor_conv_3x3"
    # An operation of a zero is a zero, but a sum with a zero isn't the sum without it.
    zero = Nasbench201Genotype(ops=(none, none, none, one, none, none))
    assert key(zero) == key(Nasbench201Genotype(ops=(none, none, none, one, three, none)))
    assert key(zero) != key(Nasbench201Genotype(ops=(none, none, none, one, three, skip)))


# Dead operations


def test_live_cells_of_nasbench201():
    """By a walk from the input and one from the output; 9,445 as VKDNW has them."""
    num_live = 0
    for cell in Nasbench201().genotypes():
        ends = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
        edges = [ends for ends, op in zip(ends, cell.ops, strict=True) if op != "none"]
        reached, useful = {0}, {3}
        for source, node in sorted(edges):
            reached |= {node} if source in reached else set()
        for source, node in sorted(edges, reverse=True):
            useful |= {source} if node in useful else set()
        (graph,) = cell.graphs()
        used = {node for node in range(4) if graph.nodes[node].used}
        assert used == reached & useful
        live = [edge for edge in edges if used.issuperset(edge)]
        assert live == [edge[:2] for edge in graph.edges if edge.role == "op"]
        assert is_live(cell) is (live == edges)
        num_live += is_live(cell)
    assert num_live == 9_445


def test_live_cells_of_nasbench101_are_the_pruned():
    # Vertex 2 leads nowhere; vertex 3 has no edge at all.
    for dead in ([0, 1, 1, 0], [0, 1, 0, 0]):
        matrix = [[*dead, 0], [0, 0, 0, 0, 1], *[[0] * 5] * 3]
        cell = Nasbench101Genotype(matrix, ["input", *["conv3x3-bn-relu"] * 3, "output"])
        assert not is_live(cell)
        assert is_live(cell.prune())


# Canonical forms


@pytest.fixture(scope="module")
def canonical201():
    """The canonical form of every cell of NAS-Bench-201, in their order."""
    return {cell: cell.canonical() for cell in Nasbench201().genotypes()}


def live(cell):
    """The cell with `none` on the edges that are on no path of others from input to output."""
    a, b, c, d, e, f = (op != "none" for op in cell.ops)
    used = (a and (e or (c and f)), b and f, a and c and f, d, a and e, (b or (a and c)) and f)
    return Nasbench201Genotype(
        [op if keep else "none" for op, keep in zip(cell.ops, used, strict=True)]
    )


def test_what_is_on_no_path_is_not_in_a_canonical_cell(canonical201):
    assert len(set(map(live, canonical201))) == 9_445
    assert all(canonical201[live(cell)] == form for cell, form in canonical201.items())
    assert all(live(form) == form for form in canonical201.values())
    no_path = Nasbench201Genotype(["nor_conv_3x3", *["none"] * 3, *["none", "avg_pool_3x3"]])
    assert set(canonical201[no_path].ops) == {"none"}
    assert not any(
        "none" in form.ops for cell, form in canonical201.items() if "none" not in cell.ops
    )


def test_a_canonical_cell_is_the_first_of_its_class(canonical201):
    first = {}
    for cell, form in canonical201.items():
        assert first.setdefault(form, cell) == form
    assert len(first) == 5_044


def functions_of(known, *, halving=False):
    """A number for what each cell of the operations computes, equal for equal functions.

    It is the rank of the least output over all ways to give its edges the parameters there are.
    Cells that compute the same function up to a renaming of parameters have the same outputs, and
    others differ, with random parameters. A convolution is a random matrix and a function of its
    own, as is a skip from the input in a cell that halves it; a pool is one matrix everywhere,
    without a parameter.
    """
    rng = np.random.default_rng(0)
    inputs, pool, last = rng.normal(size=3), rng.normal(size=(3, 3)) / 2, rng.normal(size=3)
    matrices = rng.normal(size=(6, 3, 3))[list(itertools.permutations(range(6)))]

    def applied(op, edge, read):
        if op == "skip_connect" and halving and edge in (0, 1, 3):
            return np.cos(np.einsum("pij,pj->pi", matrices[:, edge], read))
        products = {
            "none": lambda: np.zeros_like(read),
            "skip_connect": lambda: read,
            "nor_conv_1x1": lambda: np.tanh(np.einsum("pij,pj->pi", matrices[:, edge], read)),
            "nor_conv_3x3": lambda: np.sin(np.einsum("pij,pj->pi", matrices[:, edge], read)),
            "avg_pool_3x3": lambda: read @ pool,
        }
        return products[op]()

    nodes = [np.tile(inputs, (len(matrices), 1)), None, None]
    outputs = []
    for a, b, c in itertools.product(known, repeat=3):
        nodes[1] = applied(a, 0, nodes[0])
        nodes[2] = applied(b, 1, nodes[0]) + applied(c, 2, nodes[1])
        parts = [
            [applied(op, edge, node) @ last for op in known] for edge, node in enumerate(nodes, 3)
        ]
        outputs += [(x + y + z).min() for x, y, z in itertools.product(*parts)]
    order = np.argsort(outputs)
    gaps = np.diff(np.array(outputs)[order])
    assert not np.any((gaps > 1e-13) & (gaps < 1e-11))  # between rounding and a difference
    functions = np.empty(len(order), int)
    functions[order] = np.cumsum([0, *(gaps > 1e-12)])
    return functions.tolist()


def test_cells_of_nasbench201_are_equal_functions_if_their_canonical_forms_are(canonical201):
    functions = functions_of(NASBENCH201_OPS)
    pairs = set(zip(functions, canonical201.values(), strict=True))
    assert len(pairs) == len(set(functions)) == len(set(canonical201.values()))


def test_canonical_cells_of_transnas101():
    """As those of NAS-Bench-201, but a skip from the input is a layer where it is halved."""
    cells = [*Transnas101().genotypes()]
    forms = [cell.canonical() for cell in cells]
    first = {}
    for cell, form in zip(cells, forms, strict=True):
        assert first.setdefault(form, cell) == form
    functions = functions_of(TRANSNAS101_OPS, halving=True)
    pairs = set(zip(functions, forms, strict=True))
    assert len(pairs) == len(set(functions)) == len(first) == 1_376
    assert sum(map(is_live, cells)) == 2_128 and all(map(is_live, first))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        # Two convolutions of the input are not one of them twice.
        ("conv conv none none skip skip", "conv none skip none skip skip", False),
        ("conv conv none none skip skip", "conv none none conv skip none", True),
        # Two pools of the input are one twice, and the pool of a sum is the sum of pools.
        ("pool pool none none skip skip", "pool none skip none skip skip", True),
        ("conv skip skip none none pool", "conv none none pool pool none", True),
        # Nodes and places in a chain are names.
        ("conv none none none pool none", "none pool none none none conv", False),
        ("conv none none none pool none", "none conv none none none pool", True),
        ("conv none skip none none pool", "skip none conv none none pool", True),
    ],
)
def test_canonical_forms_of_nasbench201(one, other, equal):
    ops = {"none": "none", "skip": "skip_connect", "conv": "nor_conv_3x3", "pool": "avg_pool_3x3"}
    cells = [Nasbench201Genotype([ops[op] for op in each.split()]) for each in (one, other)]
    assert (cells[0].canonical() == cells[1].canonical()) is equal


def test_the_key_of_the_benchmark_does_not_tell_two_convolutions_from_one_twice():
    conv, skip = "nor_conv_3x3", "skip_connect"
    two = Nasbench201Genotype([conv, conv, "none", "none", skip, skip])
    one_twice = Nasbench201Genotype([conv, "none", skip, "none", skip, skip])
    assert two.isomorphism_key() == one_twice.isomorphism_key()
    assert two.canonical() != one_twice.canonical()


@settings(max_examples=200, deadline=None)
@given(DARTS_GENOTYPES, st.data())
def test_a_canonical_darts_genotype_ignores_the_numbers_of_nodes(genotype, data):
    cells = []
    for edges in (genotype.normal, genotype.reduce):
        reads = {node: edges[2 * node - 4 : 2 * node - 2] for node in range(2, 6)}
        number = {0: 0, 1: 1}
        renumbered = []
        while len(number) < 6:
            free = [
                node
                for node in reads.keys() - number.keys()
                if all(edge.node in number for edge in reads[node])
            ]
            node = data.draw(st.sampled_from(sorted(free)))
            renumbered += [(edge.op, number[edge.node]) for edge in reads[node]]
            number[node] = len(number)
        cells.append(renumbered)
    form = genotype.canonical()
    assert DartsGenotype(*cells).canonical() == form == form.canonical()
    assert sorted(edge.op for edge in form.normal) == sorted(edge.op for edge in genotype.normal)
    assert DartsGenotype(genotype.reduce, genotype.normal).canonical() == DartsGenotype(
        form.reduce, form.normal
    )


def test_canonical_darts_genotypes_differ_in_what_nodes_read():
    genotype = parse_genotype(DARTS_V2)
    other = list(genotype.normal)
    other[0], other[1] = ("sep_conv_3x3", 0), ("sep_conv_5x5", 1)
    swapped_inputs = list(other)
    swapped_inputs[0], swapped_inputs[1] = ("sep_conv_5x5", 0), ("sep_conv_3x3", 1)
    cells = (genotype.normal, other, swapped_inputs)
    assert len({DartsGenotype(cell, genotype.reduce).canonical() for cell in cells}) == 3


@pytest.mark.parametrize("space", [1, 2, 3])
def test_canonical_cells_of_nasbench1shot1_are_told_apart_by_their_hash(space):
    space = Nasbench1Shot1(space)
    forms = {}
    for seed in range(300):
        cell = space.sample(jax.random.key(seed))
        form = cell.canonical()
        assert forms.setdefault(cell.module_hash(), form) == form
        assert form.canonical() == form == form.prune()
        assert form.module_hash() == cell.module_hash()
    assert len(set(forms.values())) == len(forms) < 300


# Graphs of NAS-Bench-101


def test_module_hash_is_the_key_of_nasbench101():
    path = DATA / "nasbench101_30k.csv.gz"
    if not path.exists():
        pytest.skip(f"needs the NAS-Bench-101 table {path} (set NASI_DATA to its folder)")
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in random.Random(0).sample(rows, 2_000):
        size, bits = int(row["vertices"]), [int(bit) for bit in row["adjacency"]]
        genotype = Nasbench101Genotype(
            matrix=[bits[i * size : (i + 1) * size] for i in range(size)],
            ops=row["ops"].split(","),
        )
        assert genotype.module_hash() == row["hash"], row
        assert parse_genotype(genotype.to_text()) == genotype


@settings(max_examples=200, deadline=None)
@given(nasbench101_genotypes(with_path=True, max_size=6), st.data())
def test_hash_and_prune_ignore_a_dangling_vertex(genotype, data):
    size = len(genotype.ops)
    new = data.draw(st.integers(1, size - 1))  # its place, before the vertex that is there now
    old = [vertex for vertex in range(size + 1) if vertex != new]
    matrix = [[0] * (size + 1) for _ in range(size + 1)]
    for row in range(size):
        for column in range(size):
            matrix[old[row]][old[column]] = genotype.matrix[row][column]
    if data.draw(st.booleans()):
        for source in range(new):
            matrix[source][new] = data.draw(st.integers(0, 1))
    else:
        for target in range(new + 1, size + 1):
            matrix[new][target] = data.draw(st.integers(0, 1))
    ops = list(genotype.ops)
    ops.insert(new, data.draw(st.sampled_from(NASBENCH101_OPS)))
    larger = Nasbench101Genotype(matrix=matrix, ops=ops)
    assert larger.prune() == genotype.prune()
    assert larger.module_hash() == genotype.module_hash()


@settings(max_examples=200, deadline=None)
@given(nasbench101_genotypes(with_path=True), st.data())
def test_hash_and_canonical_form_ignore_the_labels_of_the_vertices(genotype, data):
    size = len(genotype.ops)
    order, left = [0], set(range(1, size - 1))
    while left:
        free = [v for v in sorted(left) if not left.intersection(genotype.parents(v))]
        order.append(data.draw(st.sampled_from(free)))
        left.remove(order[-1])
    order.append(size - 1)
    relabelled = Nasbench101Genotype(
        matrix=[[genotype.matrix[i][j] for j in order] for i in order],
        ops=[genotype.ops[i] for i in order],
    )
    assert relabelled.module_hash() == genotype.module_hash()
    assert relabelled.canonical() == genotype.canonical()


@settings(max_examples=200, deadline=None)
@given(nasbench101_genotypes(with_path=True))
def test_prune_keeps_the_paths(genotype):
    def paths(cell, vertex):
        if vertex == 0:
            return [["input"]]
        parents = cell.parents(vertex)
        return [[*path, cell.ops[vertex]] for v in parents for path in paths(cell, v)]

    pruned = genotype.prune()
    last = len(pruned.ops) - 1
    assert paths(pruned, last) == paths(genotype, len(genotype.ops) - 1)
    assert pruned.prune() == pruned
    assert all(pruned.parents(v) for v in range(1, last + 1))
    assert all(any(pruned.matrix[v]) for v in range(last))


def test_hash_tells_cells_apart():
    genotype = parse_genotype(SPEC)
    other_op = parse_genotype(swapped(SPEC, "maxpool3x3", "conv1x1-bn-relu"))
    other_edge = parse_genotype(swapped(SPEC, "[0, 1, 1, 0]", "[0, 1, 1, 1]"))
    assert len({cell.module_hash() for cell in (genotype, other_op, other_edge)}) == 3


@pytest.mark.parametrize(
    "matrix",
    [
        [[0, 0], [0, 0]],
        [[0, 1, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 0, 0]],
        [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]],
    ],
)
def test_a_cell_without_a_path_is_not_pruned(matrix):
    ops = ["input", *["maxpool3x3"] * (len(matrix) - 2), "output"]
    genotype = Nasbench101Genotype(matrix=matrix, ops=ops)
    assert parse_genotype(genotype.to_text()) == genotype
    for method in (genotype.prune, genotype.module_hash, genotype.canonical):
        with pytest.raises(ValueError, match="no path leads from the cell's input to its output"):
            method()


# Malformed texts

NORMAL_2 = "('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
CONCAT = "normal_concat=[2, 3, 4, 5]"
MUST_BE_RANGE = "normal_concat must be range(2, 6)"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("sep_conv_3x3", "sep_conv_7x7", "unknown op 'sep_conv_7x7' in the normal cell of a DARTS"),
        ("sep_conv_3x3", "none", "unknown op 'none' in the normal cell"),
        ("max_pool_3x3", "none", "unknown op 'none' in the reduce cell"),
        ("sep_conv_3x3", "x" * 5000, "unknown op 'xxxxx"),
        ("sep_conv_3x3", r"\n\x85", r"unknown op '\n\x85' in"),
        ("sep_conv_3x3", r"\d\(", r"unknown op '\\d\\(' in"),
        ("'sep_conv_3x3'", "b'sep_conv_3x3'", "unknown op b'sep_conv_3x3' in"),
        ("'sep_conv_3x3'", "{}", "unknown op {} in"),
        ("'sep_conv_3x3'", "f'sep_conv_3x3'", ONLY_LITERALS),
        ("'sep_conv_3x3'", "f'{1}'", ONLY_LITERALS),
        (NORMAL_2, "", "the normal cell takes a list of 8 (op, node) pairs"),
        (NORMAL_2, NORMAL_2 * 2, "the normal cell takes a list of 8 (op, node) pairs"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3',)", "an edge of the normal cell is not an (op,"),
        ("('sep_conv_3x3', 0)", "('sep_conv_3x3', 0, 0)", "an edge of the normal cell is not an"),
        ("('sep_conv_3x3', 0)", "'ab'", "an edge of the normal cell is not an (op, node) pair"),
        ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "node 5 of the normal cell reads a node fr"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2)", "from 0 to 1, not 2"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', -1)", "from 0 to 1, not -1"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1.0)", "from 0 to 1, not 1.0"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', True)", "from 0 to 1, not True"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', '1')", "from 0 to 1, not '1'"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', None)", "from 0 to 1, not None"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1j)", "from 0 to 1, not 1j"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1e999)", "from 0 to 1, not inf"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', [1])", "from 0 to 1, not [1]"),
        ("('sep_conv_3x3', 1)", f"('sep_conv_3x3', 0x{'f' * 5000})", "not a value of type int"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)", "reads node 0 twice; the two edges of a"),
        (CONCAT, "normal_concat=[3, 4, 5]", MUST_BE_RANGE),
        (CONCAT, "normal_concat=[2, 3, 4, 5, 6]", MUST_BE_RANGE),
        (CONCAT, "normal_concat=[2.0, 3, 4, 5]", MUST_BE_RANGE),
        (CONCAT, "normal_concat=[5, 4, 3, 2]", MUST_BE_RANGE),
        (CONCAT, "normal_concat={2, 3, 4, 5}", MUST_BE_RANGE),
        (CONCAT, "normal_concat=None", MUST_BE_RANGE),
        (CONCAT, "normal_concat=range(1, 6)", MUST_BE_RANGE),
        (CONCAT, "normal_concat=range(2, 99)", MUST_BE_RANGE),
        (CONCAT, "normal_concat=range(2, 101)", ONLY_RANGE),
        (CONCAT, f"normal_concat=range(2, {10**18})", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, 10**18)", ONLY_RANGE),
        (CONCAT, f"normal_concat=range({'9' * 4000}, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(-2, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2.0, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(False, True)", ONLY_RANGE),
        (CONCAT, "normal_concat=range('2', '6')", ONLY_RANGE),
        (CONCAT, "normal_concat=range(6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range()", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, 6, 1)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, 6, x)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, stop=6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, 6, **{})", ONLY_RANGE),
        (CONCAT, "normal_concat=range(*[2, 6])", ONLY_RANGE),
        (CONCAT, "normal_concat=range(two, six)", ONLY_RANGE),
        (CONCAT, "normal_concat=list(range(2, 6))", ONLY_RANGE),
        (CONCAT, "normal_concat=list((2, 6))", ONLY_RANGE),
        (CONCAT, "normal_concat=x.range(2, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=range(2, 6)(2, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=1(2, 6)", ONLY_RANGE),
        (CONCAT, "normal_concat=[range(2, 6)]", ONLY_LITERALS),
        (CONCAT, "normal_concat=[*range(2, 6)]", ONLY_LITERALS),
        (CONCAT, "normal_concat=range(2, 6).start", ONLY_LITERALS),
        (CONCAT, "normal_concat=[i for i in (2, 3, 4, 5)]", ONLY_LITERALS),
        (CONCAT, "normal_concat=[2, 3, 4, 5][:]", ONLY_LITERALS),
        (CONCAT, "normal_concat=[2, 3, 4, 5] or 1", ONLY_LITERALS),
        (CONCAT, "normal_concat=[2, 3] + [4, 5]", ONLY_LITERALS),
        (CONCAT, "normal_concat=lambda: [2, 3, 4, 5]", ONLY_LITERALS),
        (CONCAT, "normal_concat=(x := [2, 3, 4, 5])", ONLY_LITERALS),
        (CONCAT, "normal_concat=(yield)", ONLY_LITERALS),
        (CONCAT, "normal_concat=(await x)", ONLY_LITERALS),
        (CONCAT, "normal_concat=concat", ONLY_LITERALS),
        (CONCAT, "normal_concat=().__class__", ONLY_LITERALS),
        (CONCAT, "normal_concat=1 is 1", ONLY_LITERALS),
        (CONCAT, "normal_concat=1if 1else 2", ONLY_LITERALS),
        (CONCAT, "normal_concat=0x1for x in y", ONLY_LITERALS),
        (CONCAT, "normal_concat={[]: 1}", ONLY_LITERALS),
        (CONCAT, "normal_concat={{}}", ONLY_LITERALS),
        (CONCAT, f"normal_concat={'-' * 2000}1", ONLY_LITERALS),
        (CONCAT, f"normal_concat={'-' * 8000}1", NO_DARTS),
        (CONCAT, f"normal_concat={'1+' * 4000}1", NO_DARTS),
        (CONCAT, f"normal_concat={'not ' * 500}1", ONLY_LITERALS),
        (CONCAT, f"normal_concat={'[' * 150}{']' * 150}", MUST_BE_RANGE),
        (CONCAT, f"normal_concat={'[' * 4000}{']' * 4000}", NO_DARTS),
        (CONCAT, f"normal_concat={'9' * 5000}", NO_DARTS),
        (CONCAT, "normal_concat=0777", NO_DARTS),
        (CONCAT, "normal_concat:=[2, 3, 4, 5]", NO_DARTS),
        (CONCAT, "normal_concat", NO_DARTS),
        (CONCAT, "[2, 3, 4, 5]", NO_DARTS),
        (CONCAT, f"{CONCAT}, {CONCAT}", NO_DARTS),
        (CONCAT, f"{CONCAT}, extra=1", NO_DARTS),
        (CONCAT, f"{CONCAT}, **{{}}", NO_DARTS),
        (CONCAT, "**{'normal_concat': [2, 3, 4, 5]}", NO_DARTS),
        (CONCAT, "*[]", NO_DARTS),
        (f"{CONCAT}, ", "", NO_DARTS),
        (CONCAT, f"{CONCAT};", NO_DARTS),
        (CONCAT, f"{CONCAT}\0", NO_DARTS),
        (CONCAT, f"{CONCAT}\ud800", NO_DARTS),
        (CONCAT, f"{CONCAT}\N{NO-BREAK SPACE}", NO_DARTS),
        (CONCAT, f"{CONCAT}{chr(0xE0001) * 9}", NO_DARTS),
        ("sep_conv_3x3", "sep_conv_3\N{MULTIPLICATION SIGN}3", "unknown op 'sep_conv_3×3'"),
        ("sep_conv_3x3", "\ud800", NO_DARTS),
        ("sep_conv_3x3", "\0", NO_DARTS),
        ("sep_conv_3x3", "\n", NO_DARTS),
        ("Genotype(", "GenotypeX(", NO_DARTS),
        ("Genotype(", "Genotype", NO_DARTS),
        ("Genotype(", "Genotype.make(", NO_DARTS),
        ("Genotype(", "Genotype()(", NO_DARTS),
        ("Genotype(", "Genotype = dict(", NO_DARTS),
        ("Genotype(", "Genotype(normal, ", NO_DARTS),
        ("Genotype(", "Genotype(*[], ", NO_DARTS),
        ("Genotype(", "Genotype" + chr(0xE0001) * 80 + "(", NO_DARTS),
        ("Genotype(", "genotype(", "not a genotype: "),
        ("Genotype(", "dict(", "not a genotype: "),
        ("Genotype(", "x.Genotype(", "not a genotype: "),
        ("Genotype(", "(Genotype)(", "not a genotype: "),
        ("Genotype(", "DARTS_V2 = Genotype(", "not a genotype: "),
        ("Genotype(", "\N{FULLWIDTH LATIN CAPITAL LETTER G}enotype(", "not a genotype: "),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]).normal", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5])[0]", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5])()", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]), 1", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]) x", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5])\nprint()", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 5]", NO_DARTS),
        ("reduce_concat=[2, 3, 4, 5])", "reduce_concat=[2, 3, 4, 6])", "reduce_concat must be"),
    ],
    ids=short_id,
)
def test_malformed_darts(old, new, part):
    refused(parse_genotype, swapped(DARTS_V2, old, new), part)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("avg_pool_3x3", "max_pool_3x3", "unknown op 'max_pool_3x3' in a NAS-Bench-201 genotype"),
        ("avg_pool_3x3", " avg_pool_3x3", "unknown op ' avg_pool_3x3' in"),
        ("avg_pool_3x3", "avg_pool_3\N{MULTIPLICATION SIGN}3", "unknown op 'avg_pool_3×3' in"),
        ("avg_pool_3x3", "a\nb", r"unknown op 'a\nb' in"),
        ("avg_pool_3x3", "\0\ud800\N{LINE SEPARATOR}", r"unknown op '\x00\ud800\u2028' in"),
        ("avg_pool_3x3", "x" * 9000, "unknown op 'xxx"),
        ("avg_pool_3x3", "", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3~1", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3~0.0", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3~True", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3~\N{ARABIC-INDIC DIGIT ZERO}", NO_ARCH),
        ("avg_pool_3x3~0", "avg_pool_3x3~0~0", NO_ARCH),
        ("|avg_pool_3x3~0|+", "", NO_ARCH),
        ("|avg_pool_3x3~0|+", "||+", NO_ARCH),
        ("|avg_pool_3x3~0|+", "|avg_pool_3x3~0|", NO_ARCH),
        ("|avg_pool_3x3~0|", "|avg_pool_3x3~0|none~1|", NO_ARCH),
        ("skip_connect~2|", "skip_connect~2", NO_ARCH),
        ("skip_connect~2|", "skip_connect~2| x", NO_ARCH),
        ("skip_connect~2|", "skip_connect~2|\n|", NO_ARCH),
        ("skip_connect~2|", "skip_connect~2|\0", NO_ARCH),
        ("skip_connect~2|", "skip_connect~2|+|none~0|none~1|none~2|none~3|", NO_ARCH),
        ("skip_connect~2|", "|" * 9000, NO_ARCH),
    ],
    ids=short_id,
)
def test_malformed_nasbench201(old, new, part):
    refused(parse_genotype, swapped(ARCH, old, new), part)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("1_23", "4_23", NO_MICRO),
        ("1_23", "\N{ARABIC-INDIC DIGIT ONE}_23", NO_MICRO),
        ("_012", "_01", NO_MICRO),
        ("_012", "_0123", NO_MICRO),
        ("_012", "_012-basic", NO_MICRO),
        ("1_23_012", "basic", NO_MICRO),
        ("1_23_012", "", NO_MICRO),
        ("41414", "1234", "not a genotype: "),  # of the macro space
        ("64-", "32-", "not a genotype: "),
    ],
    ids=short_id,
)
def test_malformed_transnas101(old, new, part):
    refused(parse_genotype, swapped(MICRO, old, new), part)


def test_transnas101_has_no_pool():
    ops = ["avg_pool_3x3", *["none"] * 5]
    part = "unknown op 'avg_pool_3x3' in a TransNAS-Bench-101 genotype; known: none, skip_connect"
    refused(genotype_from_dict, {"format": "transnas101", "ops": ops}, part)
    refused(genotype_from_dict, {"format": "transnas101", "ops": ops[1:]}, "takes a list of 6 ops")


OPS = "ops=['input', 'conv3x3-bn-relu', 'maxpool3x3', 'output']"
SQUARE = "4 ops take a matrix of 4 rows of 4 entries"
ENDS = "the ops of a NAS-Bench-101 cell begin with 'input', end with 'output'"
COUNT = "a NAS-Bench-101 cell takes a list of 2 to 7 ops"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("maxpool3x3", "maxpool5x5", "unknown op 'maxpool5x5' in a NAS-Bench-101 genotype; known"),
        ("maxpool3x3", "input", "unknown op 'input' in"),
        ("maxpool3x3", "none", "unknown op 'none' in"),
        ("maxpool3x3", "x" * 9000, "unknown op 'xxx"),
        ("'maxpool3x3'", "['maxpool3x3']", "unknown op ['maxpool3x3'] in"),
        ("'maxpool3x3'", "{1: 2}", "unknown op {1: 2} in"),
        ("'maxpool3x3'", f"[{'9' * 4000}]", "unknown op [999"),
        ("'input'", "'output'", ENDS),
        ("'input', ", "", ENDS),
        ("'input'", "1", ENDS),
        (", 'output'", "", ENDS),
        ("'output'", "'output', 'output', 'input'", ENDS),
        (OPS, "ops=['output', 'input']", ENDS),
        (OPS, "ops=[]", COUNT),
        (OPS, "ops=['input']", COUNT),
        (OPS, f"ops={['input', *['maxpool3x3'] * 6, 'output']}", COUNT),
        (OPS, "ops='input'", COUNT),
        (OPS, "ops={'input': 'output', 1: 2}", COUNT),
        (OPS, "ops=range(0, 1)", COUNT),
        (OPS, "ops=range(0, 4)", ENDS),
        (OPS, "ops=None", COUNT),
        ("'maxpool3x3', ", "", "3 ops take a matrix of 3 rows of 3 entries"),
        ("[0, 0, 0, 0]", "[0, 0, 0]", SQUARE),
        ("[0, 0, 0, 0]", "[0, 0, 0, 0, 0]", SQUARE),
        ("[0, 0, 0, 0]", "'0000'", SQUARE),
        ("[0, 0, 0, 0]", "{0: 0, 1: 0, 2: 0, 3: 0}", SQUARE),
        ("[0, 0, 0, 0]", "0", SQUARE),
        (", [0, 0, 0, 0]", "", SQUARE),
        ("[0, 1, 1, 0], [", "[", SQUARE),
        ("[0, 1, 1, 0]", "[1, 1, 1, 0]", ENTRIES + "1"),
        ("[0, 1, 1, 0]", "[2, 1, 1, 0]", ENTRIES + "2"),
        ("[0, 1, 1, 0]", "[-1, 1, 1, 0]", ENTRIES + "-1"),
        ("[0, 1, 1, 0]", "[True, 1, 1, 0]", ENTRIES + "True"),
        ("[0, 1, 1, 0]", "[False, 1, 1, 0]", ENTRIES + "False"),
        ("[0, 1, 1, 0]", "[0.0, 1, 1, 0]", ENTRIES + "0.0"),
        ("[0, 1, 1, 0]", "['0', 1, 1, 0]", ENTRIES + "'0'"),
        ("[0, 1, 1, 0]", "[None, 1, 1, 0]", ENTRIES + "None"),
        ("[0, 1, 1, 0]", "[[], 1, 1, 0]", ENTRIES + "[]"),
        ("[0, 1, 1, 0]", f"[{'9' * 4300}, 1, 1, 0]", ENTRIES + "999"),
        ("[0, 1, 1, 0]", f"[0x{'f' * 5000}, 1, 1, 0]", ENTRIES + "a value of type int"),
        ("[0, 1, 1, 0]", f"['{chr(0xE0001) * 80}', 1, 1, 0]", ENTRIES + r"'\U000e0001"),
        ("[0, 1, 1, 0]", "[0, 1, 2, 0]", "row 0, column 2 holds 2"),
        ("[0, 1, 1, 0]", "[0, 1, True, 0]", "row 0, column 2 holds True"),
        ("[0, 0, 0, 0]", "[0, 0, 1, 0]", "row 3, column 2 holds 1"),
        ("[0, 0, 0, 0]", "[0, 0, 0, 1]", "row 3, column 3 holds 1"),
        ("[0, 1, 1, 0]", "[0, 1, 1, x]", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "[0, 1, 1, 0].copy()", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "list([0, 1, 1, 0])", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "range(0, 4)", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "[0, 1, 1, lambda: 0]", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "[0, 1, 1, (x := 0)]", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "[0, 1, 1, 0 if 1else 0]", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "*[[0, 1, 1, 0]]", ONLY_LITERALS),
        ("[0, 1, 1, 0]", "[0, 1, 1, 0", NO_SPEC),
        (OPS, "tuple(['input', 'output'])", NO_SPEC),
        (OPS, "ops=tuple(['input', 'output'])", ONLY_RANGE),
        (OPS, f"{OPS}, **{{}}", NO_SPEC),
        (OPS, f"{OPS}, *[]", NO_SPEC),
        (OPS, f"{OPS}, {OPS}", NO_SPEC),
        (OPS, f"{OPS}, hash=1", NO_SPEC),
        (f", {OPS}", "", NO_SPEC),
        ("matrix=", "", NO_SPEC),
        ("matrix=", "adjacency=", NO_SPEC),
        ("ModelSpec(", "ModelSpec_(", NO_SPEC),
        ("ModelSpec(", "ModelSpec[", NO_SPEC),
        ("ModelSpec(", "ModelSpec(ModelSpec(", NO_SPEC),
        ("ModelSpec(", "ModelSpec\0(", NO_SPEC),
        ("ModelSpec(", "ModelSpec\ud800(", NO_SPEC),
        ("ModelSpec(", "api.ModelSpec(", "not a genotype: "),
        ("ModelSpec(", "lambda: ModelSpec(", "not a genotype: "),
        ("'output'])", "'output']) + 1", NO_SPEC),
        ("'output'])", "'output']).matrix", NO_SPEC),
        ("'output'])", "'output']) if x else y", NO_SPEC),
        ("'output'])", "'output']) for x in y", NO_SPEC),
        ("'output'])", "'output']))", NO_SPEC),
        ("'output'])", "'output']); x", NO_SPEC),
        ("'output'])", "'output'])\\", NO_SPEC),
    ],
    ids=short_id,
)
def test_malformed_nasbench101(old, new, part):
    refused(parse_genotype, swapped(SPEC, old, new), part)


FIELDS_101 = "a nasbench101 genotype in JSON has the fields matrix, ops, not "


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{}", NO_FORMAT),
        ('{"ops": []}', NO_FORMAT),
        ('{"format": null}', NO_FORMAT),
        ('{"format": []}', NO_FORMAT),
        ('{"format": {}}', NO_FORMAT),
        ('{"format": 1}', NO_FORMAT),
        ('{"format": NaN}', NO_FORMAT),
        ('{"format": "nasnet"}', "unknown genotype format 'nasnet'; known: darts, nasbench201, n"),
        ('{"format": "DARTS"}', "unknown genotype format 'DARTS'"),
        ('{"format": "\\ud800\\n"}', r"unknown genotype format '\ud800\n'"),
        (f'{{"format": "{"x" * 9000}"}}', "unknown genotype format 'xxx"),
        ('{"format": "darts"}', "a darts genotype in JSON has the fields normal, reduce, not ''"),
        ('{"format": "nasbench101", "ops": []}', FIELDS_101 + "'ops'"),
        ('{"format": "nasbench101", "ops": [], "matrix": [], "a\\nb": 1}', FIELDS_101 + r"'a\nb, "),
        (f'{{"format": "nasbench101", "{"x" * 9000}": 1}}', FIELDS_101 + "'xxx"),
        ('{"format": "nasbench201", "ops": "none"}', "a NAS-Bench-201 cell takes a list of 6 ops"),
        ('{"format": "nasbench201", "ops": {}}', "a NAS-Bench-201 cell takes a list of 6 ops"),
        ('{"format": "nasbench201", "ops": "nnnnnn"}', "a NAS-Bench-201 cell takes a list of 6"),
        ('{"format": "nasbench201", "ops": [1, 1, 1, 1, 1]}', "takes a list of 6 ops"),
        ('{"format": "nasbench201", "ops": [1, 1, 1, 1, 1, 1, 1]}', "takes a list of 6 ops"),
        ('{"format": "nasbench201", "ops": [0, 0, 0, 0, 0, 0]}', "unknown op 0 in a NAS-Bench-201"),
        ('{"format": "nasbench201", "ops": [[], 0, 0, 0, 0, 0]}', "unknown op [] in a NAS-Bench-2"),
        ('{"format": "nasbench201", "ops": [{}, 0, 0, 0, 0, 0]}', "unknown op {} in a NAS-Bench-2"),
        ('{"format": "nasbench201", "ops": [NaN, 0, 0, 0, 0, 0]}', "unknown op nan in a NAS-Bench"),
        ('{"format": "darts", "normal": [], "reduce": []}', "the normal cell takes a list of 8 (o"),
        ('{"format": "darts", "normal": {}, "reduce": 1}', "the normal cell takes a list of 8 (op"),
        ('{"format": "nasbench101", "matrix": [[0, 1], [0, 0]], "ops": {}}', COUNT),
        ('{"format": "nasbench101", "matrix": [[0, 1], [0, 0]], "ops": [{}, []]}', ENDS),
        ('{"format": "darts"', "not JSON: "),
        ("{'format': 'darts'}", "not JSON: "),
        ('{"format": "darts",}', "not JSON: "),
        ('{"format": "darts"} {}', "not JSON: "),
        ('{"format": "darts\0"}', "not JSON: "),
        ('{"format": "darts\n"}', "not JSON: "),
        ('{"format": __import__("os")}', "not JSON: "),
        (f'{{"format": {"9" * 5000}}}', "not JSON: "),
        (f'{{"format": {"[" * 9000}', "not JSON: "),
        (f'{{"format": {"[" * 4000}{"]" * 4000}}}', "not JSON: "),
        ('{"":' * 2000, "not JSON: "),
        (f"[{VALID_JSON[0]}]", "not a genotype: "),
        ('"darts"', "not a genotype: "),
        ("null", "not a genotype: "),
        ("NaN", "not a genotype: "),
    ],
    ids=short_id,
)
def test_malformed_json(text, part):
    refused(parse_genotype, text, part)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('["sep_conv_3x3", 0]', '["none", 0]', "unknown op 'none' in the normal cell of a DARTS"),
        ('["sep_conv_3x3", 0]', '[["sep_conv_3x3"], 0]', "unknown op ['sep_conv_3x3'] in"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", 0.0]', "from 0 to 1, not 0.0"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", false]', "from 0 to 1, not False"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", NaN]', "from 0 to 1, not nan"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", 2]', "from 0 to 1, not 2"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", "0"]', "from 0 to 1, not '0'"),
        ('["sep_conv_3x3", 0]', '["sep_conv_3x3", {}]', "from 0 to 1, not {}"),
        ('["sep_conv_3x3", 0]', '{"sep_conv_3x3": 0}', "an edge of the normal cell is not an (op"),
        ('["sep_conv_3x3", 0], ', "", "the normal cell takes a list of 8 (op, node) pairs"),
        ('"normal"', '"normale"', "has the fields normal, reduce, not 'normale, reduce'"),
        ('"normal"', '"format"', NO_FORMAT),
        ('"darts"', '"nasbench201"', "a nasbench201 genotype in JSON has the fields ops, not 'nor"),
        ('"darts"', '"darts", "normal_concat": [2]', "has the fields normal, reduce, not 'normal,"),
    ],
    ids=short_id,
)
def test_malformed_darts_json(old, new, part):
    refused(parse_genotype, swapped(VALID_JSON[0], old, new), part)


@pytest.mark.parametrize("fields", [None, 1, "darts", [], [("format", "darts")], {1: 2}, {"a": 1}])
def test_fields_that_are_no_object(fields):
    refused(genotype_from_dict, fields, NO_FORMAT)


@pytest.mark.parametrize("size", [10_000, 10**6])
@pytest.mark.parametrize(
    "kind", ["Genotype(normal=", "ModelSpec(matrix=", "|", "64-41414-", '{"format": ']
)
def test_a_long_text_is_refused(kind, size):
    text = kind + "-" * size
    refused(parse_genotype, text, f"{TOO_LONG}{len(text)}")
    for genotype_type in families().values():
        refused(genotype_type.from_text, text, f"{TOO_LONG}{len(text)}")


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n", "\0", "\ufeff", "\ud800", "x", "__import__('os')", "*", "\u2502none~0\u2502",
     "(" * 9000, "[" * 9000, chr(0xE0001) * 9000],
    ids=short_id,
)  # fmt: skip
def test_no_genotype(text):
    refused(parse_genotype, text, "not a genotype: ")
    refused(DartsGenotype.from_text, text, NO_DARTS)
    refused(Nasbench101Genotype.from_text, text, NO_SPEC)
    refused(Nasbench201Genotype.from_text, text, NO_ARCH)
    refused(Transnas101Genotype.from_text, text, NO_MICRO)


@pytest.mark.parametrize("text", VALID)
def test_a_valid_text_of_another_format(text):
    for genotype_type in families().values():
        if not isinstance(parse_genotype(text), genotype_type):
            refused(genotype_type.from_text, text, "not a ")


def test_values_that_have_no_repr():
    """Python refuses to write an integer of over 4300 digits, and lists nested too deep."""
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in (10**5000, nested):
        name = type(value).__name__
        edges = [("skip_connect", 0), ("skip_connect", value)] * 4
        part = f"a value of type {name}"
        refused(lambda value: Nasbench201Genotype(ops=[value] * 6), value, part)
        refused(lambda edges: DartsGenotype(normal=edges, reduce=edges), edges, part)
        fields = {"format": "nasbench101", "matrix": [[value, 1], [0, 0]]}
        refused(genotype_from_dict, fields | {"ops": ["input", "output"]}, ENTRIES + part)
    for depth in range(800, 1100, 5):
        text = '{"format": "nasbench201", "ops": [' + "[" * depth + "]" * depth + ",1,1,1,1,1]}"
        genotype, message = attempt(parse_genotype, text)
        assert genotype is None
        assert "unknown op" in message or "not JSON" in message


# Fuzzing

ANY_CHARACTER = st.characters(exclude_categories=())  # surrogates too
FRAGMENTS = st.sampled_from(
    ["\\d", "\\N{x}", "\\", "\0", "\ud800", "\n", "#", "'", '"', "'''", "(", ")", "[", "]", "{",
     "}", ",", "=", ":=", "**{}", "*[]", "lambda: ", "1if 1else ", "0x1for ", " is 1", "f'{x}'",
     "b", "()", "(1)", ".x", ";", "@", "-", "1.0", "True", "None", "9" * 4400, "range(2, 6)",
     "range(0, 99999)", "|", "~", "+", "none", "format", "\u2028", "NaN", "1e999", "not ", "await "]
)  # fmt: skip


@st.composite
def mutated(draw, originals):
    text = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        dropped = draw(st.sampled_from([0, 0, 1, 1, 2, 12]))
        inserted = draw(st.one_of(st.just(""), FRAGMENTS, st.text(ANY_CHARACTER, max_size=3)))
        text = text[:at] + inserted + text[at + dropped :]
    return text


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 7)
    | st.integers()
    | st.floats()
    | st.sampled_from((*DARTS_OPS, *NASBENCH201_OPS, *NASBENCH101_OPS, "input", "output"))
    | st.text(ANY_CHARACTER),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(ANY_CHARACTER), inner),
    max_leaves=12,
)


@st.composite
def json_texts(draw):
    """A valid genotype of which up to two values are others, or other fields with a format."""
    fields = json.loads(draw(st.sampled_from(VALID_JSON)))
    kind = draw(st.sampled_from(["few", "few", "all", "any"]))
    if kind == "few":
        for _ in range(draw(st.integers(0, 2))):
            place, key = fields, draw(st.sampled_from(sorted(fields)))
            while isinstance(place[key], list) and place[key] and draw(st.integers(0, 4)):
                place = place[key]
                key = draw(st.integers(0, len(place) - 1))
            place[key] = draw(JSON_VALUES)
    elif kind == "all":
        fields |= {key: draw(JSON_VALUES) for key in fields if key != "format"}
    else:
        fields = draw(st.dictionaries(st.text(ANY_CHARACTER), JSON_VALUES, max_size=3))
        fields["format"] = draw(st.sampled_from(tuple(families())) | JSON_VALUES)
    return json.dumps(fields, ensure_ascii=draw(st.booleans()))


def parses_or_refuses(text):
    genotype, _ = attempt(parse_genotype, text)
    if genotype is not None:
        again = parse_genotype(genotype.to_text())
        assert type(again) is type(genotype)
        assert again == genotype
        assert genotype_from_dict(genotype_to_dict(genotype)) == genotype


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        ["", "Genotype", "Genotype(", "ModelSpec(matrix=", "|", "64-41414-", "{", '{"format":']
    ),
    st.text(ANY_CHARACTER),
)
def test_fuzz_any_text(start, text):
    parses_or_refuses(start + text)


@settings(max_examples=1200, deadline=None)
@given(mutated((*VALID, *VALID_JSON)))
@example(swapped(DARTS_V2, CONCAT, "normal_concat=1 is 1"))
@example(swapped(DARTS_V2, CONCAT, "normal_concat=1if 1else 2"))
@example(swapped(DARTS_V2, "'sep_conv_3x3'", r"'\d'"))
@example(swapped(SPEC, "'input'", r"b'\d'"))
@example(swapped(SPEC, "[0, 1, 1, 0]", "[1][1, 2]"))
def test_fuzz_mutated_text(text):
    parses_or_refuses(text)


@settings(max_examples=300, deadline=None)
@given(json_texts())
def test_fuzz_json(text):
    parses_or_refuses(text)


# No text is executed


@pytest.mark.parametrize("text", (*VALID, *VALID_JSON), ids=short_id)
def test_nothing_is_executed(text, tmp_path):
    made = tmp_path / "made"
    calls = (f"__import__('os').mknod('{made}')", f"open('{made}', 'x').close()")
    for call in calls:
        eval(call)  # the call works, so that a genotype's parser that ran it would be seen
        assert made.exists()
        made.unlink()
    payloads = [
        *calls,
        *(f'f"{{{call}}}"' for call in calls),
        f"(lambda: {calls[0]})()",
        f"[{calls[0]} for _ in (1,)][0]",
        f"range(2, {calls[0]})",
        f"**{{'x': {calls[0]}}}",
        f"x={calls[0]}",
        json.dumps(calls[0]),
        f"'''\n{calls[0]}\n'''",
        f"; {calls[0]};",
        f"\n{calls[0]}\n",
    ]
    tokens = list(re.finditer(r"'[^']*'|\"[^\"]*\"|\w+|\S", text))
    for payload in payloads:
        texts = [payload, f"{text}{payload}", f"{text} or {payload}"]
        for token in tokens:
            before, after = text[: token.start()], text[token.end() :]
            texts += [before + payload + token[0] + after, before + payload + after]
            if len(token[0]) > 2:  # inside of a string, where the arch_str has none
                texts.append(before + token[0][0] + payload + token[0][-1] + after)
        for changed in texts:
            genotype, _ = attempt(parse_genotype, changed)
            assert genotype is None, changed
    assert not made.exists()
    assert list(tmp_path.iterdir()) == []
