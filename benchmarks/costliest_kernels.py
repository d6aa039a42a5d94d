"""The kernels that take most of the time of what the commands run, by JAX's profiler.

Command:   python benchmarks/costliest_kernels.py --only search/darts
Time:      compiling, and some calls of each program
Expected:  a table for each program: its ten costliest kernels, with milliseconds a call

Programs, and the names that choose among them, are those of `compile_for.py`; here they run, on the
device at hand, on random images and parameters. Seconds of a kernel are its own, without what runs
inside of it, as the cells inside of a loop; on a CPU, of the thread that waits for it. The traces
stay under `--out`, for TensorBoard or Perfetto, beside costliest_kernels.json.
"""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from compile_for import Sizes, chosen, programs
from measuring import turn, write_record

from nasi_jax.cells.layers.mixed import stacked
from nasi_jax.config import ScoreConfig
from nasi_jax.devices import cache, launches
from nasi_jax.runs.plan import Program
from nasi_jax.runs.search import space_of
from nasi_jax.types import Alpha


@dataclass(frozen=True, kw_only=True)
class Config(Sizes):
    """Settings of the benchmark."""

    only: tuple[str, ...]
    """Names of programs, or first parts of them, such as search/darts score/nasbench201."""
    calls: int = 3
    """Calls that are profiled, after one that is not."""
    most: int = 10
    """Kernels in a table."""
    out: Path = Path("runs/costliest_kernels")
    """Where the traces and the record go."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a program: milliseconds and launches a call, and where in the program it is."""

    name: str
    milliseconds: float
    launches: float
    source: str


class Span(NamedTuple):
    """A kernel at work."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        """When it is done."""
        return self.start + self.duration


def spans_of(profile: jax.profiler.ProfileData) -> Iterator[list[Span]]:
    """The kernels of each stream of a GPU, core of a TPU, or thread of a CPU.

    They bear the names of the instructions of the compiled program that they belong to, or their
    own where a device does not tell, as inside of a CUDA graph.
    """
    for plane in profile.planes:
        device = plane.name.startswith("/device:")
        for line in plane.lines:
            if device and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            spans = []
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name if device else None)
                if name is not None:
                    spans.append(Span(str(name), event.start_ns, event.duration_ns))
            if spans:
                yield spans


def own_nanoseconds(spans: Iterable[Span]) -> dict[str, list[float]]:
    """Nanoseconds of each launch of each kernel, less those of the kernels inside of it."""
    ordered = sorted(spans, key=lambda span: (span.start, -span.duration))
    own = [span.duration for span in ordered]
    around: list[int] = []
    for index, span in enumerate(ordered):
        while around and ordered[around[-1]].end <= span.start:
            around.pop()
        if around:
            own[around[-1]] -= span.duration
        around.append(index)
    found = defaultdict[str, list[float]](list)
    for span, nanoseconds in zip(ordered, own, strict=True):
        found[span.name].append(nanoseconds)
    return found


def costliest(
    profile: jax.profiler.ProfileData, sources: dict[str, str], calls: int
) -> list[Kernel]:
    """The kernels of so many calls of a program, those that take longest first."""
    by_name = defaultdict[str, list[float]](list)
    for spans in spans_of(profile):
        for name, nanoseconds in own_nanoseconds(spans).items():
            by_name[name] += nanoseconds
    kernels = [
        Kernel(name, sum(each) / 1e6 / calls, len(each) / calls, sources.get(name, ""))
        for name, each in by_name.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.milliseconds)


def example(shape: Any) -> jax.Array:
    """An array of a shape and dtype: small random numbers, images, keys, or zeros."""
    key = jax.random.key(0)
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, shape.shape) if shape.shape else key
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return 0.1 * jax.random.normal(key, shape.shape, shape.dtype)
    if shape.dtype == jnp.uint8:
        return jax.random.bits(key, shape.shape, jnp.uint8)
    return jnp.zeros(shape.shape, shape.dtype)


def arguments_of(name: str, made: functools.partial[Program], program: Program) -> tuple[Any, ...]:
    """What a program is called with; random cells are scored."""
    arguments = jax.tree.map(example, program.arguments)
    if name.startswith("score/"):
        key, params, _, batch = arguments
        return key, params, random_cells(made.args[0], program.samples), batch
    return arguments


def random_cells(config: ScoreConfig, number: int) -> Alpha:
    """The one-hot weights of random cells, stacked if there are several."""
    space = space_of(config)
    keys = jax.random.split(jax.random.key(0), number)
    weights = [space.one_hot(space.sample(key)) for key in keys]
    return weights[0] if number == 1 else stacked(weights)


def profiled(
    name: str, made: functools.partial[Program], config: Config
) -> tuple[list[float], list[Kernel]]:
    """Seconds of the calls of a program under the profiler, and its kernels."""
    program = made()
    function: Any = program.function
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    with jax.default_matmul_precision(program.matmul_precision):
        compiled = jitted.lower(*program.arguments).compile()
    told = launches.sources(compiled.as_text() or "")
    arguments = arguments_of(name, made, program)
    # A copy for each call, which may use up what it is given.
    given = [jax.tree.map(jnp.copy, arguments) for _ in range(1 + config.calls)]
    folder, seconds = config.out / name.replace("/", "-"), []
    with turn():
        jax.block_until_ready(compiled(*given.pop()))
        with jax.profiler.trace(folder):
            for each in given:
                begin = time.perf_counter()
                jax.block_until_ready(compiled(*each))
                seconds.append(time.perf_counter() - begin)
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    profile = jax.profiler.ProfileData.from_file(str(newest))
    with warnings.catch_warnings():
        # Of the way in which JAX's reader is built; as an error it would end the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        return seconds, costliest(profile, told, config.calls)


def table(name: str, seconds: list[float], kernels: list[Kernel], most: int) -> str:
    """The costliest kernels of a program in Markdown."""
    whole = sum(kernel.milliseconds for kernel in kernels)
    lines = [
        f"{name}: {1e3 * statistics.median(seconds):.3g} ms a call under the profiler, of which "
        f"kernels {whole:.3g} ms, {sum(kernel.launches for kernel in kernels):,.0f} launches",
        "",
        "| kernel | ms a call | share, % | launches | where |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kernel in kernels[:most]:
        share = 100 * kernel.milliseconds / whole
        lines.append(
            f"| {kernel.name} | {kernel.milliseconds:.3g} | {share:.1f} | "
            f"{kernel.launches:,.0f} | {kernel.source} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    cache.turn_off()
    try:
        found = programs(config)
        names = chosen(list(found), config.only)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    records = []
    settings = {**asdict(config), "out": str(config.out)}
    for name in names:
        seconds, kernels = profiled(name, found[name], config)
        print(f"{table(name, seconds, kernels, config.most)}\n", flush=True)
        listed = [asdict(kernel) for kernel in kernels]
        records.append({"name": name, "seconds": seconds, "kernels": listed})
        write_record(config.out, "costliest_kernels", {"config": settings, "programs": records})


if __name__ == "__main__":
    main()
