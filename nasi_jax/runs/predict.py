"""`nasi predict`: classifies image files by a trained network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nasi_jax import data
from nasi_jax.runs.train import Trained, stored_size
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.training.trainer import Images, prepared

AT_ONCE = 64
"""Batch size."""


class Prediction(NamedTuple):
    """The top classes of an image, and their probabilities."""

    path: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def probabilities_of(
    network: nn.Module, config: TrainConfig, images: Images
) -> Callable[[Any, jax.Array], jax.Array]:
    """The function `(variables, raw images [B, H, W, C]) -> [B, K]`, probabilities of classes.

    Args:
      network: the network.
      config: how it was trained.
      images: on what.
    """

    def probabilities(variables: Any, raw: jax.Array) -> jax.Array:
        inputs = prepared(raw, config, images)
        return jax.nn.softmax(cast(jax.Array, network.apply(variables, inputs)))

    return probabilities


def predict(
    trained: Trained, paths: Sequence[str | os.PathLike[str]], *, top: int = 1
) -> list[Prediction]:
    """Classifies image files by a trained network, with softmax probabilities.

    Images are brought to the size that the network was tested at, whatever their own.

    Args:
      trained: the network; see `nasi_jax.runs.train.trained`.
      paths: files in any form that Pillow reads, in color or gray.
      top: how many classes of each, the most probable first.

    Raises:
      ValueError: if there is no file, one cannot be read as an image, or `top` is out of range.
    """
    images, names = trained.images, trained.class_names
    if not paths:
        raise ValueError("name at least one image file")
    if not 1 <= top <= images.num_classes:
        raise ValueError(f"top must be from 1 to {images.num_classes}, the classes, got {top}")
    size = stored_size(trained.config)
    probabilities = jax.jit(probabilities_of(trained.network, trained.config, images))
    variables = jax.device_put(trained.variables)
    predictions = []
    for start in range(0, len(paths), AT_ONCE):
        part = paths[start : start + AT_ONCE]
        read = [data.resize(data.decode(Path(path), path), size) for path in part]
        raw = np.stack(read).astype(np.float32) * (images.scale / 255)
        rest = min(AT_ONCE, len(paths)) - len(part)
        padded = np.pad(raw, ((0, rest), (0, 0), (0, 0), (0, 0)))
        with jax.default_matmul_precision(trained.config.matmul_precision):
            found = np.asarray(probabilities(variables, jnp.asarray(padded)))[: len(part)]
        for path, row in zip(part, found, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            predictions.append(
                Prediction(
                    str(path),
                    tuple(names[index] for index in best),
                    tuple(float(row[index]) for index in best),
                )
            )
    return predictions
