"""Sizes, shares and agreement of DARTS cells."""

import darts_cells
import numpy as np
import pytest
import size_of_x
from measuring import DARTS_V2

from nasi_jax.cells.darts import DartsGenotype

V2 = DartsGenotype.from_text(DARTS_V2)


def test_sizes_of_darts_v2():
    """The published parameters; multiply-adds of its layers on ImageNet, see README.md."""
    sizes = darts_cells.network_sizes(V2)
    assert round(sizes["cifar10"][0], 6) == 3.349342
    assert round(sizes["imagenet"][0], 2) == 4.72
    assert round(sizes["imagenet"][1], 1) == 529.9


def test_shares():
    assert darts_cells.shares([V2, V2])["normal"] == {
        "dil_conv_3x3": 1 / 8,
        "sep_conv_3x3": 5 / 8,
        "skip_connect": 2 / 8,
    }


def test_agreement():
    """Edges are told apart by cell, node, node read and operation."""
    assert darts_cells.agreement([V2]) is None
    assert darts_cells.agreement([V2, V2]) == 1
    other = DartsGenotype(
        normal=V2.normal, reduce=[("avg_pool_3x3", edge.node) for edge in V2.reduce]
    )
    assert darts_cells.agreement([V2, other]) == 0.5
    # The same operation on the same node read, but into another node.
    swapped = DartsGenotype(normal=V2.normal[2:4] + V2.normal[:2] + V2.normal[4:], reduce=V2.reduce)
    assert darts_cells.agreement([V2, swapped]) == 1
    assert darts_cells.agreement([V2, V2, other]) == pytest.approx((1 + 0.5 + 0.5) / 3)


@pytest.mark.parametrize(("nus", "expected"), [((50,), True), ((1,), False), ((50, 99), False)])
def test_nu_within(nus, expected):
    assert size_of_x.within(np.linspace(0, 100, 101), nus) == expected
