"""What activations in bfloat16 change: x, the gradient in alpha, and what is selected.

Command:   python benchmarks/precision.py --data ../shared/data/cifar10_small.npz
Time:      five minutes on two CPU cores, most of it to compile
Expected:  x within a few percent, gradients that point the same way, and the same choices but
           for those that the search is not sure of

Takes the settings of `nasi search`, by default those of a small NAS-Bench-201 search. The same
search runs twice, in float32 and in bfloat16, from the same parameters through the same samples
of architectures and images: all steps are taken at alpha_0, so they can be compared one by one.
Prints a table and writes precision.json.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
import numpy as np
import tyro
from measuring import write_record

from nasi_jax import SearchConfig
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS
from nasi_jax.config import ResolvedSearch, to_dict
from nasi_jax.runs.search import build, dataset_of
from nasi_jax.search import Margin, margins, run
from nasi_jax.types import Precision


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: SearchConfig(
            num_cells=1, batch_size=32, steps=20, ops=NASBENCH201_OPS, redraw=False
        )
    )
    out: Path = Path("runs/precision")
    """Where the record goes."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def search(config: ResolvedSearch) -> tuple[np.ndarray, np.ndarray, list[Margin]]:
    """x of every step `[T]`, what each added to alpha `[T, entries]`, and the choices."""
    dataset = dataset_of(config)
    space, algorithm = build(config, dataset.num_classes)
    key, data_key = jax.random.split(jax.random.key(config.seed))
    batches = functools.partial(dataset.batch, data_key, batch_size=config.batch_size)
    done = run(key, algorithm, batches, config.steps)
    leaves = [leaf.reshape(config.steps, -1) for leaf in jax.tree.leaves(done.info.update)]
    choices = margins(space, done.state.alpha, done.info.update)
    return np.asarray(done.info.trace), np.concatenate(leaves, axis=1), choices


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of each row of one with that of the other."""
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.asarray(np.sum(left * right, axis=-1) / norms)


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    given = config.search
    if config.smoke:
        given = replace(given, batch_size=2, steps=2, init_channels=2, num_cells=1, image_size=8)
    given = given.resolved()
    runs = {name: search(replace(given, precision=name)) for name in get_args(Precision)}
    (exact, updates, choices), (rounded, others, other_choices) = runs.values()
    errors, steps = np.abs(rounded / exact - 1), cosines(updates, others)
    same = [
        (left.winner == right.winner, left.ratio > 2)
        for left, right in zip(choices, other_choices, strict=True)
    ]
    sure = [agrees for agrees, certain in same if certain]
    rows = {
        "relative error of x, median": float(np.median(errors)),
        "relative error of x, largest": float(np.max(errors)),
        "cosine of a step's gradient in alpha, median": float(np.median(steps)),
        "cosine of a step's gradient in alpha, smallest": float(np.min(steps)),
        "cosine of alpha_T": float(cosines(updates.sum(axis=0), others.sum(axis=0))),
        "choices that agree": f"{sum(agrees for agrees, _ in same)} of {len(same)}",
        "of those beyond 2 standard errors": f"{sum(sure)} of {len(sure)}",
    }
    print(f"| {given.space}, norm {given.norm}, {given.steps} steps | bfloat16 beside float32 |")
    print("| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value if isinstance(value, str) else f'{value:.3g}'} |")
    record: dict[str, Any] = {
        "config": {
            "search": {**to_dict(given), "data": Path(given.data).name},
            "smoke": config.smoke,
            "out": str(config.out),
        },
        "rows": rows,
        "runs": {
            name: {
                "trace": traces.tolist(),
                "updates": updates.tolist(),
                "choices": [choice._asdict() for choice in choices],
            }
            for name, (traces, updates, choices) in runs.items()
        },
    }
    write_record(config.out, "precision", record)


if __name__ == "__main__":
    main()
