"""The precision of matrix products: what each command computes with, and that layers follow it."""

import dataclasses
import functools
import types
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from nasi_jax import runs
from nasi_jax import search as nasi_search
from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.cells.layers import conv
from nasi_jax.config import ScoreConfig, SearchConfig
from nasi_jax.training.recipes import RECIPES
from nasi_jax.types import MatmulPrecision


class Seen(Exception):
    """Carries the precision that something was called with."""


def stop(*_, **__):
    raise Seen(jax.config.values["jax_default_matmul_precision"])


def precision_of(run, *arguments):
    with pytest.raises(Seen) as caught:
        run(*arguments)
    assert jax.config.values["jax_default_matmul_precision"] is None
    return str(caught.value)


def test_defaults():
    """What accelerators are compared with a CPU by is exact, what trains is fast."""
    assert SearchConfig().matmul_precision == ScoreConfig().matmul_precision == "highest"
    assert {recipe.matmul_precision for recipe in RECIPES.values()} == {"default"}


@pytest.mark.parametrize("precision", get_args(MatmulPrecision))
def test_every_run_computes_with_the_precision_of_its_configuration(
    tmp_path, monkeypatch, precision
):
    chosen = {"matmul_precision": precision}
    monkeypatch.setattr(nasi_search, "run", stop)
    config = dataclasses.replace(tiny.CONFIG, **chosen)
    assert precision_of(runs.search.search, config, tmp_path / "search") == precision
    monkeypatch.setattr(runs.score, "_scores", stop)
    scores = ScoreConfig(num_archs=1, **chosen)
    assert precision_of(runs.score.score, scores, tmp_path / "scores.csv") == precision
    monkeypatch.setattr(runs.train._Loop, "run", stop)
    genotype = SEARCH_SPACES["nasbench201"].sample(jax.random.key(0))
    recipe = dataclasses.replace(RECIPES["quick"], image_size=8, **chosen)
    assert precision_of(runs.train.train, genotype, recipe, tmp_path / "train") == precision


def test_predictions_are_computed_as_the_training_was(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    config = dataclasses.replace(RECIPES["quick"], image_size=8, matmul_precision="high")
    images = types.SimpleNamespace(num_classes=2, scale=255, mean=np.zeros(3), std=np.ones(3))
    trained = types.SimpleNamespace(
        config=config, images=images, class_names=("a", "b"), variables={}, network=None
    )
    monkeypatch.setattr(runs.predict, "prepared", stop)
    assert precision_of(runs.predict.predict, trained, [path]) == "high"


LAYERS = {
    "pointwise": (conv.conv, (1, 1, 4, 4)),
    "dense": (conv.conv, (3, 3, 4, 4)),
    "depthwise": (functools.partial(conv.depthwise_conv, method="lax"), (3, 3, 1, 4)),
}


@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("layer", LAYERS)
def test_convolutions_and_their_derivatives_follow_it(precision, layer):
    """In the program for a GPU too, which is made here without one."""
    function, shape = LAYERS[layer]

    def loss(inputs, kernel):
        return jnp.sum(jnp.square(function(inputs, kernel)))

    with jax.default_matmul_precision(precision):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(jnp.ones((2, 8, 8, 4)), jnp.ones(shape))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert products
    for line in products:
        assert f"precision = [{precision.upper()}, {precision.upper()}]" in line or (
            f"#stablehlo<precision {precision.upper()}>" in line
        )
