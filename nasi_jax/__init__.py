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
from nasi_jax.config import SearchConfig
from nasi_jax.kernels import PROXIES, batch_gradient
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
from nasi_jax.types import Batch, Edge

__version__ = version("nasi-jax")

__all__ = [
    "PROXIES",
    "SEARCH_SPACES",
    "Batch",
    "Edge",
    "Run",
    "SearchAlgorithm",
    "SearchConfig",
    "SearchInfo",
    "SearchState",
    "__version__",
    "adaptive",
    "batch_gradient",
    "fixed",
    "genotype_from_dict",
    "genotype_to_dict",
    "gumbel_softmax",
    "init_params",
    "margins",
    "nasi",
    "normalize_by_max_norm",
    "one_step_ascent",
    "parse_genotype",
    "quantile",
    "run",
    "score_fn",
    "search_space",
]
