"""Do all proxies give the same scores in two versions of JAX?

Command:   python benchmarks/agreement.py --out runs/old                       (in one version)
           python benchmarks/agreement.py --out runs/new --against runs/old    (in the other)
Time:      about 20 minutes each on two CPU cores
Expected:  every score within a relative 1e-4 of the other version's, whole numbers equal

Scores random cells of every search space by every proxy, in float64: those that need gradients of
single examples with frozen statistics, the others with batch statistics. The genotypes, the
parameters, the batch and the draws of the random keys are kept in agreement.npz, and are taken from
there with `--against`, so that nothing differs but the version; the draws are compared. Prints the
largest relative difference a proxy and space, writes agreement.json, and ends with status 1 if one
is above 1e-4.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import write_record
from rich.console import Console
from rich.table import Table

from nasi_jax import Batch, parse_genotype, search_space
from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.kernels import PROXIES
from nasi_jax.kernels.proxies import proxy as proxies
from nasi_jax.search import init_params, score_fn
from nasi_jax.storage import files
from nasi_jax.types import NetworkSpec, NormMode

LIMIT = 1e-4
"""Of the relative difference."""
CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Settings of the check."""

    spaces: tuple[str, ...] = tuple(SEARCH_SPACES)
    """Search spaces."""
    proxies: tuple[str, ...] = tuple(PROXIES)
    """Proxies."""
    num_archs: int = 10
    """Random cells of each space."""
    batch_size: int = 4
    """Examples."""
    init_channels: int = 4
    """Channels of the supernets' first cells."""
    image_size: int = 8
    """Height and width of the images."""
    out: Path = Path("runs/agreement")
    """Where the scores go."""
    against: Path | None = None
    """What the other version wrote."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def space_of(config: Config, name: str) -> Any:
    """The space at its smallest number of cells."""
    num_cells = 3 if name == "darts" else 1
    return search_space(name, init_channels=config.init_channels, num_cells=num_cells)


def drawn(config: Config) -> dict[str, np.ndarray]:
    """All that is random: genotypes as text, the batch, draws of the keys, parameters."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    inputs = rng.normal(size=shape)
    arrays = {"inputs": inputs, "labels": np.arange(config.batch_size) % CLASSES}
    for name in config.spaces:
        space = space_of(config, name)
        keys = jax.random.split(jax.random.key(0), config.num_archs)
        texts = [space.sample(key).to_text() for key in keys]
        arrays[f"{name} genotypes"] = np.array(texts)
        for norm in norms(config):
            leaves = jax.tree.leaves(shapes(config, name, norm))
            for number, leaf in enumerate(leaves):
                spread = np.sqrt(2 / max(1, int(np.prod(leaf.shape[-4:-1]))))
                arrays[f"{name} {norm} {number}"] = spread * rng.normal(size=leaf.shape)
    return arrays


def draws() -> dict[str, np.ndarray]:
    """What the random keys of proxies give: a version may change that."""

    def key() -> jax.Array:
        return jax.random.key(0)

    return {
        "normal": np.asarray(jax.random.normal(key(), (64,))),
        "rademacher": np.asarray(jax.random.rademacher(key(), (64,), jnp.float32)),
        "split": np.asarray(jax.random.normal(jax.random.split(key())[1], (64,))),
    }


def norm_of(proxy: str) -> NormMode:
    """The norm mode that a proxy is computed in."""
    function = PROXIES[proxy]
    return proxies.norm_of(function, "frozen" if proxies.per_example(function) else "batch")


def norms(config: Config) -> list[NormMode]:
    """The norm modes that are needed."""
    return sorted({norm_of(proxy) for proxy in config.proxies})


def supernet(config: Config, name: str, norm: NormMode) -> Any:
    """The supernet of single architectures, in float64."""
    return space_of(config, name).supernet(
        CLASSES, NetworkSpec(norm=norm, param_dtype=jnp.float64, dtype=jnp.float64), one_hot=True
    )


def shapes(config: Config, name: str, norm: NormMode) -> Any:
    """The shapes of its parameters."""
    space = space_of(config, name)
    inputs = jnp.zeros((1, config.image_size, config.image_size, 3))
    weights = jax.tree.map(jax.nn.softmax, space.init_alpha())
    net = supernet(config, name, norm)
    return jax.eval_shape(lambda key: init_params(key, net, inputs, weights), jax.random.key(0))


def scored(config: Config, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """The scores by space and proxy."""
    found: dict[str, dict[str, list[float]]] = {}
    batch = Batch(jnp.asarray(arrays["inputs"]), jnp.asarray(arrays["labels"]))
    console = Console(stderr=True)
    for name in config.spaces:
        space = space_of(config, name)
        genotypes = [parse_genotype(text) for text in arrays[f"{name} genotypes"].tolist()]
        found[name] = {}
        for proxy in config.proxies:
            norm = norm_of(proxy)
            leaves, structure = jax.tree.flatten(shapes(config, name, norm))
            values = [jnp.asarray(arrays[f"{name} {norm} {i}"]) for i in range(len(leaves))]
            params = jax.tree.unflatten(structure, values)
            score = score_fn(space, supernet(config, name, norm), proxy=PROXIES[proxy], norm=norm)
            console.print(f"{name} {proxy}")
            found[name][proxy] = [
                float(score(jax.random.key(0), params, genotype, batch)) for genotype in genotypes
            ]
    return found


def differences(
    found: dict[str, dict[str, list[float]]], other: dict[str, dict[str, list[float]]]
) -> dict[str, dict[str, float]]:
    """The largest relative difference by proxy and space; 0 where both are equal, or infinite."""

    def largest(left: list[float], right: list[float]) -> float:
        one, two = np.array(left), np.array(right)
        with np.errstate(invalid="ignore"):  # of an infinity less another
            apart = np.abs(one - two) / np.maximum(np.abs(two), np.finfo(float).tiny)
        return float(np.max(np.where(one == two, 0, apart)))

    return {
        proxy: {
            space: largest(scores[proxy], other[space][proxy]) for space, scores in found.items()
        }
        for proxy in next(iter(found.values()))
    }


def main() -> None:
    """Scores, and compares."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(
            spaces=("nasbench201",),
            proxies=("batch_gradient", "num_params"),
            num_archs=2,
            out=config.out,
            against=config.against,
        )
    with jax.enable_x64(True):
        if config.against is None:
            arrays = {**drawn(config), **draws()}
        else:
            with np.load(config.against / "agreement.npz") as kept:
                arrays = dict(kept)
            for name, values in draws().items():
                if not np.allclose(values, arrays[name], rtol=1e-12, atol=0):
                    raise SystemExit(f"the versions draw other numbers: {name}")
        found = scored(config, arrays)
    settings = json.loads(json.dumps(asdict(config), default=str))
    record: dict[str, Any] = {"config": settings, "scores": found}
    passed = True
    if config.against is not None:
        other = json.loads((config.against / "agreement.json").read_text())
        record["differences"] = differences(found, other["scores"])
        table = Table("proxy", *config.spaces, title=f"against jax {other['versions']['jax']}")
        for proxy, values in record["differences"].items():
            table.add_row(proxy, *(f"{value:.0e}" for value in values.values()))
            passed = passed and all(value <= LIMIT for value in values.values())
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    write_record(config.out, "agreement", record)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.write_bytes(config.out / "agreement.npz", buffer.getvalue())
    if not passed:
        raise SystemExit(f"a score differs by more than a relative {LIMIT}")


if __name__ == "__main__":
    main()
