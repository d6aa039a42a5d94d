"""A trained network's classes of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from nasi_jax import data
from nasi_jax.train import prepared
from nasi_jax.training_run import Trained, stored_size

_AT_ONCE = 64


class Prediction(NamedTuple):
    """What a network says of an image: the classes of highest probability, and these."""

    path: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    trained: Trained, paths: Sequence[str | os.PathLike[str]], *, top: int = 1
) -> list[Prediction]:
    """Classes of image files by a trained network, with softmax probabilities.

    Images are brought to the size that the network was tested at, whatever their own.

    Args:
      trained: the network; see `nasi_jax.training_run.trained`.
      paths: files in any form that Pillow reads, in colour or grey.
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

    @jax.jit
    def probabilities(variables: Any, raw: jax.Array) -> jax.Array:
        inputs = prepared(raw, trained.config, images)
        return jax.nn.softmax(cast(jax.Array, trained.network.apply(variables, inputs)))

    variables = jax.device_put(trained.variables)
    predictions = []
    for start in range(0, len(paths), _AT_ONCE):
        part = paths[start : start + _AT_ONCE]
        raw = np.stack([_read(Path(path), size) for path in part]) * (images.scale / 255)
        rest = min(_AT_ONCE, len(paths)) - len(part)
        padded = np.pad(raw, ((0, rest), (0, 0), (0, 0), (0, 0)))
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


def _read(path: Path, size: int) -> np.ndarray:
    """An image file as `[size, size, 3]`, from 0 to 255."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise ValueError("it has more than 8 bits a channel")
            # Upright, as its camera says.
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"cannot read {path} as an image: {error}") from error
    return data.resize(pixels, size).astype(np.float32)
