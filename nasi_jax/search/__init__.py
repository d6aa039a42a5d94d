"""Searches: NASI with its relaxation, objective and loop, and selection by the ranks of scores."""

from nasi_jax.search.aggregate import AGGREGATES, log_rank
from nasi_jax.search.confidence import Evidence, Margin, Verdict, margins
from nasi_jax.search.evolution import mutated, random_search, regularized_evolution
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
from nasi_jax.search.order import by_probability
from nasi_jax.search.pruning import perturb, prune
from nasi_jax.search.relaxation import close_over, gumbel_softmax, init_params
from nasi_jax.search.score import score_fn

__all__ = [
    "AGGREGATES",
    "Constraint",
    "Evidence",
    "Margin",
    "Run",
    "SearchAlgorithm",
    "SearchInfo",
    "SearchState",
    "Verdict",
    "adaptive",
    "by_probability",
    "close_over",
    "fixed",
    "gumbel_softmax",
    "init_params",
    "log_rank",
    "margins",
    "mutated",
    "nasi",
    "normalize_by_max_norm",
    "one_step_ascent",
    "penalized",
    "perturb",
    "prune",
    "quantile",
    "random_search",
    "regularized_evolution",
    "run",
    "score_fn",
]
