"""What NASI-FIX and NASI-ADA select in the space of DARTS, beside the paper's cells.

Command:   python benchmarks/darts_cells.py --data CIFAR.npz
Time:      39 minutes for two seeds and 16 images on two busy CPU cores (Intel Xeon)
Expected:  cells that differ from seed to seed, and are smaller than the paper's (3.9 M and 3.7 M)

Searches from `seeds` seeds by the paper's settings (T 100, b 64, mu 2, one theta_0); both variants
are read from the same samples, since x and its gradient depend on neither mu nor nu. Of each cell
pair: parameters and multiply-adds of the networks for CIFAR-10 (20 cells of 36 channels) and
ImageNet (14 of 48), the operations, how many choices lie within two standard errors, and how many
a confidence sequence calls sure. Of each variant: the share of each operation and, over pairs of
seeds, of choices that agree, beside what cells drawn at random have. `--classes` gives the images
as many random classes: 100 is the paper's setting for CIFAR-100 but for the images. Searches that
are done are kept, and not done again. Prints tables, and writes darts_cells.json and the genotypes
as text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import write_record
from samples import Samples, alphas, sampled, selected, settings, smallest

from nasi_jax import SearchConfig, data
from nasi_jax.cells.darts import CELLS, DartsGenotype
from nasi_jax.config import VARIANTS, ResolvedSearch, Variant
from nasi_jax.runs.limits import network_size
from nasi_jax.runs.search import constraint_of
from nasi_jax.search import Evidence, margins
from nasi_jax.storage import files
from nasi_jax.types import SearchSpace

PAPER: dict[Variant, tuple[float, float, float]] = {
    "nasi-fix": (3.9, 5.2, 585),
    "nasi-ada": (3.7, 4.9, 559),
}
"""Parameters (millions) on CIFAR-10 and ImageNet, and multiply-adds (millions) on ImageNet."""
NETWORKS = ("cifar10", "imagenet")
"""What the networks that are trained are for; see `nasi_jax.runs.limits`."""
NUM_RANDOM = 200
"""Random cells beside those that are selected."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: SearchConfig(space="darts")
    )
    classes: int | None = None
    """Random classes in place of the labels of the data."""
    seeds: int = 5
    """Searches."""
    out: Path = Path("runs/darts_cells")
    """Where samples, the record and the genotypes go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def network_sizes(genotype: DartsGenotype) -> dict[str, tuple[float, float]]:
    """Parameters and multiply-adds, in millions, of each of `NETWORKS`."""
    sizes = {name: network_size(genotype, name) for name in NETWORKS}
    return {name: (size.params / 1e6, size.multiply_adds / 1e6) for name, size in sizes.items()}


def with_random_classes(path: str, classes: int, out: Path) -> str:
    """The training images of a data set with labels from so many classes, as a file."""
    images = data.load(path, image_size=32)
    raw, _ = images.images(np.arange(images.num_examples))
    labels = np.random.default_rng(0).integers(classes, size=len(raw))
    labels[:classes] = np.arange(classes)
    made = out / f"{classes}_random_classes.npz"
    out.mkdir(parents=True, exist_ok=True)
    np.savez(made, x_train=raw, y_train=labels)
    return str(made)


def of_seed(space: SearchSpace, samples: Samples, search: ResolvedSearch) -> dict[str, Any]:
    """What one search selects by a variant, its sizes, and how sure it is."""
    history = alphas(
        samples,
        steps=search.steps,
        penalty=search.penalty,
        constraint=constraint_of(search),
    )
    (genotype,) = selected(space, history, [search.steps])
    updates = {name: jnp.diff(values, axis=0, prepend=0) for name, values in history.items()}
    evidence = Evidence(space)
    for step in range(search.steps):
        evidence.add({name: values[step] for name, values in updates.items()})
    found = margins(space, {name: values[-1] for name, values in history.items()}, updates)
    return {
        "genotype": genotype,
        "sizes": network_sizes(genotype),
        "choices": len(found),
        "noise": sum(abs(each.ratio) < 2 for each in found),
        "sure": sum(verdict.sure for verdict in evidence.verdicts()),
    }


def shares(genotypes: Sequence[DartsGenotype]) -> dict[str, dict[str, float]]:
    """Of each cell the share of its edges that each operation has."""
    found = {}
    for cell in CELLS:
        counts = Counter(edge.op for each in genotypes for edge in getattr(each, cell))
        found[cell] = {op: counts[op] / counts.total() for op in sorted(counts)}
    return found


def agreement(genotypes: Sequence[DartsGenotype]) -> float | None:
    """The share of edges (cell, node, node read, operation) that two of them have in common."""
    edges = [
        {
            (cell, place // 2, edge)
            for cell in CELLS
            for place, edge in enumerate(getattr(each, cell))
        }
        for each in genotypes
    ]
    pairs = [len(a & b) / len(a) for a, b in itertools.combinations(edges, 2)]
    return float(np.mean(pairs)) if pairs else None


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    search = config.search.resolved()
    if config.classes is not None:
        search = replace(search, data=with_random_classes(search.data, config.classes, config.out))
    if config.smoke:
        search = replace(smallest(search), num_cells=3)
        config = replace(config, seeds=2)
    seeds = range(search.seed, search.seed + config.seeds)
    space, found = sampled(search, seeds, config.out / "samples")
    rows: dict[Variant, list[dict[str, Any]]] = {}
    for variant in VARIANTS:
        # The constraint and its rule are the variant's, all else as searched.
        own = SearchConfig(space=search.space, variant=variant).resolved()
        by_variant = replace(
            search, constraint=own.constraint, constraint_rule=own.constraint_rule, variant=variant
        )
        rows[variant] = [of_seed(space, samples, by_variant) for samples in found]
    drawn = [space.sample(key) for key in jax.random.split(jax.random.key(0), NUM_RANDOM)]
    sizes = [network_sizes(each) for each in drawn[: 2 if config.smoke else 20]]
    print("| | seed | params, M | ImageNet: params, M | multiply-adds, M | within 2 s.e. | sure |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for variant, each in rows.items():
        for seed, row in zip(seeds, each, strict=True):
            (small, _), (large, work) = (row["sizes"][name] for name in NETWORKS)
            sizes_of = f"{small:.2f} | {large:.2f} | {work:.0f}"
            sure = f"{row['noise']} of {row['choices']} | {row['sure']}"
            print(f"| {variant} | {seed} | {sizes_of} | {sure} |")
        small, large, work = PAPER[variant]
        print(f"| the paper's | | {small} | {large} | {work} | | |")
    small, large, work = np.mean([[*s["cifar10"][:1], *s["imagenet"]] for s in sizes], axis=0)
    print(f"| a random cell | | {small:.2f} | {large:.2f} | {work:.0f} | | |")
    cells: dict[str, list[DartsGenotype]] = {
        variant: [row["genotype"] for row in each] for variant, each in rows.items()
    }
    for name, genotypes in {**cells, "random": drawn}.items():
        agreed = agreement(genotypes)
        print(f"{name}: {'-' if agreed is None else f'{agreed:.2f}'} of the edges agree over seeds")
        for cell, counts in shares(genotypes).items():
            listed = ", ".join(f"{op} {share:.2f}" for op, share in counts.items())
            print(f"  {cell}: {listed}")
    quantiles = np.quantile(np.concatenate([each.trace for each in found]), (0.05, 0.5, 0.95))
    print("x: 5% {:.3g}, median {:.3g}, 95% {:.3g}".format(*quantiles))
    for name, genotypes in cells.items():
        text = "".join(f"{each.to_text()}\n" for each in genotypes)
        files.write_bytes(config.out / f"{name}.txt", text.encode())
    record = {
        "config": settings(config, search),
        "rows": {
            variant: [{**row, "genotype": row["genotype"].to_text()} for row in each]
            for variant, each in rows.items()
        },
        "shares": {name: shares(each) for name, each in cells.items()},
        "agreement": {name: agreement(each) for name, each in cells.items()},
        "x": [each.trace.tolist() for each in found],
        "seconds": [float(np.sum(each.seconds)) for each in found],
    }
    write_record(config.out, "darts_cells", record)


if __name__ == "__main__":
    main()
