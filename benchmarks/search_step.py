"""What one step of a search costs: to compile, without and with a cache, and to run.

Command:   python benchmarks/search_step.py
Time:      a compilation and seven steps of what is measured
Expected:  the goals of a step in DARTS (16 channels, 8 cells): compiled in 60 s, in 5 s from the
           cache, and in no more than 1.5 times that for 20 cells

Takes the settings of `nasi search`: space, batch, cells, channels, norm mode, derivative and all
others, such as `--space nasbench201 --batch-size 32 --norm frozen`. By default DARTS, reduced,
with 16 images in a batch. The step is the one that a search runs, in two processes one after the
other: the first compiles it with an empty persistent cache, the second takes it from there and is
timed. Of both the row has the seconds to trace, lower and compile, and the peak memory of the
process; of the second also what XLA takes for temporaries.

FLOPs are additions and multiplications of matrix products and convolutions in the program as it
is traced, once for each iteration of a scan; what the compiler then drops or shares is counted,
elementwise operations are not. The compiler's own count is of no use here: it counts the body of
a loop once. The share is that of the rate at which this machine multiplies two float32 matrices
of 2048 x 2048, measured right after. Prints a row and writes search_step.json.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import alone, peak_megabytes, remember, timed

from nasi_jax import SearchConfig
from nasi_jax.config import to_dict
from nasi_jax.kernels.interpreter import Operation, intercept
from nasi_jax.runs.search import build, dataset_of
from nasi_jax.storage import files
from nasi_jax.storage.directory import provenance

SIDE = 2048
"""Rows and columns of the matrices that the machine's rate is measured with."""


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    search: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: SearchConfig(space="darts", batch_size=16)
    )
    repeats: int = 5
    """Timed runs of the step, after one that is not timed."""
    out: Path = Path("runs/search_step")
    """Where the record goes."""
    record: bool = False
    """Append the figures to `benchmarks/records.jsonl`."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


def smallest(search: SearchConfig) -> SearchConfig:
    """The same search at its smallest size."""
    cells = 3 if search.space == "darts" else 1
    return replace(search, batch_size=2, init_channels=4, num_cells=cells, image_size=8)


def flops(function: Callable[..., Any], *args: Any) -> int:
    """Additions and multiplications of the products and convolutions in a program.

    Once for each iteration of a scan; what is in a while loop is not counted. Products with padding
    and with the zeros between the entries of a cotangent are counted as others are.
    """
    counts: dict[tuple[int, ...], int] = {}

    def note(operation: Operation) -> None:
        # By its place, as the body of a scan may be traced more than once.
        counts[operation.site] = operation.repeats * _multiply_accumulates(operation)

    jax.eval_shape(functools.partial(intercept, function, note), *args)
    return 2 * sum(counts.values())


def _multiply_accumulates(operation: Operation) -> int:
    name = operation.name
    if name == "dot_general":
        (((contracted, _), (batched, _)),) = operation.read("dimension_numbers")
        left, right = (operand.shape for operand in operation.inputs)
        shared = np.prod([left[axis] for axis in (*contracted, *batched)])
        return int(np.prod(left) * np.prod(right) // shared)
    if "conv" not in name.split("_"):
        return 0
    left, right = operation.inputs
    (out,) = jax.eval_shape(operation.apply, left, right)
    if name == "conv_general_dilated":
        (dimensions,) = operation.read("dimension_numbers")
        features = right.shape[dimensions.rhs_spec[0]]
        return int(out.size * right.size // features)
    # Our own: a convolution y(x, w), and its gradients dx(g, w) and dw(x, g).
    kinds = {"conv": (out, right), "conv_dx": (left, right), "conv_dw": (right, out)}
    kind = name.partition("_")[2]
    if kind not in kinds:
        raise ValueError(f"there is no count for the operation {name}")
    outputs, kernel = kinds[kind]
    return int(outputs.size * kernel.size // kernel.shape[-1])


def measure(config: Config, cache: str) -> dict[str, Any]:
    """The figures of one step, in the process that calls it.

    Args:
      config: the settings.
      cache: the directory of the persistent compilation cache.
    """
    use_cache(cache)
    search = config.search.resolved()
    dataset = dataset_of(search)
    space, algorithm = build(search, dataset.num_classes)
    search_key, data_key = jax.random.split(jax.random.key(search.seed))
    batch = dataset.batch(data_key, 0, search.batch_size)
    state = algorithm.init(search_key, batch)

    begin = time.perf_counter()
    lowered = jax.jit(algorithm.step, donate_argnums=1).lower(search_key, state, batch)
    lower_seconds = time.perf_counter() - begin
    step = lowered.compile()
    compile_seconds = time.perf_counter() - begin - lower_seconds
    memory: Any = step.memory_analysis()

    def run() -> None:
        nonlocal state
        state, info = jax.block_until_ready(step(search_key, state, batch))
        # As a search does; a step that fails fast is no fast step.
        assert np.isfinite(info.trace) and np.isfinite(info.gradient_norm)

    seconds = timed(run, config.repeats)
    peak = peak_megabytes()
    sizes: Any = space  # every registered space has both
    return {
        "search": to_dict(
            replace(search, init_channels=sizes.init_channels, num_cells=sizes.num_cells)
        ),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "peak_megabytes": peak,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
        "flops": flops(algorithm.step, search_key, state, batch),
    }


def use_cache(directory: str) -> None:
    """Keeps all that is compiled from now on, and takes from there what is kept."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def matmul_rate(repeats: int = 7) -> float:
    """FLOPs a second of this machine's product of two large float32 matrices, the median."""
    left, right = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    seconds = timed(lambda: jax.block_until_ready(product(left, right)), repeats)
    return float(2 * SIDE**3 / np.median(seconds))


def measure_twice(config: Config) -> dict[str, Any]:
    """`measure` with an empty cache (`cold`) and with the filled one (`warm`), each time alone."""
    with tempfile.TemporaryDirectory() as cache:
        cold = alone(measure, replace(config, repeats=0), cache)
        warm = alone(measure, config, cache)
    same = {name: warm.pop(name) for name in ("search", "parameters", "flops")}
    names = ("lower_seconds", "compile_seconds", "peak_megabytes", "temporary_megabytes")
    return {**same, "cold": {name: cold[name] for name in names}, "warm": warm}


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = replace(config, search=smallest(config.search), repeats=2)
    result = measure_twice(config)
    result["matmul_flops_per_second"] = alone(matmul_rate)
    cold, warm = result["cold"], result["warm"]
    search, seconds = result["search"], np.array(warm["seconds"])
    rate = result["flops"] / np.median(seconds)
    print(
        "| space | batch | cells | channels | norm | derivative | compile, s | MB | warm, s "
        "| run, s | range | MB | XLA, MB | GFLOP | GFLOP/s | of matmul |"
    )
    print("| --- " * 16 + "|")
    print(
        f"| {search['space']} | {search['batch_size']} | {search['num_cells']} "
        f"| {search['init_channels']} | {search['norm']} | {search['derivative']} "
        f"| {cold['lower_seconds'] + cold['compile_seconds']:.1f} "
        f"| {cold['peak_megabytes']:.0f} "
        f"| {warm['lower_seconds'] + warm['compile_seconds']:.1f} "
        f"| {np.median(seconds):.3g} | {seconds.min():.3g}-{seconds.max():.3g} "
        f"| {warm['peak_megabytes']:.0f} | {warm['temporary_megabytes']:.0f} "
        f"| {result['flops'] / 1e9:.3g} | {rate / 1e9:.3g} "
        f"| {rate / result['matmul_flops_per_second']:.1%} |"
    )
    if config.record:
        compile_seconds = {
            f"{name}: compile": (each["lower_seconds"] + each["compile_seconds"], "s")
            for name, each in (("cold", cold), ("warm", warm))
        }
        memory = (warm["temporary_megabytes"], "MB")
        remember({"step": (float(np.median(seconds)), "s"), **compile_seconds, "memory": memory})
    settings = {**asdict(config), "out": str(config.out)}
    # What it resolved to stands in the result.
    del settings["search"]
    result["search"]["data"] = Path(search["data"]).name
    record = {"config": settings, **result, **provenance()}
    config.out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(config.out / "search_step.json", json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    main()
