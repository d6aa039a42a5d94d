"""Limits of the size of the network that is trained, in a search and in a selection."""

import dataclasses
import itertools
import json

import pytest
from helpers import assert_one_line
from toy import OPS, Chain

from nasi_jax import runs
from nasi_jax.cells import parse_genotype, search_space
from nasi_jax.cells.nasbench201 import Nasbench201Genotype
from nasi_jax.config import Limits, SearchConfig, SelectConfig
from nasi_jax.runs import limits
from nasi_jax.runs.limits import network_size

IN_TOY = {
    "space": "toy:Chains",
    "norm": "none",
    "init_channels": 2,
    "num_cells": 1,
    "image_size": 8,
    "batch_size": 4,
}
SEARCH = SearchConfig(**IN_TOY, steps=2, limits_for="cifar100")
# A stem of 3x3x3x4 + 4, a convolution of 3x3x4x4 + 4 each, and a head of 4x100 + 100.
SKIPS, ONE_CONV, TWO_CONVS = 612, 760, 908

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def sizes_of_the_chosen(monkeypatch):
    """The toy's networks hold the convolutions that are not chosen, too: counts those that are."""
    counts = [SKIPS, ONE_CONV, TWO_CONVS]

    def network_size(genotype, purpose):
        assert purpose == "cifar100"
        count = counts[genotype.ops.count("conv")]
        return limits.Size(count, 10 * count)

    monkeypatch.setattr(limits, "network_size", network_size)


def test_the_size_is_that_of_the_network_that_is_trained():
    """A cell of convolutions of 3x3, by a count of its layers."""
    genotype = Nasbench201Genotype(("nor_conv_3x3",) * 6)
    channels, pixels = (16, 32, 64), (32**2, 16**2, 8**2)
    params = 27 * 16 + 2 * 16 + 2 * 64 + 64 * 100 + 100
    work = 27 * 16 * 32**2 + 64 * 100
    for width, places in zip(channels, pixels, strict=True):
        params += 5 * 6 * (9 * width**2 + 2 * width)
        work += 5 * 6 * 9 * width**2 * places
    for narrow, wide, places in ((16, 32, 16**2), (32, 64, 8**2)):
        params += 9 * narrow * wide + 9 * wide**2 + narrow * wide + 4 * wide
        work += (9 * narrow * wide + 9 * wide**2 + narrow * wide) * places
    assert network_size(genotype, "cifar100") == (params, work)


def test_the_network_of_imagenet_is_that_of_darts():
    """Of the cells of PC-DARTS, which are published with 5.3 M parameters and 586 M multiply-adds;
    ours are of convolutions and the dense layer alone."""
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), "
        "('dil_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), "
        "('dil_conv_3x3', 1)], normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_5x5', 1), "
        "('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 0), "
        "('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], "
        "reduce_concat=[2, 3, 4, 5])"
    )
    genotype = parse_genotype(text)
    size = network_size(genotype, "imagenet")
    assert round(size.params / 1e6, 1) == 5.3
    assert 0.97 < size.multiply_adds / 586e6 < 1
    assert round(network_size(genotype).params / 1e6, 1) == 3.6


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ({}, 2),
        ({"max_params": 908.0}, 2),
        ({"max_params": 907.0}, 1),
        ({"max_params": 907.0, "max_multiply_adds": 7000.0}, 0),
        ({"max_multiply_adds": 7600.0}, 1),
    ],
)
def test_a_search_selects_the_most_probable_within_limits(
    tmp_path, sizes_of_the_chosen, limit, most
):
    """Of chains of so many convolutions."""
    config = dataclasses.replace(SEARCH, **limit)
    result = runs.search.search(config, tmp_path / "run")
    rows = [list(row.values()) for row in result["alpha"]["chain"].values()]
    chains = itertools.product(enumerate(OPS), repeat=2)
    in_order = sorted((-rows[0][a] - rows[1][b], (one, other)) for (a, one), (b, other) in chains)
    place, ops = next(
        (place, ops) for place, (_, ops) in enumerate(in_order, 1) if ops.count("conv") <= most
    )
    assert (result["place"], result["text"]) == (place, Chain(ops).to_text())
    count = [SKIPS, ONE_CONV, TWO_CONVS][ops.count("conv")]
    network = {"for": "cifar100", "params": count, "multiply_adds": 10 * count}
    assert result.get("network") == (network if limit else None)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["text"] == result["text"]


def test_a_search_that_finds_none_within_limits_says_so(tmp_path, sizes_of_the_chosen):
    with pytest.raises(ValueError) as caught:
        runs.search.search(dataclasses.replace(SEARCH, max_params=600.0), tmp_path / "run")
    assert_one_line(caught, "max_params and max_multiply_adds", "none of them is so small")


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_a_selection_looks_at_nothing_beyond_limits(tmp_path, sizes_of_the_chosen, method):
    config = SelectConfig(
        **IN_TOY,
        method=method,
        proxies=("flops",),
        budget=2,
        population=2,
        tournament=1,
        max_params=800.0,
        limits_for="cifar100",
    )
    result = runs.select.select(config, tmp_path / "run")
    assert result["num_scored"] == 2 and result["network"]["params"] == ONE_CONV
    assert parse_genotype(result["text"], "toy:Chains").ops.count("conv") == 1
    more = dataclasses.replace(config, budget=3)
    with pytest.raises(ValueError) as caught:
        runs.select.select(more, tmp_path / "more")
    assert_one_line(caught, "budget must be within", "only 2 different networks")


@pytest.mark.parametrize("method", ["prune", "perturb"])
def test_what_supernets_come_to_beyond_limits_is_refused(tmp_path, sizes_of_the_chosen, method):
    config = SelectConfig(
        **IN_TOY, method=method, walks=2, proxies=("flops",), max_params=1e3, limits_for="cifar100"
    )
    within = runs.select.select(config, tmp_path / "run")
    assert within["network"]["params"] <= 1000
    with pytest.raises(ValueError) as caught:
        runs.select.select(dataclasses.replace(config, max_params=500.0), tmp_path / "more")
    assert_one_line(caught, "max_params and max_multiply_adds", method, "evolution")


def test_networks_of_imagenet_are_those_of_darts_alone():
    with pytest.raises(ValueError) as caught:
        limits.within(Limits(limits_for="imagenet"), search_space("nasbench201"))
    assert_one_line(caught, "limits_for must be cifar10 or cifar100 in nasbench201, got imagenet")
    limits.within(Limits(limits_for="imagenet"), search_space("darts"))
