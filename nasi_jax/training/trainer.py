"""Training from scratch as pure functions: `init`, `step`, `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nasi_jax.cells import evaluation_network
from nasi_jax.kernels import multiply_adds
from nasi_jax.training import augment
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.types import DropPath, Genotype, NetworkSpec, NormMode

_STATISTICS_MOMENTUM = 0.9
_CROP_MARGIN = 4

_OPTIONS = {"stem": "stem", "auxiliary_weight": "auxiliary", "drop_path": "drop_path"}
"""The settings that not all networks have, and what they take; see `Genotype.options`."""


class Images(NamedTuple):
    """Shape and statistics of the training images.

    Attributes:
      num_classes: number of classes.
      num_examples: how many there are to train on.
      scale: what raw images are divided by to lie on [0, 1].
      mean: of the channels of raw images, `[C]` or `[1]`.
      std: their standard deviation, like `mean`.
    """

    num_classes: int
    num_examples: int
    scale: float
    mean: np.ndarray
    std: np.ndarray


class TrainState(NamedTuple):
    """The state of a training.

    Attributes:
      params: the network's parameters.
      batch_stats: running means of the statistics of its normalization.
      opt_state: the optimizer's state.
      step: steps done, int32.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    step: jax.Array


class Score(NamedTuple):
    """Sums over examples: cross-entropy, and number of correct classifications."""

    loss: jax.Array
    num_correct: jax.Array


class Training(NamedTuple):
    """A training as pure functions, which a caller may jit, and call in a loop of their own.

    Attributes:
      network: the network, in norm mode `running`.
      init: `key -> TrainState`. Not to be compiled: the hundreds of parameters are drawn one by
        one, by a program for each shape; all of them in one program take minutes to compile.
      step: `(key, state, images, labels) -> (TrainState, Score)`, of raw images `[B, H, W, C]` and
        labels `[B]`, with the same key at every step. The score is that of the main head on the
        batch before the step, with label smoothing in the loss.
      evaluate: `(state, images, labels, weights) -> Score`, each example times its weight.
    """

    network: nn.Module
    init: Callable[[jax.Array], TrainState]
    step: Callable[[jax.Array, TrainState, jax.Array, jax.Array], tuple[TrainState, Score]]
    evaluate: Callable[[TrainState, jax.Array, jax.Array, jax.Array], Score]


def trainer(genotype: Genotype, config: TrainConfig, images: Images) -> Training:
    """Builds the training of a network by a recipe.

    A step augments the images, takes the gradient of the cross-entropy (of the auxiliary head too,
    times its weight), clips it, adds the weight decay, and moves the parameters by stochastic
    gradient descent with momentum. Batch statistics are differentiated through.

    Args:
      genotype: what to train.
      config: how.
      images: on what.

    Returns:
      The training as `init`, `step` and `evaluate`.

    Raises:
      ValueError: for a setting that the network does not have, or a batch of more examples than
        there are.
    """
    if config.batch_size > images.num_examples:
        raise ValueError(
            f"batch_size must be at most {images.num_examples}, the examples to train on, "
            f"got {config.batch_size}"
        )
    steps_per_epoch = images.num_examples // config.batch_size
    network = network_of(genotype, config, images.num_classes)
    optimizer = optimizer_of(config, steps_per_epoch)

    # Of its parameters alone, which are the same: the statistics would take a forward pass.
    drawn = network_of(genotype, config, images.num_classes, norm="batch")

    def init(key: jax.Array) -> TrainState:
        shape = (config.norm_group or 1, config.image_size, config.image_size, 3)
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
        params = drawn.lazy_init(key, inputs, mutable=["params"])["params"]
        stats = jax.tree.map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "variance", leaf.dtype),
            jax.eval_shape(network.init, key, inputs).get("batch_stats", {}),
        )
        return TrainState(params, stats, optimizer.init(params), jnp.zeros((), jnp.int32))

    def loss_of(
        params: Any, stats: Any, part: _Part, rate: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Score]]:
        drop_path = (DropPath(rate, part.keys),) if config.drop_path else ()
        applied = network.apply(
            {"params": params, "batch_stats": stats},
            part.inputs,
            *drop_path,
            mutable=["batch_stats", "auxiliary"],
        )
        logits, updates = cast("tuple[jax.Array, Any]", applied)
        targets = optax.smooth_labels(
            jax.nn.one_hot(part.labels, images.num_classes), config.label_smoothing
        )
        losses = optax.softmax_cross_entropy(logits, targets)
        loss = jnp.mean(losses)
        if config.auxiliary_weight:
            (auxiliary,) = updates["auxiliary"]["logits"]
            others = optax.softmax_cross_entropy(auxiliary, targets)
            loss += config.auxiliary_weight * jnp.mean(others)
        score = Score(jnp.sum(losses), jnp.sum(jnp.argmax(logits, axis=-1) == part.labels))
        return loss, (updates.get("batch_stats", {}), score)

    def step(
        key: jax.Array, state: TrainState, raw: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Score]:
        _check_batch(raw, labels)
        augment_key, path_key = jax.random.split(jax.random.fold_in(key, state.step))
        inputs = _normalized(_augmented(augment_key, _unit(raw, images), config, images), images)
        batch = _Part(inputs, labels, jax.random.split(path_key, len(labels)))
        epoch = jnp.asarray(state.step // steps_per_epoch, jnp.float32)
        rate = config.drop_path * epoch / config.epochs
        gradient = jax.grad(loss_of, has_aux=True)

        def of_part(part: _Part) -> Any:
            return gradient(state.params, state.batch_stats, part, rate)

        grads, (stats, score) = (
            of_part(batch)
            if config.micro_batches == 1
            else _mean_over_parts(of_part, _parts(batch, config.micro_batches, config.norm_group))
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        running = optax.incremental_update(stats, state.batch_stats, 1 - _STATISTICS_MOMENTUM)
        return TrainState(params, running, opt_state, state.step + 1), score

    def evaluate(state: TrainState, raw: jax.Array, labels: jax.Array, weights: jax.Array) -> Score:
        _check_batch(raw, labels)
        chex.assert_equal_shape([labels, weights])
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = cast(jax.Array, network.apply(variables, prepared(raw, config, images)))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.where(jnp.argmax(logits, axis=-1) == labels, weights, 0)
        return Score(jnp.sum(weights * losses), jnp.sum(correct))

    return Training(network, init, step, evaluate)


def _check_batch(raw: jax.Array, labels: jax.Array) -> None:
    """Checks that there are images `[B, H, W, C]` and a label for each."""
    chex.assert_rank([raw, labels], [4, 1])
    chex.assert_type(labels, int)
    chex.assert_equal_shape_prefix([raw, labels], 1)


def prepared(raw: jax.Array, config: TrainConfig, images: Images) -> jax.Array:
    """Center-crops and normalizes raw images `[B, H, W, C]`, as for tests."""
    start = (raw.shape[1] - config.image_size) // 2
    window = slice(start, start + config.image_size)
    return _normalized(_unit(raw[:, window, window], images), images)


def network_of(
    genotype: Genotype, config: TrainConfig, num_classes: int, norm: NormMode = "running"
) -> nn.Module:
    """Builds the network of a training configuration.

    Raises:
      ValueError: for a setting that it does not have.
    """
    options = {
        "stem": None if config.stem == "cifar" else config.stem,
        "auxiliary_weight": config.auxiliary_weight or None,
        "drop_path": config.drop_path or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if lacking := [name for name in given if _OPTIONS[name] not in genotype.options]:
        raise ValueError(
            f"networks of {genotype.family} have no {', '.join(lacking)}, got "
            f"{', '.join(f'{name} {given[name]}' for name in lacking)}: use the recipe quick or "
            "nasbench201"
        )
    factor = 32 if config.stem == "imagenet" else 4
    if config.image_size % factor or config.image_size < 8:
        raise ValueError(
            f"image_size must be at least 8 and a multiple of {factor} with stem {config.stem}, "
            f"got {config.image_size}"
        )
    spec = NetworkSpec(
        norm=norm,
        init=config.init,
        dtype=jnp.dtype(config.precision),
        depthwise=config.depthwise,
        norm_group=config.norm_group,
        remat=config.remat,
        # On two CPU cores a step took 1.06 to 1.2 times as long for 0.75 of the compilation.
        scan_cells=jax.default_backend() != "cpu",
    )
    own: dict[str, Any] = {"stem": config.stem} if "stem" in given else {}
    if "auxiliary_weight" in given:
        own["auxiliary"] = True
    return evaluation_network(genotype, num_classes, spec, **network_sizes(genotype, config), **own)


def network_sizes(genotype: Genotype, config: TrainConfig) -> dict[str, int]:
    """Channels and cells of the network; none where the family has one size alone."""
    if genotype.sizes.fixed:
        return {}
    return {"init_channels": config.init_channels, "num_cells": num_cells_of(genotype, config)}


def num_cells_of(genotype: Genotype, config: TrainConfig) -> int:
    """Cells a stage; for darts, cells in all."""
    return genotype.sizes.least_cells if config.num_cells is None else config.num_cells


def optimizer_of(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clipping, weight decay of all parameters, and momentum, in the order of PyTorch's SGD."""
    clip = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    return optax.chain(
        *clip,
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate_of(config, steps_per_epoch), config.momentum, config.nesterov),
    )


def learning_rate_of(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    warmup = config.warmup_epochs * steps_per_epoch
    rest = config.epochs * steps_per_epoch - warmup
    span = config.learning_rate - config.final_learning_rate
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(span, rest)
    else:
        fall = optax.linear_schedule(span, 0.0, rest)
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    schedule = optax.join_schedules(
        [rise, lambda step: config.final_learning_rate + fall(step)], [warmup]
    )
    # optax would mix integers with floating numbers, which JAX can be set to refuse.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def size_of(network: nn.Module, variables: Mapping[str, Any], image_size: int) -> dict[str, int]:
    """Counts parameters without the auxiliary head, and multiply-adds of one image's forward pass.

    As the field counts them: see `nasi_jax.kernels.multiply_adds` for the latter.

    Args:
      network: the network.
      variables: its `params` and `batch_stats`, if it has any, or their shapes.
      image_size: height and width of the image.
    """
    params = variables["params"]
    layers = {name: leaf for name, leaf in params.items() if name != "auxiliary_head"}

    def apply(variables: Any, inputs: jax.Array) -> jax.Array:
        return cast(jax.Array, network.apply(variables, inputs))

    inputs = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(layers)),
        "multiply_adds": multiply_adds(apply, {**variables, "params": layers}, inputs),
    }


class _Part(NamedTuple):
    inputs: jax.Array
    labels: jax.Array
    keys: jax.Array


_Result = tuple[Any, tuple[Any, Score]]
"""Gradients, then running statistics and score."""


def _parts(batch: _Part, num_parts: int, group: int | None) -> _Part:
    """Splits a batch into micro-batches `[num_parts, ...]` of whole norm groups, in turns.

    In turns, so that each device has a share of every part where the devices share the batch.
    """

    def divided(leaf: jax.Array) -> jax.Array:
        shape = leaf.shape[1:]
        turns = jnp.swapaxes(leaf.reshape(-1, num_parts, group or 1, *shape), 0, 1)
        return turns.reshape(num_parts, -1, *shape)

    return jax.tree.map(divided, batch)


def _mean_over_parts(fn: Callable[[_Part], _Result], parts: _Part) -> _Result:
    """Accumulates micro-batches: means of gradients and statistics, sums of scores."""
    num_parts = len(parts.labels)

    def add(total: _Result, part: _Part) -> tuple[_Result, None]:
        return jax.tree.map(jnp.add, total, fn(part)), None

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parts)
    shapes = jax.eval_shape(fn, one)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (grads, (stats, score)), _ = jax.lax.scan(add, zeros, parts)
    grads, stats = jax.tree.map(lambda leaf: leaf / num_parts, (grads, stats))
    return grads, (stats, score)


def _augmented(key: jax.Array, inputs: jax.Array, config: TrainConfig, images: Images) -> jax.Array:
    """Augments images on [0, 1] by the recipe."""
    crop_key, flip_key, jitter_key, cutout_key = jax.random.split(key, 4)
    if config.crop == "pad":
        inputs = augment.pad_crop(crop_key, inputs, _CROP_MARGIN)
    elif config.crop == "resized":
        inputs = augment.random_resized_crop(crop_key, inputs, config.image_size)
    if config.flip:
        inputs = augment.flip(flip_key, inputs)
    if any(config.jitter):
        inputs = augment.color_jitter(jitter_key, inputs, *config.jitter)
    if config.cutout:
        mean = jnp.asarray(images.mean / images.scale, jnp.float32)
        inputs = augment.cutout(cutout_key, inputs, config.cutout, mean)
    return inputs


def _unit(raw: jax.Array, images: Images) -> jax.Array:
    return raw.astype(jnp.float32) / images.scale


def _normalized(inputs: jax.Array, images: Images) -> jax.Array:
    mean, std = (jnp.asarray(part / images.scale) for part in (images.mean, images.std))
    return (inputs - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
