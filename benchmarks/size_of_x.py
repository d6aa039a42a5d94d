"""Under which relaxation does the paper's nu lie where x lies?

Command:   python benchmarks/size_of_x.py --data CIFAR.npz
Time:      more than an hour on two CPU cores
Expected:  not known: at this size it has not been run to its end

The paper chose nu so that it lies in the range that x takes over a space: 100 (fixed) and 500
(initially, adaptive) in DARTS, 1000 (initially) in NAS-Bench-1Shot1, and as its code was run by
others 1000 in NAS-Bench-201. So quantiles of x over random relaxed architectures, each with a
mini-batch of its own, tell which relaxation, temperature, loss, initialization and statistics the
authors may have had: at the paper's batch size and our supernet, one theta_0. x is the sum of the
squared gradient norms over the parameter tensors; their mean, which code of the same group has,
is x over the number of tensors. The sampled path has the x of hard samples. Prints a table, and
writes size_of_x.json and size_of_x.png.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from measuring import write_record
from rich.console import Console
from rich.progress import track

from nasi_jax import batch_gradient, data, search_space
from nasi_jax.devices import cache
from nasi_jax.report.figures import save
from nasi_jax.search import close_over, gumbel_softmax
from nasi_jax.search.relaxation import init_params_on_host
from nasi_jax.types import Alpha, Batch, Initializer, InitialNormMode, Loss, NetworkSpec, Params

PAPER: dict[str, tuple[float, ...]] = {
    "darts": (100.0, 500.0),
    "nasbench1shot1-1": (1000.0,),
    "nasbench1shot1-2": (1000.0,),
    "nasbench1shot1-3": (1000.0,),
    "nasbench201": (1000.0,),
}
"""nu of each space."""
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class Candidate(NamedTuple):
    """How a supernet is sampled, initialized and judged."""

    sampling: Mapping[str, Any] = {}
    loss: Loss = "cross_entropy"
    init: Initializer = "he_normal"
    norm: InitialNormMode = "batch"


CANDIDATES = {
    "soft": Candidate(),
    "hard": Candidate({"relaxation": "hard"}),
    "hard operations, soft inputs": Candidate({"relaxation": "hard", "input_relaxation": "soft"}),
    "soft, temperature 0.3": Candidate({"temperature": 0.3}),
    "soft, temperature 5": Candidate({"temperature": 5.0}),
    "soft, PyTorch's initialization": Candidate(init="pytorch"),
    "hard, PyTorch's initialization": Candidate({"relaxation": "hard"}, init="pytorch"),
    "soft, squared error": Candidate(loss="mse"),
    "hard, squared error": Candidate({"relaxation": "hard"}, loss="mse"),
    "soft, no normalization": Candidate(norm="none"),
    "hard, no normalization": Candidate({"relaxation": "hard"}, norm="none"),
}


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    data: str = "digits"
    """A data set, as for `nasi search`."""
    spaces: tuple[str, ...] = tuple(PAPER)
    """Search spaces."""
    num_samples: int = 24
    """Architectures and mini-batches for each candidate."""
    batch_size: int = 64
    """Examples in a mini-batch; the paper's is 64."""
    seed: int = 0
    """Seed of theta_0, the architectures and the mini-batches."""
    out: Path = Path("runs/size_of_x")
    """Where the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def traces(config: Config, name: str, images: data.Dataset) -> tuple[dict[str, np.ndarray], int]:
    """x `[num_samples]` of each candidate, and the number of parameter tensors.

    One program serves all candidates of a loss and a norm mode.
    """
    sizes = {"init_channels": 2, "num_cells": 3 if name == "darts" else 1} if config.smoke else {}
    # As searched: DARTS without `none`; NAS-Bench-201 as published, with all five operations.
    ops = search_space(name).settings["nasi-ada"]["ops"] if name == "darts" else None
    space = search_space(name, ops=ops, **sizes)
    params_key, sample_key, data_key = jax.random.split(jax.random.key(config.seed), 3)
    batches = [
        images.batch(data_key, step, config.batch_size) for step in range(config.num_samples)
    ]

    @functools.cache
    def theta_0(init: Initializer, norm: InitialNormMode) -> Params:
        supernet = space.supernet(images.num_classes, NetworkSpec(init=init, norm=norm))
        alpha = space.init_alpha()
        return init_params_on_host(params_key, supernet, batches[0].inputs, alpha)

    @functools.cache
    def program(loss: Loss, norm: InitialNormMode) -> Any:
        supernet = space.supernet(images.num_classes, NetworkSpec(norm=norm))

        def x(params: Params, weights: Alpha, batch: Batch) -> jax.Array:
            apply_fn = close_over(supernet, params, weights, norm=norm)
            return batch_gradient(sample_key, apply_fn, params, batch, loss=loss)

        return jax.jit(x)

    found = {}
    for label, candidate in CANDIDATES.items():
        # Hard operations with soft inputs differ only where inputs are chosen apart.
        apart = any(each.startswith("inputs") for each in space.init_alpha())
        if "input_relaxation" in candidate.sampling and not apart:
            continue
        x = program(candidate.loss, candidate.norm)
        params = theta_0(candidate.init, candidate.norm)
        values = []
        for step, batch in enumerate(
            track(batches, description=f"{name}, {label}", console=Console(stderr=True))
        ):
            key = jax.random.fold_in(sample_key, step)
            selected = space.num_selected()
            weights = gumbel_softmax(
                key, space.init_alpha(), num_selected=selected, **candidate.sampling
            )
            values.append(float(x(params, weights, batch)))
        found[label] = np.array(values)
    # Each by itself: a supernet keeps those of its edges, vertices and alike cells stacked.
    single = space.inherit({"params": theta_0("he_normal", "batch")})["params"]
    return found, len(jax.tree.leaves(single))


def within(values: np.ndarray, nus: tuple[float, ...]) -> bool:
    """Whether each nu lies between the 0.05 and the 0.95 quantile."""
    low, high = np.quantile(values, (LEVELS[0], LEVELS[-1]))
    return all(low <= nu <= high for nu in nus)


def draw(found: dict[str, dict[str, np.ndarray]]) -> Figure:
    """The range of x of each candidate in each space, beside the paper's nu."""
    figure = Figure(figsize=(3 * len(found), 4), layout="constrained")
    every = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    labels = list(CANDIDATES)
    for axes, (space, candidates) in zip(every, found.items(), strict=True):
        for label, values in candidates.items():
            low, first, median, third, high = np.quantile(values, LEVELS)
            place = labels.index(label)
            axes.plot([low, high], [place, place], color="#9ecae1", linewidth=2)
            axes.plot([first, third], [place, place], color="#08519c", linewidth=4)
            axes.plot(median, place, "o", color="white", markeredgecolor="#08519c", markersize=5)
        for nu in PAPER[space]:
            axes.axvline(nu, color="#d94801", linestyle="--")
        axes.set_xscale("log")
        axes.set_title(space, fontsize="medium")
        axes.grid(alpha=0.3, axis="x")
    every[0].set_yticks(range(len(labels)), labels, fontsize="small")
    every[0].invert_yaxis()
    figure.supxlabel("x: median, quartiles, 5% to 95%; dashed the paper's nu", fontsize="medium")
    return figure


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = replace(config, spaces=("nasbench1shot1-1",), num_samples=3, batch_size=2)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache.turn_on(cache.default_folder())
    images = data.load(config.data, image_size=8 if config.smoke else 32)
    found, tensors = {}, {}
    for space in config.spaces:
        found[space], tensors[space] = traces(config, space, images)
    print("| space (nu; tensors) | candidate | 5% | 25% | 50% | 75% | 95% | nu within | as mean |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: dict[str, dict[str, Any]] = {}
    for space, candidates in found.items():
        nus = PAPER[space]
        place = f"{space} ({', '.join(f'{nu:g}' for nu in nus)}; {tensors[space]})"
        for label, values in candidates.items():
            quantiles = np.quantile(values, LEVELS)
            of_sum, of_mean = within(values, nus), within(values / tensors[space], nus)
            cells = " | ".join(f"{each:.3g}" for each in quantiles)
            yes = " | ".join("yes" if each else "no" for each in (of_sum, of_mean))
            print(f"| {place} | {label} | {cells} | {yes} |")
            rows.setdefault(space, {})[label] = {
                "x": values.tolist(),
                "quantiles": dict(zip(map(str, LEVELS), quantiles.tolist(), strict=True)),
                "nu_within": of_sum,
                "nu_within_mean_over_tensors": of_mean,
            }
    for label in CANDIDATES:
        spaces = [space for space in found if label in found[space]]
        inside = [space for space in spaces if rows[space][label]["nu_within"]]
        print(f"{label}: nu within in {len(inside)} of {len(spaces)} spaces")
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        "nu": PAPER,
        "tensors": tensors,
        "spaces": rows,
    }
    write_record(config.out, "size_of_x", record)
    save(draw(found), config.out / "size_of_x.png")


if __name__ == "__main__":
    main()
