"""What the commands do, each with its files on disk; a file bears the name of its verb."""

from nasi_jax.runs import (
    compare,
    plan,
    predict,
    rank,
    report,
    resume,
    score,
    search,
    select,
    train,
)

__all__ = [
    "compare",
    "plan",
    "predict",
    "rank",
    "report",
    "resume",
    "score",
    "search",
    "select",
    "train",
]
