"""Quantities of a network at initialisation, for any `apply_fn(params, inputs)`."""

from nasi_jax.kernels.trace import batch_gradient, mean_loss
from nasi_jax.types import ProxyFn

PROXIES: dict[str, ProxyFn] = {"batch_gradient": batch_gradient}
"""The proxies by name."""

__all__ = ["PROXIES", "batch_gradient", "mean_loss"]
