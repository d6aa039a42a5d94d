"""What a scorer must know of a proxy: its norm mode, its examples, what it has in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from nasi_jax.types import ApplyFn, Batch, NormMode, Params, ProxyFn

Scores = Callable[[jax.Array, ApplyFn, Params, Batch], dict[str, jax.Array]]
"""Computes several proxies at once, by name."""


def without_norm(proxy: ProxyFn) -> ProxyFn:
    """Marks a proxy as defined for networks without normalization alone."""
    proxy.norm = "none"  # type: ignore[attr-defined]
    return proxy


def one_of(scores: Scores) -> Callable[[ProxyFn], ProxyFn]:
    """Marks a proxy as what `scores` computes under its name, together with others."""

    def mark(proxy: ProxyFn) -> ProxyFn:
        proxy.scores = scores  # type: ignore[attr-defined]
        return proxy

    return mark


def all_scores(
    key_of: Callable[[str], jax.Array],
    apply_fns: Mapping[str, ApplyFn],
    proxies: Mapping[str, ProxyFn],
    params: Params,
    batch: Batch,
) -> dict[str, jax.Array]:
    """The scores of many proxies, those that are computed together computed once.

    Args:
      key_of: maps the name of a proxy, or of what computes several, to its random key. So what
        stands beside a proxy changes nothing of its score.
      apply_fns: the function of each proxy.
      proxies: what scores, by name.
      params: the parameters.
      batch: what the proxies see.
    """
    together: dict[tuple[Scores, ApplyFn], dict[str, jax.Array]] = {}
    found = {}
    for name, proxy in proxies.items():
        apply_fn, scores = apply_fns[name], getattr(proxy, "scores", None)
        if scores is None:
            found[name] = proxy(key_of(name), apply_fn, params, batch)
            continue
        if (scores, apply_fn) not in together:
            key = key_of(scores.__name__)
            together[scores, apply_fn] = scores(key, apply_fn, params, batch)
        found[name] = together[scores, apply_fn][proxy.__name__]  # type: ignore[attr-defined]
    return found


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
