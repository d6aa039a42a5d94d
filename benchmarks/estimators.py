"""What each estimate of the NTK's trace costs, and how far it is from the trace.

Command:   python benchmarks/estimators.py
Time:      two and a half minutes on two CPU cores
Expected:  the exact trace in two to three forward passes for each output;
           batch_gradient far from it in value, as it must be; by vmap(grad) the same values
           in more time and memory

One NAS-Bench-201 network, norm mode frozen, one batch. Prints a row for each quantity: run time
(median of the repeats, in forward passes of the same batch, and the range), compile time, the
memory that XLA takes for temporaries, and the value over the exact trace. Estimates of the
trace are scaled as the paper does: m gamma^-2 x for batch_gradient and gamma^-2 times the sum of
per-example norms, gamma = sqrt(2). By vmap(grad) is what estimates become where JAX writes programs
in a form that is not known here. Writes estimators.json.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from measuring import remember, timed, write_record

from nasi_jax import data, kernels, parse_genotype, search_space
from nasi_jax.kernels.gradient import loss_gradient
from nasi_jax.kernels.per_example import squared_norm
from nasi_jax.types import Batch, NetworkSpec

GENOTYPE = (
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|avg_pool_3x3~2|"
)


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    data: str = "digits"
    """A data set, as for `nasi search`."""
    batch_size: int = 64
    """Examples in the batch."""
    init_channels: int = 16
    """Channels of the first cells."""
    num_cells: int = 5
    """Cells a stage."""
    image_size: int = 32
    """Height and width of the images."""
    repeats: int = 5
    """Timed runs of each quantity."""
    seed: int = 0
    """Seed of the parameters, the batch and the probes."""
    out: Path = Path("runs/estimators")
    """Where the record goes."""
    record: bool = False
    """Append the figures to `benchmarks/records.jsonl`."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def by_vmap_grad(
    num_probes: int | None, key: jax.Array, apply_fn: Any, params: Any, batch: Batch
) -> jax.Array:
    """The trace from each example's gradients: random_cotangent over classes, or all outputs."""
    size, outputs = jax.eval_shape(apply_fn, params, batch.inputs).shape
    if num_probes is None:
        cotangents = jnp.broadcast_to(jnp.eye(outputs), (size, outputs, outputs))
    else:
        cotangents = jax.random.rademacher(key, (size, num_probes, outputs), jnp.float32)

    def norms(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, cotangents = example
        _, pull = jax.vjp(lambda params: apply_fn(params, inputs[None])[0], params)
        return jax.vmap(lambda cotangent: squared_norm(pull(cotangent)[0]))(cotangents)

    found = lax.map(norms, (batch.inputs, cotangents), batch_size=min(8, size))
    return jnp.sum(jnp.mean(found, axis=1) if num_probes else found)


def quantities() -> dict[
    str, tuple[Callable[..., jax.Array], Callable[[float, int], float] | None]
]:
    """By name: the function of (key, apply_fn, params, batch), and how it estimates the trace."""
    told: dict[str, Any] = {"coupled": False}
    classes = functools.partial(kernels.random_cotangent, num_probes=1, **told)
    whole = functools.partial(kernels.random_cotangent, over="batch", num_probes=8)
    return {
        "forward": (lambda key, apply_fn, params, batch: apply_fn(params, batch.inputs), None),
        "forward and backward": (
            lambda key, apply_fn, params, batch: loss_gradient(
                apply_fn, params, batch, "cross_entropy"
            ),
            None,
        ),
        "batch_gradient": (kernels.batch_gradient, lambda x, size: size * x / 2),
        "per_example_gradient": (
            functools.partial(kernels.per_example_gradient, **told),
            lambda x, size: x / 2,
        ),
        "random_cotangent over classes, 1 probe": (classes, lambda x, size: x),
        "random_cotangent over the batch, 8 probes": (whole, lambda x, size: x),
        "random_cotangent over classes, 1 probe by vmap(grad)": (
            functools.partial(by_vmap_grad, 1),
            lambda x, size: x,
        ),
        "ntk_trace": (functools.partial(kernels.ntk_trace, **told), lambda x, size: x),
        "ntk_trace by vmap(grad)": (functools.partial(by_vmap_grad, None), lambda x, size: x),
        "condition_number": (functools.partial(kernels.condition_number, **told), None),
    }


def measure(config: Config, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """A row for each quantity, or for those of the given names."""
    space = search_space(
        "nasbench201", init_channels=config.init_channels, num_cells=config.num_cells
    )
    dataset = data.load(config.data, image_size=config.image_size, seed=config.seed)
    params_key, data_key, probe_key = jax.random.split(jax.random.key(config.seed), 3)
    batch = dataset.batch(data_key, 0, config.batch_size)
    network = space.network(
        parse_genotype(GENOTYPE), dataset.num_classes, NetworkSpec(norm="frozen")
    )
    variables = jax.jit(network.init)(params_key, batch.inputs)
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}

    def apply_fn(params: Any, inputs: jax.Array) -> Any:
        return network.apply({"params": params, **statistics}, inputs)

    rows = []
    for name, (function, to_trace) in quantities().items():
        if names is not None and name not in names:
            continue

        def compute(key: jax.Array, params: Any, batch: Batch, function: Any = function) -> Any:
            return function(key, apply_fn, params, batch)

        begin = time.perf_counter()
        compiled = jax.jit(compute).lower(probe_key, params, batch).compile()
        compile_seconds = time.perf_counter() - begin
        value = jax.block_until_ready(compiled(probe_key, params, batch))
        memory: Any = compiled.memory_analysis()

        def run(compiled: Any = compiled) -> None:
            jax.block_until_ready(compiled(probe_key, params, batch))

        seconds = timed(run, config.repeats)
        rows.append(
            {
                "quantity": name,
                "compile_seconds": compile_seconds,
                "seconds": seconds,
                "megabytes": memory.temp_size_in_bytes / 1e6,
                "value": float(value) if name in kernels.PROXIES else None,
                "trace": None if to_trace is None else to_trace(float(value), config.batch_size),
            }
        )
    return rows


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(
            batch_size=4,
            init_channels=2,
            num_cells=1,
            image_size=8,
            repeats=2,
            out=config.out,
            record=config.record,
        )
    rows = measure(config)
    forward = float(np.median(rows[0]["seconds"]))
    exact = next(row["trace"] for row in rows if row["quantity"] == "ntk_trace")
    print("| quantity | forward passes | range | compile, s | MB | estimate / trace |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        passes = np.array(row["seconds"]) / forward
        ratio = "" if row["trace"] is None else f"{row['trace'] / exact:.4g}"
        print(
            f"| {row['quantity']} | {np.median(passes):.1f} | "
            f"{passes.min():.1f}-{passes.max():.1f} | {row['compile_seconds']:.1f} | "
            f"{row['megabytes']:.0f} | {ratio} |"
        )
    if config.record:
        remember({row["quantity"]: (float(np.median(row["seconds"])), "s") for row in rows})
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        "genotype": GENOTYPE,
        "norm": "frozen",
        "rows": rows,
    }
    write_record(config.out, "estimators", record)


if __name__ == "__main__":
    main()
