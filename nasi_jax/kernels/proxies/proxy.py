"""What a scorer must know of a proxy: its norm mode, and whether examples may be coupled."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from nasi_jax.types import NormMode, ProxyFn


def without_norm(proxy: ProxyFn) -> ProxyFn:
    """Marks a proxy as defined for networks without normalization alone."""
    proxy.norm = "none"  # type: ignore[attr-defined]
    return proxy


def norm_of(proxy: ProxyFn, norm: NormMode) -> NormMode:
    """The norm mode that a proxy is computed in where `norm` is asked for."""
    function = proxy.func if isinstance(proxy, functools.partial) else proxy
    return getattr(function, "norm", norm)


def per_example(proxy: ProxyFn) -> bool:
    """Whether a proxy needs gradients of single examples, and so has an argument `coupled`."""
    return "coupled" in inspect.signature(proxy).parameters


def for_norm(proxy: ProxyFn, norm: NormMode) -> ProxyFn:
    """A proxy that knows whether the examples of a batch are coupled, if it has to.

    Under batch statistics they are: the gradient of one example then takes a backward pass of the
    whole batch.
    """
    if not per_example(proxy):
        return proxy
    coupled: dict[str, Any] = {"coupled": norm == "batch"}
    return functools.partial(proxy, **coupled)
