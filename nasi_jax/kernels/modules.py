"""What flax says of its own modules: their linear layers, and which parameters scans slice.

By `flax.linen.intercept_methods`, which is public, where everything in a function of parameters is
a flax module whose parameters have the names that flax gives them. Of any other function it says
nothing, and `nasi_jax.kernels.interpreter` reads the program instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax

from nasi_jax.types import ApplyFn, Params

_NAMES = ("kernel", "bias", "scale", "mean", "var", "variance")
"""Names of the variables of flax's layers and of ours, each of which is one array of one layer."""

Replace = Callable[[tuple[str, ...], int, jax.Array], jax.Array]
"""Maps the path of a linear layer, its multiply-accumulates and its outputs to other outputs."""


def at_layers(replace: Replace, apply_fn: ApplyFn, params: Params, inputs: jax.Array) -> jax.Array:
    """`apply_fn(params, inputs)` with the outputs of the linear layers of flax modules replaced.

    A linear layer is a module that has a `kernel`, maybe a `bias` and nothing else, and maps an
    array to an array: dense, convolutional, or `nn.DenseGeneral`.

    Args:
      replace: see `Replace`. A module that is called several times is replaced as often.
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters.
      inputs: `[B, ...]`.

    Returns:
      The outputs.
    """

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        count = _multiply_accumulates(context.module, args, outputs)
        return outputs if count is None else replace(context.module.path, count, outputs)

    with nn.intercept_methods(interceptor):
        return apply_fn(params, inputs)


def are_all_linear(apply_fn: ApplyFn, params: Params, inputs: Any) -> bool:
    """Whether every kernel among the parameters is that of a layer that `at_layers` finds.

    And nothing else is among them but biases and scales.
    """
    found: set[tuple[str, ...]] = set()

    def note(path: tuple[str, ...], count: int, outputs: jax.Array) -> jax.Array:
        found.add(path)
        return outputs

    def trace(params: Params, inputs: jax.Array) -> jax.Array:
        return at_layers(note, apply_fn, params, inputs)

    read = _arrays_read(trace, params, inputs)
    return read is not None and _are_kernels_of(found, read)


def _are_kernels_of(
    layers: Collection[tuple[str, ...]], read: list[tuple[tuple[str, ...], int]]
) -> bool:
    return all(path[:-1] in layers for path, _ in read if path[-1] == "kernel")


def multiply_adds_of_layers(apply_fn: ApplyFn, params: Params, inputs: Any) -> int | None:
    """Multiply-accumulates of a batch, or None where they cannot be told from the modules alone.

    As where there is another kernel than those of linear layers, where a module is called twice,
    or in a scan over modules, which may be traced several times.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, or their shapes.
      inputs: `[B, ...]`, or their shape.
    """
    counts: dict[tuple[str, ...], list[int]] = {}

    def note(path: tuple[str, ...], count: int, outputs: jax.Array) -> jax.Array:
        counts.setdefault(path, []).append(count)
        return outputs

    def trace(params: Params, inputs: jax.Array) -> jax.Array:
        return at_layers(note, apply_fn, params, inputs)

    read = _arrays_read(trace, params, inputs)
    if read is None or any(axes for _, axes in read) or not _are_kernels_of(counts, read):
        return None
    if any(len(calls) > 1 for calls in counts.values()):
        return None
    return sum(count for calls in counts.values() for count in calls)


def scan_axes(apply_fn: ApplyFn, params: Params, inputs: Any) -> list[int] | None:
    """For each leaf of the parameters, the leading axes that scans over modules slice.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: its parameters, or their shapes.
      inputs: `[B, ...]`, or their shape.

    Returns:
      A number a leaf, or None where a leaf is not read by a flax module of the usual names.
    """
    read = _arrays_read(apply_fn, params, inputs)
    return None if read is None else [axes for _, axes in read]


def _arrays_read(
    apply_fn: ApplyFn, params: Params, inputs: Any
) -> list[tuple[tuple[str, ...], int]] | None:
    """For each leaf its path in the module that reads it, and how many axes less it has there."""
    leaves = [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    shapes: dict[tuple[str, ...], set[tuple[int, ...]]] = {}

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        for name, array in _own(context.module).items():
            shapes.setdefault((*context.module.path, name), set()).add(array.shape)
        return call(*args, **kwargs)

    def trace(params: Params, inputs: jax.Array) -> jax.Array:
        with nn.intercept_methods(interceptor):
            return apply_fn(params, inputs)

    jax.eval_shape(trace, params, inputs)
    read = []
    for path, shape in leaves:
        # What is passed to `Module.apply` may be a part of the parameters, or they of it.
        paths = [own for own in shapes if path[-len(own) :] == own]
        if len(paths) != 1 or path[-1] not in _NAMES or len(shapes[paths[0]]) != 1:
            return None
        ((local),) = shapes[paths[0]]
        axes = len(shape) - len(local)
        if shape[axes:] != local:
            return None
        read.append((paths[0], axes))
    return read


def _own(module: nn.Module) -> dict[str, Any]:
    """A module's variables, less those of the modules in it."""
    collections = {} if module.scope is None else module.variables
    return {
        name: value
        for variables in collections.values()
        for name, value in variables.items()
        if hasattr(value, "shape")
    }


def _multiply_accumulates(module: nn.Module, args: Any, outputs: Any) -> int | None:
    """Products that a linear layer adds up, None of any other module."""
    own = _own(module)
    if "kernel" not in own or not own.keys() <= {"kernel", "bias"} or len(args) != 1:
        return None
    if isinstance(module, nn.ConvLocal) or getattr(module, "batch_dims", None):
        return None
    kernel, features = own["kernel"], getattr(module, "features", None)
    axes = len(features) if isinstance(features, tuple | list) else 1
    if not hasattr(outputs, "shape") or kernel.shape[-axes:] != outputs.shape[-axes:]:
        return None
    return int(outputs.size * (kernel.size // math.prod(kernel.shape[-axes:])))
