"""The size of the network that is trained, and which architectures keep within limits of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nasi_jax.cells import evaluation_network
from nasi_jax.config import Limits, to_dict
from nasi_jax.training.recipes import RECIPES
from nasi_jax.training.trainer import size_of
from nasi_jax.types import Genotype, SearchSpace

NONE: Mapping[str, Any] = to_dict(Limits())
"""The settings of runs of versions that had no limits."""

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


class Size(NamedTuple):
    """Size of a network: parameters, and multiply-adds of its forward pass of one image."""

    params: int
    multiply_adds: int


@functools.lru_cache(maxsize=4096)  # tracing DARTS takes a second
def network_size(genotype: Genotype, purpose: str = "cifar10") -> Size:
    """Counts parameters and multiply-adds of the network that is trained, as the field does.

    See `nasi_jax.training.trainer.size_of`.

    Args:
      genotype: the architecture.
      purpose: what the network is for; see `Limits.limits_for`.

    Raises:
      ValueError: if there is no such network.
    """
    own: dict[str, Any] = {}
    image_size = 32
    if purpose == "imagenet":
        recipe = RECIPES["darts-imagenet"]
        image_size = recipe.image_size
        own = {name: getattr(recipe, name) for name in ("init_channels", "num_cells", "stem")}
    network = evaluation_network(genotype, _CLASSES[purpose], **own)

    inputs = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), inputs)
    found = size_of(network, variables, image_size)
    return Size(found["parameters"], found["multiply_adds"])


def within(limits: Limits, space: SearchSpace) -> Callable[[Genotype], bool]:
    """Builds the test whether the network of an architecture keeps within the limits.

    Raises:
      ValueError: for limits of networks that the space has not.
    """
    if limits.limits_for == "imagenet" and "stem" not in space.genotype.options:
        raise ValueError(
            f"limits_for must be cifar10 or cifar100 in {space.name}, got {limits.limits_for}"
        )
    if not limits.limited:
        return lambda genotype: True
    limit = (limits.max_params, limits.max_multiply_adds)
    most = tuple(math.inf if each is None else each for each in limit)

    def is_within(genotype: Genotype) -> bool:
        size = network_size(genotype, limits.limits_for)
        return all(count <= at_most for count, at_most in zip(size, most, strict=True))

    return is_within


def record(limits: Limits, genotype: Genotype) -> dict[str, Any]:
    """The size of an architecture's network as JSON; nothing where there are no limits."""
    if not limits.limited:
        return {}
    size = network_size(genotype, limits.limits_for)
    return {"network": {"for": limits.limits_for, **size._asdict()}}
