"""The kernels of neural-tangents, by which ours are tested: code written by others.

neural-tangents is optional (`pip install 'nasi-jax[ntk]'`), and imported when a function is called.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad

from nasi_jax.types import ApplyFn, Params

Implementation = Literal["jacobian_contraction", "ntk_vector_products"]
"""How neural-tangents computes an empirical NTK, in its own names (its numbers 1 and 2).

`jacobian_contraction` multiplies two dense Jacobians. `ntk_vector_products` takes a unit vector for
each of the `B * K` outputs to the parameters through one Jacobian and back through the other.
"""
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


def neural_tangents_ntk(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    other: jax.Array | None = None,
    *,
    implementation: Implementation = "jacobian_contraction",
) -> jax.Array:
    """The dense empirical NTK of neural-tangents, all outputs kept.

    kernel[b, k, c, l] = sum_p J[b, k, p] J'[c, l, p], with J and J' the Jacobians of
    `apply_fn(params, inputs)` and `apply_fn(params, other)` in all P parameters. Left to itself
    neural-tangents returns `[B, B']`, the mean of kernel[b, k, c, k] over the outputs k
    (`trace_axes=(-1,)`): a K-th of what a trace over the outputs is.

    Each input set goes through `apply_fn` whole, so examples need not be independent: batch
    statistics are those of the set, and differentiated through.

    Its other two implementations, `structured_derivatives` and `auto`, fail on today's JAX.

    Args:
      apply_fn: maps `(params, inputs[B, ...])` to outputs `[B, K]`.
      params: parameters that the Jacobians are taken at.
      inputs: `[B, ...]`.
      other: `[B', ...]`; `inputs` if None.
      implementation: see `Implementation`.

    Returns:
      `[B, K, B', K]`.

    Raises:
      ValueError: if `implementation` is not a name in `IMPLEMENTATIONS`, or the outputs are not
        `[B, K]`.
      ModuleNotFoundError: if neural-tangents is not installed.

    Reference: Novak et al., Fast finite width neural tangent kernel, ICML 2022.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    nt = _neural_tangents()
    kernel_fn = nt.empirical_ntk_fn(
        apply_fn,
        trace_axes=(),
        # With None the package does not vmap over examples, which would give each its own batch.
        vmap_axes=None,
        implementation=nt.NtkImplementation[implementation.upper()],
    )
    with warnings.catch_warnings():
        # ntk_vector_products asks for the size of a shape, which JAX will refuse one day.
        warnings.filterwarnings("ignore", "size requires", DeprecationWarning)
        kernel = kernel_fn(inputs, other, params)
    if kernel.ndim != 4:
        raise ValueError(f"apply_fn must return [B, K], got shape {kernel.shape[::2]}")
    return jnp.transpose(kernel, (0, 2, 1, 3))


def infinite_width_ntk(
    depth: int,
    inputs: jax.Array,
    other: jax.Array | None = None,
    *,
    weight_std: float = 2**0.5,
    bias_std: float = 0.0,
) -> jax.Array:
    """The NTK of an infinitely wide fully connected ReLU network, by neural-tangents.

    The network is in NTK parameterization: `depth` times x -> relu(s W x / sqrt(n) + t b), and
    then that without the ReLU, where n is the size of x, W and b are standard normal, s is
    `weight_std` and t is `bias_std`. As the widths grow the empirical NTK tends to
    kernel[b, c] delta_kl, whatever the number of outputs, with

      S_0 = T_0 = s^2 <x, x'> / n + t^2
      a = arccos(S_l(x, x') / q),  q = sqrt(S_l(x, x) S_l(x', x'))
      S_l+1 = s^2 q (sin a + (pi - a) cos a) / (2 pi) + t^2
      T_l+1 = s^2 (pi - a) / (2 pi) T_l + S_l+1

    and kernel = T_depth. S_l is the covariance of the network's outputs.

    In float32 the kernel of an input with itself, or with one nearly parallel, is off by up to
    1e-3 of its value: their angle a is the root of a rounding error. Float64 has 1e-7 there.

    Args:
      depth: number of hidden layers, at least 0.
      inputs: `[B, ...]`; all axes but the first are the features.
      other: `[B', ...]`; `inputs` if None.
      weight_std: s; with the default sqrt(2) S_l(x, x) is the same in every layer.
      bias_std: t.

    Returns:
      `[B, B']`.

    Raises:
      ValueError: if `depth` is below 0.
      ModuleNotFoundError: if neural-tangents is not installed.

    Reference: Jacot, Gabriel and Hongler, Neural tangent kernel, NeurIPS 2018, theorem 1; the
    expectations over the ReLU are those of Cho and Saul, NeurIPS 2009.
    """
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}")
    stax = _neural_tangents().stax
    dense = stax.Dense(1, W_std=weight_std, b_std=bias_std)
    _, _, kernel_fn = stax.serial(*[dense, stax.Relu()] * depth, dense)
    flat = [None if x is None else x.reshape(len(x), -1) for x in (inputs, other)]
    return kernel_fn(*flat, "ntk")


def _neural_tangents() -> Any:
    if sys.modules.get("neural_tangents"):
        return sys.modules["neural_tangents"]
    try:
        with _names_that_jax_removed():
            return importlib.import_module("neural_tangents")
    except ModuleNotFoundError as error:
        if error.name != "neural_tangents":
            raise
        raise ModuleNotFoundError(
            "neural-tangents is not installed: pip install 'nasi-jax[ntk]'", name=error.name
        ) from error


@contextlib.contextmanager
def _names_that_jax_removed() -> Iterator[None]:
    """Puts back what is missing of the names that neural-tangents 0.6.5, its last release, needs.

    It looks them up only while it is imported, so JAX is left as it was found.
    """
    removed: list[tuple[Any, str, Any]] = [
        (jax.core, name, getattr(core, name))
        for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")
    ]
    # A key in two tables that only structured_derivatives reads: any object does.
    removed.append((ad, "zeros_like_p", object()))
    # `vars`, because to ask a module for a name that it is about to remove is a warning.
    missing = [entry for entry in removed if entry[1] not in vars(entry[0])]
    util_missing = importlib.util.find_spec("jax.util") is None
    for module, name, value in missing:
        setattr(module, name, value)
    if util_missing:
        util = types.ModuleType("jax.util")
        vars(util).update(safe_map=_safe_map, safe_zip=_safe_zip)
        sys.modules["jax.util"] = util
    try:
        yield
    finally:
        for module, name, _ in missing:
            delattr(module, name)
        if util_missing:
            del sys.modules["jax.util"]


def _safe_zip(*sequences: Iterable[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*sequences, strict=True))


def _safe_map(fn: Callable[..., Any], *sequences: Iterable[Any]) -> list[Any]:
    return [fn(*args) for args in zip(*sequences, strict=True)]
