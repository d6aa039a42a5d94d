"""NASI and tools for the neural tangent kernel of finite networks, in JAX.

`nasi(space, ...)` is the search as two pure functions, `run(...)` the loop around them,
`SEARCH_SPACES` and `PROXIES` are what there is to search in and to score by.
"""

from importlib.metadata import version

from nasi_jax.cells import (
    SEARCH_SPACES,
    genotype_from_dict,
    genotype_to_dict,
    parse_genotype,
    search_space,
)
from nasi_jax.config import RankConfig, ScoreConfig, SearchConfig
from nasi_jax.correlation import correlations
from nasi_jax.kernels import (
    PROXIES,
    batch_gradient,
    examples_are_coupled,
    infinite_width_ntk,
    lanczos_spectrum,
    multiply_adds,
    neural_tangents_ntk,
    ntk,
    ntk_trace,
    per_example_gradient,
    random_cotangent_estimate,
    spectrum,
    squared_gradient_norms,
    trace_bounds,
)
from nasi_jax.recipe import RECIPES, TrainConfig
from nasi_jax.search import (
    Run,
    SearchAlgorithm,
    SearchInfo,
    SearchState,
    adaptive,
    fixed,
    gumbel_softmax,
    init_params,
    margins,
    nasi,
    normalize_by_max_norm,
    one_step_ascent,
    quantile,
    run,
    score_fn,
)
from nasi_jax.tables import Table
from nasi_jax.tables import load as load_table
from nasi_jax.train import Training, TrainState, training
from nasi_jax.types import Batch, Edge

__version__ = version("nasi-jax")

__all__ = [
    "PROXIES",
    "RECIPES",
    "SEARCH_SPACES",
    "Batch",
    "Edge",
    "RankConfig",
    "Run",
    "ScoreConfig",
    "SearchAlgorithm",
    "SearchConfig",
    "SearchInfo",
    "SearchState",
    "Table",
    "TrainConfig",
    "TrainState",
    "Training",
    "__version__",
    "adaptive",
    "batch_gradient",
    "correlations",
    "examples_are_coupled",
    "fixed",
    "genotype_from_dict",
    "genotype_to_dict",
    "gumbel_softmax",
    "infinite_width_ntk",
    "init_params",
    "lanczos_spectrum",
    "load_table",
    "margins",
    "multiply_adds",
    "nasi",
    "neural_tangents_ntk",
    "normalize_by_max_norm",
    "ntk",
    "ntk_trace",
    "one_step_ascent",
    "parse_genotype",
    "per_example_gradient",
    "quantile",
    "random_cotangent_estimate",
    "run",
    "score_fn",
    "search_space",
    "spectrum",
    "squared_gradient_norms",
    "trace_bounds",
    "training",
]
