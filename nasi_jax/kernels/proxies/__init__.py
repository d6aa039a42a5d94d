"""Training-free scores of a network at initialization, one file each."""

from nasi_jax import plugins
from nasi_jax.kernels.proxies.apd import apd
from nasi_jax.kernels.proxies.az_nas import expressivity, progressivity, trainability
from nasi_jax.kernels.proxies.epsinas import epsinas
from nasi_jax.kernels.proxies.fisher import fisher
from nasi_jax.kernels.proxies.flops import flops
from nasi_jax.kernels.proxies.grad_norm import grad_norm
from nasi_jax.kernels.proxies.gradsign import gradsign
from nasi_jax.kernels.proxies.grasp import grasp
from nasi_jax.kernels.proxies.hnas import hnas
from nasi_jax.kernels.proxies.intrain import intrain, participation_ratio
from nasi_jax.kernels.proxies.jacov import jacov
from nasi_jax.kernels.proxies.lswag import lswag
from nasi_jax.kernels.proxies.meco import meco
from nasi_jax.kernels.proxies.naswot import naswot
from nasi_jax.kernels.proxies.near import near
from nasi_jax.kernels.proxies.num_params import num_params
from nasi_jax.kernels.proxies.snip import snip
from nasi_jax.kernels.proxies.swap import swap
from nasi_jax.kernels.proxies.synflow import synflow
from nasi_jax.kernels.proxies.te_nas import condition_number, linear_regions
from nasi_jax.kernels.proxies.vkdnw import vkdnw, vkdnw_fisher
from nasi_jax.kernels.proxies.zen import zen
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
    "expressivity": expressivity,
    "progressivity": progressivity,
    "trainability": trainability,
    "vkdnw": vkdnw,
    "vkdnw_fisher": vkdnw_fisher,
    "meco": meco,
    "near": near,
    "swap": swap,
    "zen": zen,
    "epsinas": epsinas,
    "gradsign": gradsign,
    "participation_ratio": participation_ratio,
    "intrain": intrain,
    "lswag": lswag,
    "apd": apd,
}
"""The proxies by name, all of them higher is better."""

GROUP = "nasi_jax.proxies"
"""The entry points by which packages bring proxies."""


def proxy_named(name: str) -> ProxyFn:
    """The proxy of a name.

    Args:
      name: a key of `PROXIES`, the name of an entry point of `GROUP`, or `module:name` of a
        `ProxyFn`.

    Returns:
      The proxy.

    Raises:
      ValueError: for an unknown name, or one of something else.
    """
    proxy: ProxyFn = plugins.find(name, PROXIES, GROUP, "proxy")
    if not callable(proxy):
        raise ValueError(f"{name} is not a proxy, a function (key, apply_fn, params, batch)")
    return proxy


__all__ = [
    "PROXIES",
    "apd",
    "condition_number",
    "epsinas",
    "expressivity",
    "fisher",
    "flops",
    "grad_norm",
    "gradsign",
    "grasp",
    "hnas",
    "intrain",
    "jacov",
    "linear_regions",
    "lswag",
    "meco",
    "naswot",
    "near",
    "num_params",
    "participation_ratio",
    "progressivity",
    "proxy_named",
    "snip",
    "swap",
    "synflow",
    "trainability",
    "vkdnw",
    "vkdnw_fisher",
    "zen",
    "zico",
]
