"""Training-free scores of a network at initialization, one file each."""

from nasi_jax import plugins
from nasi_jax.kernels.proxies.fisher import fisher
from nasi_jax.kernels.proxies.flops import flops
from nasi_jax.kernels.proxies.grad_norm import grad_norm
from nasi_jax.kernels.proxies.grasp import grasp
from nasi_jax.kernels.proxies.hnas import hnas
from nasi_jax.kernels.proxies.jacov import jacov
from nasi_jax.kernels.proxies.naswot import naswot
from nasi_jax.kernels.proxies.num_params import num_params
from nasi_jax.kernels.proxies.snip import snip
from nasi_jax.kernels.proxies.synflow import synflow
from nasi_jax.kernels.proxies.te_nas import condition_number, linear_regions
from nasi_jax.kernels.proxies.zico import zico
from nasi_jax.kernels.trace import (
    batch_gradient,
    ntk_trace,
    per_example_gradient,
    random_cotangent,
)
from nasi_jax.types import ProxyFn

PROXIES: dict[str, ProxyFn] = {
    "batch_gradient": batch_gradient,
    "per_example_gradient": per_example_gradient,
    "random_cotangent": random_cotangent,
    "ntk_trace": ntk_trace,
    "num_params": num_params,
    "flops": flops,
    "grad_norm": grad_norm,
    "snip": snip,
    "synflow": synflow,
    "grasp": grasp,
    "fisher": fisher,
    "jacov": jacov,
    "naswot": naswot,
    "zico": zico,
    "condition_number": condition_number,
    "linear_regions": linear_regions,
    "hnas": hnas,
}
"""The proxies by name, all of them higher is better."""

GROUP = "nasi_jax.proxies"
"""The entry points by which packages bring proxies."""


def proxy_named(name: str) -> ProxyFn:
    """The proxy of a name.

    Args:
      name: a key of `PROXIES`, the name of an entry point of `GROUP`, or `module:name` of a
        `ProxyFn`.

    Raises:
      ValueError: for an unknown name, or one of something else.
    """
    proxy: ProxyFn = plugins.find(name, PROXIES, GROUP, "proxy")
    if not callable(proxy):
        raise ValueError(f"{name} is not a proxy, a function (key, apply_fn, params, batch)")
    return proxy


__all__ = [
    "PROXIES",
    "condition_number",
    "fisher",
    "flops",
    "grad_norm",
    "grasp",
    "hnas",
    "jacov",
    "linear_regions",
    "naswot",
    "num_params",
    "proxy_named",
    "snip",
    "synflow",
    "zico",
]
