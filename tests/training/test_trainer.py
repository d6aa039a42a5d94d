import dataclasses
import functools
from typing import get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from measuring import DARTS_V2

from nasi_jax.cells import DartsGenotype, parse_genotype
from nasi_jax.training.recipes import RECIPES, Recipe, TrainConfig
from nasi_jax.training.trainer import (
    Images,
    learning_rate_of,
    network_of,
    num_cells_of,
    optimizer_of,
    prepared,
    size_of,
    trainer,
)
from nasi_jax.types import DropPath

ARCH = parse_genotype(
    "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
)
SPEC = parse_genotype(
    "ModelSpec(matrix=[[0, 1, 1], [0, 0, 1], [0, 0, 0]], "
    "ops=['input', 'conv3x3-bn-relu', 'output'])"
)
EVERY_OP = [
    ("sep_conv_3x3", 0),
    ("max_pool_3x3", 1),
    ("dil_conv_3x3", 0),
    ("skip_connect", 1),
    ("avg_pool_3x3", 0),
    ("sep_conv_5x5", 2),
    ("dil_conv_5x5", 3),
    ("skip_connect", 0),
]
EVERY_CELL = DartsGenotype(EVERY_OP, EVERY_OP)
FEW_OPS = [
    ("dil_conv_3x3", 0),
    ("max_pool_3x3", 1),
    ("avg_pool_3x3", 0),
    ("skip_connect", 1),
    ("max_pool_3x3", 0),
    ("skip_connect", 2),
    ("avg_pool_3x3", 3),
    ("skip_connect", 0),
]
CELLS = DartsGenotype(FEW_OPS, FEW_OPS)
"""That compile in about half the time of those of every operation."""

PLAIN = TrainConfig(
    epochs=4, batch_size=8, crop="none", flip=False, init_channels=4, image_size=8, weight_decay=0.1
)
DARTS = dataclasses.replace(
    PLAIN, num_cells=3, init_channels=2, auxiliary_weight=0.4, drop_path=0.3, clip=5.0
)
IMAGES = Images(3, 16, 255.0, np.float32([120, 110, 100]), np.float32([60, 50, 40]))
"""Two steps an epoch at a batch size of 8."""

KEY = jax.random.key(7)


pytestmark = pytest.mark.usefixtures("unoptimized")


def batch(seed=0, size=8):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (8, size, size, 3), np.uint8)
    return jnp.asarray(pixels), jnp.asarray(generator.integers(0, 3, 8), jnp.int32)


@functools.cache
def compiled(genotype, config):
    """The trainer; its functions are compiled once for all tests."""
    training = trainer(genotype, config, IMAGES)
    jitted = {name: jax.jit(getattr(training, name)) for name in ("step", "evaluate")}
    return training._replace(**jitted)


@functools.cache
def first_state(genotype):
    """Which takes nothing from the settings that tests change."""
    return compiled(genotype, DARTS if genotype is CELLS else PLAIN).init(jax.random.key(1))


@functools.cache
def steps_of(genotype, config, num_steps=2):
    """The state after some steps, and the scores of all."""
    state, step, scores = first_state(genotype), compiled(genotype, config).step, []
    for index in range(num_steps):
        state, score = step(KEY, state, *batch(index, config.image_size))
        scores.append(score)
    return state, scores


def test_parameters_are_those_of_a_forward_pass():
    """Bit by bit; statistics are a mean of 0 and a variance of 1."""
    network = network_of(CELLS, DARTS, IMAGES.num_classes)
    expected = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    state = first_state(CELLS)
    chex.assert_trees_all_equal(state.params, expected["params"])
    chex.assert_trees_all_equal_shapes(state.batch_stats, expected["batch_stats"])
    for path, leaf in jax.tree.leaves_with_path(state.batch_stats):
        assert np.all(np.asarray(leaf) == (path[-1].key == "variance"))


# The optimizer and its schedule


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_optimizer_is_sgd_in_the_order_of_pytorch(nesterov, clip):
    """p' = p - lr (d + m v) or p - lr v, v = m v + d, d = clipped gradient + decay * p."""
    config = dataclasses.replace(
        PLAIN, nesterov=nesterov, clip=clip, learning_rate=0.5, final_learning_rate=0.5
    )
    optimizer = optimizer_of(config, 2)
    generator = np.random.default_rng(0)
    params = {"w": jnp.asarray(generator.normal(size=5), jnp.float32), "b": jnp.float32(0.5)}
    expected, velocity = np.append(params["b"], params["w"]), np.zeros(6)
    state = optimizer.init(params)
    for _ in range(3):
        gradient = generator.normal(size=6).astype(np.float32)
        tree = {"w": jnp.asarray(gradient[1:]), "b": jnp.asarray(gradient[0])}
        updates, state = optimizer.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        norm = np.linalg.norm(gradient)
        if clip and norm > clip:
            gradient = gradient * clip / norm
        total = gradient + config.weight_decay * expected
        velocity = config.momentum * velocity + total
        expected = expected - 0.5 * (total + config.momentum * velocity if nesterov else velocity)
        np.testing.assert_allclose(np.append(params["b"], params["w"]), expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_learning_rate(schedule, warmup):
    config = TrainConfig(
        epochs=10,
        warmup_epochs=warmup,
        schedule=schedule,
        learning_rate=0.6,
        final_learning_rate=0.1,
    )
    rate, rise, total = learning_rate_of(config, 3), 3 * warmup, 30
    for step in range(total + 1):
        if step < rise:
            expected = 0.6 * step / rise
        else:
            share = (step - rise) / (total - rise)
            fallen = (1 + np.cos(np.pi * share)) / 2 if schedule == "cosine" else 1 - share
            expected = 0.1 + 0.5 * fallen
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)


# A step


def one_by_hand(config, state, raw, labels, network):
    """The loss of a batch, written out: no augmentation, one part."""
    mean, std = (part.reshape(1, 1, 1, 3) for part in (IMAGES.mean, IMAGES.std))
    inputs = (raw.astype(jnp.float32) - mean) / std

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = network.apply(variables, inputs, mutable=["batch_stats", "auxiliary"])
        smooth = (1 - config.label_smoothing) * jax.nn.one_hot(labels, 3)
        smooth += config.label_smoothing / 3

        def entropy(logits):
            return -jnp.mean(jnp.sum(smooth * jax.nn.log_softmax(logits), axis=1))

        total = entropy(logits)
        if config.auxiliary_weight:
            total += config.auxiliary_weight * entropy(new["auxiliary"]["logits"][0])
        return total, (entropy(logits), logits, new["batch_stats"])

    return jax.grad(loss, has_aux=True)(state.params)


@pytest.mark.parametrize(
    ("genotype", "config"),
    [
        (ARCH, dataclasses.replace(PLAIN, label_smoothing=0.1)),
        (CELLS, dataclasses.replace(DARTS, drop_path=0.0)),
    ],
)
def test_step_is_that_written_out(genotype, config):
    algorithm, state = compiled(genotype, config), first_state(genotype)
    raw, labels = batch()
    new, score = algorithm.step(KEY, state, raw, labels)
    gradient, (loss, logits, stats) = jax.jit(one_by_hand, static_argnums=(0, 4))(
        config, state, raw, labels, algorithm.network
    )
    optimizer = optimizer_of(config, 2)
    updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-4, atol=1e-6)
    running = jax.tree.map(lambda old, of: 0.9 * old + 0.1 * of, state.batch_stats, stats)
    chex.assert_trees_all_close(new.batch_stats, running, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(score.loss, 8 * loss, rtol=1e-5)
    assert score.num_correct == np.sum(np.argmax(logits, 1) == labels)
    assert new.step == 1


def test_statistics_begin_as_those_of_normalized_images():
    for path, leaf in jax.tree.leaves_with_path(first_state(ARCH).batch_stats):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, path[-1].key == "variance"))


@pytest.mark.parametrize(("genotype", "config"), [(ARCH, PLAIN), (CELLS, DARTS)])
def test_micro_batches_change_nothing(genotype, config):
    """The groups of examples that share statistics are the same, and so are the random numbers."""
    whole = dataclasses.replace(config, norm_group=4, flip=True, cutout=4, image_size=16)
    parts = dataclasses.replace(whole, micro_batches=2)
    ungrouped = dataclasses.replace(whole, norm_group=None)
    # In the last epoch, where drop-path is at its strongest.
    state = first_state(genotype)._replace(step=jnp.int32(6))
    states, scores = zip(
        *(
            compiled(genotype, each).step(KEY, state, *batch(size=16))
            for each in (whole, parts, ungrouped)
        ),
        strict=True,
    )
    chex.assert_trees_all_close(scores[1], scores[0], rtol=1e-4)
    chex.assert_trees_all_close(states[1], states[0], rtol=1e-3, atol=1e-5)
    # The groups matter.
    moved, apart = (
        optax.tree.norm(jax.tree.map(jnp.subtract, other.params, states[0].params))
        for other in (states[2], states[1])
    )
    assert moved > 100 * apart


@pytest.mark.parametrize(("genotype", "config"), [(ARCH, PLAIN), (CELLS, DARTS)])
def test_remat_changes_nothing(genotype, config):
    expected, _ = steps_of(genotype, config)
    found, _ = steps_of(genotype, dataclasses.replace(config, remat=True))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("genotype", "config", "cells"),
    [(ARCH, PLAIN, 3), (CELLS, DARTS, 3), (SPEC, PLAIN, 9)],
    ids=["nasbench201", "darts", "nasbench101"],
)
def test_remat_is_of_every_cell(genotype, config, cells):
    """NAS-Bench-201 has one in each of three stages here."""
    network = network_of(genotype, dataclasses.replace(config, remat=True), 3)
    inputs = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(network.init, KEY, inputs)
    found = str(jax.make_jaxpr(network.apply)(variables, inputs))
    assert found.count("prevent_cse=True") == cells


def test_bfloat16_trains_close_to_float32():
    expected, (score, _) = steps_of(ARCH, PLAIN)
    found, (other, _) = steps_of(ARCH, dataclasses.replace(PLAIN, precision="bfloat16"))
    chex.assert_trees_all_equal_dtypes(found, expected)
    # 8 bits of mantissa, a dozen layers.
    np.testing.assert_allclose(other.loss, score.loss, rtol=0.05)
    assert other.loss != score.loss


@pytest.mark.usefixtures("keys_used_once")
def test_steps_differ_in_their_random_numbers():
    state = first_state(ARCH)
    step = compiled(ARCH, dataclasses.replace(PLAIN, crop="pad", flip=True)).step
    raw, labels = batch()
    losses = [
        float(step(KEY, state._replace(step=jnp.int32(index)), raw, labels)[1].loss)
        for index in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(
    "change",
    [{"crop": "pad"}, {"flip": True}, {"cutout": 4}, {"jitter": (0.4, 0.4, 0.4, 0.2)}],
)
def test_each_augmentation_is_applied(change):
    _, (plain,) = steps_of(ARCH, PLAIN, 1)
    _, (changed,) = steps_of(ARCH, dataclasses.replace(PLAIN, **change), 1)
    assert abs(float(plain.loss - changed.loss)) > 1e-3


def test_cutout_blanks_to_the_mean():
    """A cutout of twice the image leaves nothing but the bias of the last layer."""
    config = dataclasses.replace(PLAIN, cutout=32)
    _, (score,) = steps_of(ARCH, config, 1)
    _, labels = batch()
    np.testing.assert_allclose(score.loss, len(labels) * np.log(3), rtol=1e-5)


def test_resized_crops_are_of_the_size_of_the_network():
    config = dataclasses.replace(PLAIN, crop="resized")
    raw, labels = batch(size=12)
    _, score = compiled(ARCH, config).step(KEY, first_state(ARCH), raw, labels)
    assert np.isfinite(score.loss)
    middle = prepared(raw, config, IMAGES)
    expected = (np.asarray(raw[:, 2:10, 2:10], np.float32) - IMAGES.mean) / IMAGES.std
    np.testing.assert_allclose(middle, expected, rtol=1e-5, atol=1e-5)


def test_evaluate_uses_running_statistics_and_weights():
    algorithm = compiled(ARCH, PLAIN)
    state, _ = steps_of(ARCH, PLAIN)
    raw, labels = batch(5)
    weights = jnp.arange(8, dtype=jnp.float32) % 3
    score = algorithm.evaluate(state, raw, labels, weights)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(algorithm.network.apply)
    alone = [apply(variables, prepared(each[None], PLAIN, IMAGES)) for each in raw]
    logits = np.concatenate(alone)
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(8), labels]
    np.testing.assert_allclose(score.loss, np.dot(weights, losses), rtol=1e-4)
    correct = np.where(logits.argmax(1) == labels, weights, 0)
    np.testing.assert_allclose(score.num_correct, correct.sum())


# Drop-path and the auxiliary head


def darts_network():
    state = first_state(CELLS)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(400, 8, 8, 3)), jnp.float32)
    return network_of(CELLS, DARTS, 3), variables, inputs


def test_drop_path_leaves_out_operations_but_identities():
    """At a rate close to 1 all is left out but what the identities pass on."""
    network, variables, inputs = darts_network()
    outputs = {}

    def note(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        if type(context.module).__name__ == "_Cell":
            outputs[context.module.name] = (args, result)
        return result

    keys = jax.random.split(jax.random.key(1), len(inputs))
    with nn.intercept_methods(note):
        network.apply(variables, inputs, DropPath(jnp.float32(1 - 1e-6), keys))
    (_, second, _), cell = outputs["cell_0"]
    nodes = np.split(np.asarray(cell), 4, axis=-1)
    # Node 3 (and 5) read an input by an identity, of stride 1 in a normal cell.
    blank = np.mean(nodes[0] == 0)
    assert blank > 0.99
    np.testing.assert_allclose(
        np.mean(np.isclose(nodes[1], np.asarray(second), rtol=1e-5)), 1, atol=0.01
    )
    _, cell = outputs["cell_1"]
    assert np.mean(np.asarray(cell) == 0) > 0.98


def test_drop_path_keeps_the_mean_and_the_share():
    network, variables, inputs = darts_network()
    nodes = {}

    def note(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        if type(context.module).__name__ == "_Cell" and context.module.name == "cell_0":
            nodes["given"] = result
        return result

    rate = 0.25
    keys = jax.random.split(jax.random.key(1), len(inputs))
    with nn.intercept_methods(note):
        network.apply(variables, inputs)
        whole = np.split(np.asarray(nodes["given"]), 4, axis=-1)[0]
        network.apply(variables, inputs, DropPath(jnp.float32(rate), keys))
        dropped = np.split(np.asarray(nodes["given"]), 4, axis=-1)[0]
    # Node 2 is a sum of two operations, each kept by itself and then divided by 0.75.
    blank = (dropped == 0).all(axis=(1, 2, 3))
    full = np.isclose(dropped, whole / (1 - rate), rtol=1e-4, atol=1e-5).all(axis=(1, 2, 3))
    for found, expected in ((blank, rate**2), (full, (1 - rate) ** 2)):
        # Four standard deviations of a share of 400.
        assert abs(found.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)


def test_drop_path_grows_with_the_epochs():
    """Rate 0 in the first epoch, of two steps; then a share of what the end has."""
    without = dataclasses.replace(DARTS, drop_path=0.0)
    first, _ = steps_of(CELLS, DARTS)
    same, _ = steps_of(CELLS, without)
    chex.assert_trees_all_close(first.params, same.params, rtol=1e-4, atol=1e-6)
    raw, labels = batch(2)
    losses = [
        float(compiled(CELLS, each).step(KEY, first, raw, labels)[1].loss)
        for each in (DARTS, without)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


@pytest.mark.usefixtures("keys_used_once")
def test_parts_of_a_batch_are_dropped_as_in_the_whole():
    network, variables, inputs = darts_network()
    keys = jax.random.split(jax.random.key(1), 8)
    rate = jnp.float32(0.5)
    whole = network.apply(variables, inputs[:8], DropPath(rate, keys))
    part = network.apply(variables, inputs[4:8], DropPath(rate, keys[4:]))
    np.testing.assert_allclose(part, whole[4:], rtol=1e-4, atol=1e-5)


def test_auxiliary_head_is_computed_only_where_it_is_asked_for():
    network, variables, inputs = darts_network()
    less = {**variables, "params": {**variables["params"]}}
    del less["params"]["auxiliary_head"]
    np.testing.assert_array_equal(
        network.apply(less, inputs[:4]), network.apply(variables, inputs[:4])
    )
    _, updates = network.apply(variables, inputs[:4], mutable=["auxiliary"])
    (logits,) = updates["auxiliary"]["logits"]
    assert logits.shape == (4, 3)


def test_auxiliary_head_written_out():
    """On images of 8 x 8 with average pooling 5 x 5 of stride 3, as in DARTS."""
    network = network_of(CELLS, dataclasses.replace(DARTS, image_size=32), 3)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), inputs)
    seen = {}

    def note(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        if context.module.name == "cell_2":
            seen["cell"] = result
        return result

    kept = {name: variables[name] for name in ("params", "batch_stats")}
    with nn.intercept_methods(note):
        _, updates = network.apply(kept, inputs, mutable=["auxiliary"])
    head, stats = (kept[name]["auxiliary_head"] for name in ("params", "batch_stats"))

    def normalized(x, layer):
        scale = np.asarray(stats[layer]["variance"]).ravel() + 1e-5
        return (x - np.asarray(stats[layer]["mean"]).ravel()) / np.sqrt(scale)

    x = np.maximum(np.asarray(seen["cell"]), 0)
    assert x.shape[1:3] == (8, 8)
    pooled = np.stack(
        [[x[:, i : i + 5, j : j + 5].mean(axis=(1, 2)) for j in (0, 3)] for i in (0, 3)], axis=0
    )
    pooled = np.moveaxis(pooled, 2, 0)
    narrow = np.maximum(
        normalized(pooled @ np.asarray(head["conv_0"]["kernel"])[0, 0], "norm_0"), 0
    )
    kernel = np.asarray(head["conv_1"]["kernel"]).reshape(2, 2, 128, 768)
    wide = np.maximum(normalized(np.einsum("bijc,ijcf->bf", narrow, kernel), "norm_1"), 0)
    expected = wide @ np.asarray(head["head"]["kernel"]) + np.asarray(head["head"]["bias"])
    np.testing.assert_allclose(updates["auxiliary"]["logits"][0], expected, rtol=1e-4, atol=1e-4)


# Against PyTorch, by the exported module


@pytest.mark.parametrize(
    ("genotype", "config"), [(ARCH, PLAIN), (EVERY_CELL, DARTS), (SPEC, PLAIN)]
)
def test_training_agrees_with_pytorch(tmp_path, genotype, config):
    torch = pytest.importorskip("torch")
    from nasi_jax import export

    config = dataclasses.replace(
        config, auxiliary_weight=0.0, drop_path=0.0, nesterov=True, clip=2.0, learning_rate=0.05
    )
    algorithm = compiled(genotype, config)
    state = algorithm.init(jax.random.key(1))
    sizes = {"init_channels": config.init_channels, "num_cells": num_cells_of(genotype, config)}
    source = export.module_source(
        genotype, "torch", num_classes=3, **({} if genotype is SPEC else sizes)
    )
    module = {"__name__": "exported"}
    exec(compile(source, "exported.py", "exec"), module)
    network = module["Network"]()

    def weights(state):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return export.parameters(variables, "torch")

    network.load_state_dict({name: torch.tensor(value) for name, value in weights(state).items()})
    network.train()
    rate = learning_rate_of(config, 2)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1, nesterov=True
    )
    for index in range(3):
        raw, labels = batch(index)
        inputs = np.array(prepared(raw, config, IMAGES)).transpose(0, 3, 1, 2)
        optimizer.param_groups[0]["lr"] = float(rate(index))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            network(torch.tensor(inputs)), torch.tensor(np.array(labels), dtype=torch.long)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        state, score = algorithm.step(KEY, state, raw, labels)
        np.testing.assert_allclose(score.loss / 8, loss.item(), rtol=1e-3)
    found = {name: value.numpy() for name, value in network.state_dict().items()}
    for name, expected in weights(state).items():
        # PyTorch keeps the variance of a sample.
        if not name.endswith(("running_var", "num_batches_tracked")):
            np.testing.assert_allclose(found[name], expected, rtol=5e-3, atol=5e-4, err_msg=name)


# Sizes, recipes, refusals


def test_sizes_leave_out_the_auxiliary_head():
    """DARTS-V2, as DARTS counts: 3.35 M parameters on CIFAR-10, 4.7 M on ImageNet."""
    genotype = parse_genotype(DARTS_V2)
    for recipe, classes, expected in (
        ("darts-cifar10", 10, (3_349_342, 528_359_040)),
        ("darts-imagenet", 1000, (4_718_752, 529_911_552)),
    ):
        config = RECIPES[recipe]
        images = Images(classes, 50_000, *IMAGES[2:])
        algorithm = trainer(genotype, config, images)
        state = jax.eval_shape(algorithm.init, KEY)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        size = size_of(algorithm.network, variables, config.image_size)
        assert (size["parameters"], size["multiply_adds"]) == expected
        assert "auxiliary_head" in state.params


def test_recipes():
    assert tuple(RECIPES) == get_args(Recipe)
    assert RECIPES["quick"] == TrainConfig()
    imagenet = RECIPES["darts-imagenet"]
    assert (imagenet.batch_size, imagenet.norm_group, imagenet.schedule) == (1024, 128, "linear")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"recipe": "darts"}, "recipe must be one of quick, nasbench201"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear"),
        ({"crop": "random"}, "crop must be one of none, pad, resized"),
        ({"stem": "mnist"}, "stem must be one of cifar, imagenet"),
        ({"jitter": (0.4, 0.4)}, "jitter must be a list of 4, each a number from 0.0 to 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 0.0 to 1000000.0"),
        ({"drop_path": 1.0}, "drop_path must be a number from 0.0 to 0.999"),
        ({"warmup_epochs": 15}, "warmup_epochs must be below epochs, 15"),
        ({"norm_group": 5}, "batch_size must be a multiple of norm_group, 5"),
        ({"micro_batches": 2}, "whole groups of 64 examples"),
        ({"norm_group": 32, "micro_batches": 4}, "whole groups of 32 examples"),
        ({"epochs": 1.5}, "epochs must be an integer from 1 to 100000"),
    ],
)
def test_bad_settings(change, part):
    with pytest.raises(ValueError, match=part):
        TrainConfig(**change)


@pytest.mark.parametrize(
    ("genotype", "change", "part"),
    [
        (ARCH, {"auxiliary_weight": 0.4}, "got auxiliary_weight 0.4"),
        (
            SPEC,
            {"drop_path": 0.2},
            "networks of nasbench101 have no drop_path, got drop_path",
        ),
        (ARCH, {"stem": "imagenet"}, "got stem imagenet"),
        (ARCH, {"batch_size": 17}, "batch_size must be at most 16"),
        (CELLS, {"num_cells": 2}, "num_cells of darts must be at least 3"),
        (ARCH, {"image_size": 10}, "a multiple of 4"),
    ],
)
def test_what_a_network_does_not_have(genotype, change, part):
    with pytest.raises(ValueError, match=part):
        trainer(genotype, dataclasses.replace(PLAIN, **change), IMAGES)
