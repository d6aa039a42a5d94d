"""Architectures in the order of their probability, against an enumeration of all of them."""

import itertools

import jax
import numpy as np
import pytest

from nasi_jax.cells import search_space
from nasi_jax.cells.choice import random_alpha
from nasi_jax.cells.darts import DartsGenotype
from nasi_jax.search import by_probability
from nasi_jax.types import Edge


def logs_of(alpha):
    return {name: np.asarray(jax.nn.log_softmax(each)) for name, each in alpha.items()}


def alpha_of(space, seed=0):
    return random_alpha(jax.random.key(seed), space.init_alpha())


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("nasbench201", ("none", "skip_connect", "nor_conv_3x3")),
        ("transnas101", ("none", "nor_conv_3x3")),
        ("nasbench1shot1-1", None),
    ],
)
def test_the_order_is_that_of_all_architectures(name, ops):
    """Which the rows choose independently, as many options of each as are selected."""
    space = search_space(name, ops=ops)
    alpha = alpha_of(space)
    logs, counts = logs_of(alpha), space.num_selected()
    of_rows = [
        [
            sum(row[column] for column in chosen)
            for chosen in itertools.combinations(range(len(row)), k)
        ]
        for entry, k in counts.items()
        for row in logs[entry]
    ]
    expected = np.sort([sum(chosen) for chosen in itertools.product(*of_rows)])[::-1][:150]
    found = list(itertools.islice(by_probability(space, alpha), 150))
    assert found[0] == space.discretize(alpha)
    assert len(set(found)) == len(found) == min(150, len(expected))
    values = [
        sum(float(np.sum(np.asarray(each) * logs[entry])) for entry, each in weights.items())
        for weights in map(space.one_hot, found)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_the_order_of_darts_is_that_of_all_pairs_of_edges():
    """Of two other nodes each, none of them by none: nodes choose independently."""
    ops = ("none", "skip_connect", "sep_conv_3x3")
    space = search_space("darts", ops=ops)
    alpha = alpha_of(space)
    logs = logs_of(alpha)
    most = 60
    best: list[tuple[float, tuple[tuple[Edge, ...], ...]]] = [(0.0, ())]
    for cell in ("normal", "reduce"):
        row = 0
        for node in range(2, 6):
            edges = [
                (float(logs[cell][row + source][ops.index(op)]), Edge(op, source))
                for source in range(node)
                for op in ops[1:]
            ]
            pairs = [
                (a[0] + b[0], (a[1], b[1]))
                for a, b in itertools.combinations(edges, 2)
                if a[1].node != b[1].node
            ]
            # Of the best sums of parts only the best of each part are.
            sums = [(x + y, (*done, pair)) for x, done in best for y, pair in pairs]
            best = sorted(sums, key=lambda each: -each[0])[:most]
            row += node
    expected = [DartsGenotype(sum(pairs[:4], ()), sum(pairs[4:], ())) for _, pairs in best]
    assert list(itertools.islice(by_probability(space, alpha), most)) == expected


def test_every_architecture_comes_once():
    space = search_space("nasbench201", ops=("none", "skip_connect"))
    found = list(by_probability(space, alpha_of(space)))
    assert len(found) == 2**6 and set(found) == set(space.genotypes())
