"""Quantities of a network at initialization, for any `apply_fn(params, inputs)`."""

from nasi_jax.kernels.independence import examples_are_coupled
from nasi_jax.kernels.neural_tangents import infinite_width_ntk, neural_tangents_ntk
from nasi_jax.kernels.ntk import ntk, ntk_on_host
from nasi_jax.kernels.per_example import squared_gradient_norms
from nasi_jax.kernels.proxies import (
    PROXIES,
    condition_number,
    fisher,
    flops,
    grad_norm,
    grasp,
    hnas,
    jacov,
    linear_regions,
    naswot,
    num_params,
    proxy_named,
    snip,
    synflow,
    zico,
)
from nasi_jax.kernels.proxies.flops import multiply_adds
from nasi_jax.kernels.spectrum import LanczosSpectrum, Spectrum, lanczos_spectrum, spectrum
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

__all__ = [
    "PROXIES",
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
    "ntk_on_host",
    "ntk_trace",
    "num_params",
    "per_example_gradient",
    "proxy_named",
    "random_cotangent",
    "random_cotangent_estimate",
    "snip",
    "spectrum",
    "squared_gradient_norms",
    "synflow",
    "trace_bounds",
    "zico",
]
