"""Quantities of a network at initialisation, for any `apply_fn(params, inputs)`."""

from nasi_jax.kernels.fisher import fisher
from nasi_jax.kernels.flops import flops, multiply_adds
from nasi_jax.kernels.grad_norm import grad_norm
from nasi_jax.kernels.grasp import grasp
from nasi_jax.kernels.hnas import hnas
from nasi_jax.kernels.independence import examples_are_coupled
from nasi_jax.kernels.jacov import jacov
from nasi_jax.kernels.naswot import naswot
from nasi_jax.kernels.neural_tangents import infinite_width_ntk, neural_tangents_ntk
from nasi_jax.kernels.ntk import ntk
from nasi_jax.kernels.num_params import num_params
from nasi_jax.kernels.per_example import squared_gradient_norms
from nasi_jax.kernels.snip import snip
from nasi_jax.kernels.spectrum import LanczosSpectrum, Spectrum, lanczos_spectrum, spectrum
from nasi_jax.kernels.synflow import synflow
from nasi_jax.kernels.te_nas import condition_number, linear_regions
from nasi_jax.kernels.trace import (
    Estimate,
    TraceBounds,
    batch_gradient,
    mean_loss,
    ntk_trace,
    per_example_gradient,
    random_cotangent,
    random_cotangent_estimate,
    trace_bounds,
)
from nasi_jax.kernels.zico import zico
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

PER_EXAMPLE = (
    "per_example_gradient",
    "random_cotangent",
    "ntk_trace",
    "condition_number",
    "hnas",
)
"""Those that need gradients of single examples, and take `coupled`."""

WITHOUT_NORM = ("synflow",)
"""Those that are defined for networks without normalisation, whose norm mode is always `none`."""

__all__ = [
    "PER_EXAMPLE",
    "PROXIES",
    "WITHOUT_NORM",
    "Estimate",
    "LanczosSpectrum",
    "Spectrum",
    "TraceBounds",
    "batch_gradient",
    "condition_number",
    "examples_are_coupled",
    "fisher",
    "flops",
    "grad_norm",
    "grasp",
    "hnas",
    "infinite_width_ntk",
    "jacov",
    "lanczos_spectrum",
    "linear_regions",
    "mean_loss",
    "multiply_adds",
    "naswot",
    "neural_tangents_ntk",
    "ntk",
    "ntk_trace",
    "num_params",
    "per_example_gradient",
    "random_cotangent",
    "random_cotangent_estimate",
    "snip",
    "spectrum",
    "squared_gradient_norms",
    "synflow",
    "trace_bounds",
    "zico",
]
