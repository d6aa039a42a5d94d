"""The search: relaxation, objective, the two functions of NASI, and the loop."""

from nasi_jax.search.confidence import Evidence, Margin, Verdict, margins
from nasi_jax.search.loop import Run, run
from nasi_jax.search.nasi import (
    SearchAlgorithm,
    SearchInfo,
    SearchState,
    nasi,
    normalize_by_max_norm,
    one_step_ascent,
)
from nasi_jax.search.objective import Constraint, adaptive, fixed, penalized, quantile
from nasi_jax.search.relaxation import close_over, gumbel_softmax, init_params
from nasi_jax.search.score import score_fn

__all__ = [
    "Constraint",
    "Evidence",
    "Margin",
    "Run",
    "SearchAlgorithm",
    "SearchInfo",
    "SearchState",
    "Verdict",
    "adaptive",
    "close_over",
    "fixed",
    "gumbel_softmax",
    "init_params",
    "margins",
    "nasi",
    "normalize_by_max_norm",
    "one_step_ascent",
    "penalized",
    "quantile",
    "run",
    "score_fn",
]
