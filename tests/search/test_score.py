"""Architectures scored as one-hot weights against the networks that they stand for."""

import jax
import numpy as np
import pytest
from compiled import quick_compilation
from helpers import random_batch

from nasi_jax.cells import search_space
from nasi_jax.kernels import batch_gradient
from nasi_jax.search import init_params, score_fn
from nasi_jax.types import NORM_MODES, NetworkSpec

SPACES = {
    "nasbench201": {"ops": ("none", "skip_connect", "nor_conv_1x1")},
    "nasbench1shot1-2": {"ops": ("conv1x1-bn-relu", "maxpool3x3")},
    # Without `none`: an edge that is not kept has no operation at all.
    "darts": {"num_cells": 3, "ops": ("skip_connect", "dil_conv_3x3")},
}
CASES = [
    *(("nasbench201", norm, True) for norm in NORM_MODES),
    ("nasbench201", "frozen", False),
    ("nasbench1shot1-2", "batch", True),
    ("nasbench1shot1-2", "frozen", False),
    ("darts", "frozen", True),
]


@pytest.mark.parametrize(("name", "norm", "one_hot"), CASES)
def test_traced_once_and_the_score_of_the_network(name, norm, one_hot):
    space = search_space(name, init_channels=2, **{"num_cells": 1, **SPACES[name]})
    supernet, batch = space.supernet(4, NetworkSpec(norm=norm), one_hot=one_hot), random_batch(0)
    genotypes = [space.sample(key) for key in jax.random.split(jax.random.key(0), 4)]
    traced = []

    def proxy(key, apply_fn, params, batch):
        traced.append(1)
        # The key enters, so that it is seen to be the one that was given.
        return batch_gradient(key, apply_fn, params, batch) * (1 + jax.random.uniform(key))

    with quick_compilation():
        weights = space.one_hot(genotypes[0])
        params = jax.jit(init_params, static_argnums=1)(
            jax.random.key(1), supernet, batch.inputs, weights
        )
        score = score_fn(space, supernet, proxy=proxy, norm=norm)
        scores = [float(score(jax.random.key(2), params, each, batch)) for each in genotypes]
        other = float(score(jax.random.key(2), params, genotypes[0], random_batch(1)))
    assert len(traced) == 1
    assert len({*scores, other}) == 5

    inherited = space.inherit({"params": params})["params"]
    factor = 1 + float(jax.random.uniform(jax.random.key(2)))
    for genotype, value in zip(genotypes[:2], scores[:2], strict=True):
        network = space.network(genotype, 4, NetworkSpec(norm=norm), form="search")
        statistics = {}
        if norm == "frozen":
            _, statistics = jax.jit(
                lambda params, inputs, network=network: network.apply(
                    {"params": params}, inputs, mutable=["batch_stats"]
                ),
            )(inherited, batch.inputs)

        def apply_fn(params, inputs, network=network, statistics=statistics):
            return network.apply({"params": params, **statistics}, inputs)

        expected = jax.jit(
            lambda params, batch, apply_fn=apply_fn: batch_gradient(
                jax.random.key(0), apply_fn, params, batch
            ),
        )(inherited, batch)
        np.testing.assert_allclose(value, factor * expected, rtol=1e-4)
