"""NASI and tools for the neural tangent kernel of finite networks, in JAX.

`nasi(space, ...)` is the search as two pure functions, `run(...)` the loop around them,
`SEARCH_SPACES` and `PROXIES` are what there is to search in and to score by. All else, such as the
types of states, is in the rooms: `nasi_jax.search`, `nasi_jax.kernels`, `nasi_jax.training`, ...
"""

from importlib.metadata import version

from nasi_jax.devices import environment

# Before anything imports what an older JAX has not.
try:
    environment.require_versions()
except ImportError as error:
    if environment.is_the_command():
        environment.fail(str(error), 2)
    raise

from nasi_jax.cells import (
    SEARCH_SPACES,
    parse_genotype,
    search_space,
)
from nasi_jax.config import RankConfig, ScoreConfig, SearchConfig, SelectConfig
from nasi_jax.devices.mesh import device_mesh
from nasi_jax.kernels import (
    PROXIES,
    batch_gradient,
    infinite_width_ntk,
    lanczos_spectrum,
    neural_tangents_ntk,
    ntk,
    ntk_on_host,
    ntk_trace,
    per_example_gradient,
    random_cotangent_estimate,
    spectrum,
    squared_gradient_norms,
    trace_bounds,
)
from nasi_jax.report.correlation import correlations
from nasi_jax.search import (
    adaptive,
    fixed,
    log_rank,
    nasi,
    one_step_ascent,
    quantile,
    run,
    score_fn,
)
from nasi_jax.tables import load as load_table
from nasi_jax.training.recipes import RECIPES, TrainConfig
from nasi_jax.training.trainer import trainer
from nasi_jax.types import Batch

__version__ = version("nasi-jax")

__all__ = [
    "PROXIES",
    "RECIPES",
    "SEARCH_SPACES",
    "Batch",
    "RankConfig",
    "ScoreConfig",
    "SearchConfig",
    "SelectConfig",
    "TrainConfig",
    "__version__",
    "adaptive",
    "batch_gradient",
    "correlations",
    "device_mesh",
    "fixed",
    "infinite_width_ntk",
    "lanczos_spectrum",
    "load_table",
    "log_rank",
    "nasi",
    "neural_tangents_ntk",
    "ntk",
    "ntk_on_host",
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
    "trainer",
]
