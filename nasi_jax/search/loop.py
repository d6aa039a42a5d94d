"""The search loop."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nasi_jax.devices import hosts
from nasi_jax.devices.mesh import DATA, SAMPLE, everywhere, placed, several, sizes
from nasi_jax.search.nasi import SearchAlgorithm, SearchInfo, SearchState
from nasi_jax.types import Batch

Batches = Callable[[int], Batch]
"""Maps the index of a step, from 0, to its mini-batch."""

_SHARE_OF_MEMORY = 0.8
"""Of the device's free memory, which the samples of a call may take."""
_MOST_SAMPLES = 32
"""In a call, however much memory there is."""


class Run(NamedTuple):
    """The state and history of a search after t steps.

    Attributes:
      state: where it stands.
      info: what its steps saw, `[t, ...]` each, on the host.
      step_seconds: wall-clock seconds of each step, `[t]`.
      compile_seconds: of wall-clock time before the first step that was run here.
    """

    state: SearchState
    info: SearchInfo
    step_seconds: np.ndarray
    compile_seconds: float


def run(
    key: jax.Array,
    algorithm: SearchAlgorithm,
    batches: Batches,
    num_steps: int,
    *,
    samples_per_step: int = 1,
    mesh: Mesh | None = None,
    start: Run | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[Run], None] | None = None,
    enough: Callable[[Run], bool] | None = None,
) -> Run:
    """Runs a search from its start or from a restored state.

    Everything random at a step follows from the key and the number of the step, so a run that
    starts from where another stopped ends as the unbroken one.

    Args:
      key: random key, used for nothing else.
      algorithm: the search. Its step is compiled once, and takes over the memory of its state.
      batches: the mini-batches.
      num_steps: T.
      samples_per_step: K, how many steps to take in one call of a device; each keeps its own key
        and mini-batch, so the result is the same but for rounding. 0 for as many as fit into the
        device's memory, at most 32; 1 where the device does not tell of its memory.
      mesh: several devices for the search, as `nasi_jax.device_mesh` makes it: along `sample` each
        takes K steps of a call, along `data` they share the mini-batches. Changes the result by
        rounding only. The device in use if not given.
      start: the run to go on with; from the beginning if not given. Its state is used up.
      on_stage: called with "compiling" before anything is compiled and "compiled" after it, unless
        no step is left to do.
      on_step: called with the run so far after each call. Its state is used up by the next one:
        copy what is to be kept.
      enough: whether to end before `num_steps`, asked after each call and of `start`.

    Returns:
      The run after `num_steps` steps, or as many as were enough. alpha is the sum of equation (18)
      for T = `num_steps` then too.

    Raises:
      FloatingPointError: if the trace or its gradient is not finite at some step.
      ValueError: for a mesh that is not `device_mesh`'s, or whose axis `data` does not divide the
        batch.
    """
    begin = time.perf_counter()
    if start is not None and (
        len(start.step_seconds) >= num_steps or (enough is not None and enough(start))
    ):
        return start
    if on_stage is not None:
        on_stage("compiling")
    if start is None:
        state = algorithm.init(jax.random.fold_in(key, 0), batches(0))
        infos, seconds = [], []
    else:
        state, seconds = start.state, list(start.step_seconds)
        infos = [jax.tree.map(lambda leaf, t=t: leaf[t], start.info) for t in range(len(seconds))]
    steps_left = range(len(infos), num_steps)
    mesh = several(mesh)
    state = placed(state, mesh)
    call, together = _compiled(key, algorithm, state, batches, samples_per_step, steps_left, mesh)
    compile_seconds = time.perf_counter() - begin
    if on_stage is not None:
        on_stage("compiled")
    while len(infos) < num_steps:
        begin, first = time.perf_counter(), len(infos)
        count = min(together, num_steps - first)
        state, found = call(state, first, count)
        found = jax.device_get(found)
        seconds += count * [(time.perf_counter() - begin) / count]
        for index in range(count):
            info = jax.tree.map(lambda leaf, index=index: leaf[index], found)
            if not np.isfinite(info.trace) or not np.isfinite(info.gradient_norm):
                raise FloatingPointError(
                    f"at step {first + index + 1} the trace is {info.trace} and the norm of its "
                    f"gradient {info.gradient_norm}"
                )
            infos.append(info)
        if on_step is None and enough is None:
            continue
        done = Run(state, _stacked(infos), np.array(seconds), compile_seconds)
        if on_step is not None:
            on_step(done)
        if enough is not None and enough(done):
            return done
    return Run(state, _stacked(infos), np.array(seconds), compile_seconds)


_Call = Callable[[SearchState, int, int], tuple[SearchState, SearchInfo]]
"""`(state, first, count) -> (state, info [K, ...])`: so many steps from the first on."""


def _compiled(
    key: jax.Array,
    algorithm: SearchAlgorithm,
    state: SearchState,
    batches: Batches,
    samples_per_step: int,
    steps: range,
    mesh: Mesh | None,
) -> tuple[_Call, int]:
    """Compiles the steps that are left: the program, and how many steps a call takes."""
    devices = sizes(mesh)[SAMPLE]

    def arguments(first: int, count: int, together: int) -> tuple[jax.Array, Batch]:
        """Of the steps from the first on, the last one over and over behind them."""
        indices = [first + min(index, count - 1) for index in range(together)]
        keys = jax.vmap(functools.partial(_step_key, key))(jnp.array(indices))
        examples = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(batches, indices))
        return placed(keys, mesh, SAMPLE), placed(examples, mesh, SAMPLE, DATA)

    @functools.cache
    def program(together: int) -> jax.stages.Compiled:
        if mesh is None and together == 1:
            step = jax.jit(algorithm.step, donate_argnums=1)
            return step.lower(_step_key(key, steps.start), state, batches(steps.start)).compile()
        steps_of = functools.partial(algorithm.steps, mesh=mesh)
        out = None if mesh is None else everywhere(mesh)
        step = jax.jit(steps_of, donate_argnums=1, out_shardings=out)
        keys, examples = arguments(steps.start, 1, together)
        return step.lower(keys, state, examples, together).compile()

    fitting = samples_per_step or min(number_that_fits(program(devices)), _MOST_SAMPLES)
    together = devices * min(fitting, math.ceil(len(steps) / devices))
    compiled, of_device = program(together), together // devices
    if of_device > 1:
        require_memory(compiled, "samples_per_step", of_device)
    else:
        require_memory(compiled, "batch_size", len(batches(steps.start).labels))

    def call_one(state: SearchState, first: int, count: int) -> tuple[SearchState, SearchInfo]:
        del count
        state, info = compiled(_step_key(key, first), state, batches(first))
        return state, jax.tree.map(lambda leaf: leaf[None], info)

    def call_several(state: SearchState, first: int, count: int) -> tuple[SearchState, SearchInfo]:
        keys, examples = arguments(first, count, together)
        return compiled(keys, state, examples, count)

    return (call_one if mesh is None and together == 1 else call_several), together


class TooLarge(ValueError):
    """A program that the device has not the memory for, as its analysis says before it runs."""


def require_memory(program: jax.stages.Compiled, setting: str, value: int) -> None:
    """Refuses a program whose temporaries are more than what is left of the device's memory.

    Args:
      program: the program.
      setting: what to lower.
      value: of it now.

    Raises:
      TooLarge: if it cannot run.
    """
    left, needed = memory_left(), program.memory_analysis()
    if left is None or needed is None or needed.temp_size_in_bytes <= left:
        return
    fits = value * left // needed.temp_size_in_bytes
    raise TooLarge(
        f"a call takes {needed.temp_size_in_bytes / 1e9:.3g} GB of the device's memory, which has "
        f"{left / 1e9:.3g} GB left"
        + (f", enough for a {setting} of about {fits} in place of {value}" if fits else "")
    )


def free_memory() -> int | None:
    """Bytes of the device's memory that a call may take; None where it does not tell, as a CPU."""
    left = memory_left()
    return None if left is None else int(_SHARE_OF_MEMORY * left)


def memory_left() -> int | None:
    """Bytes of the device's memory that nothing has yet; None where it does not tell, as a CPU."""
    memory = jax.local_devices()[0].memory_stats()
    if memory is None or "bytes_limit" not in memory:
        return None
    return int(memory["bytes_limit"] - memory["bytes_in_use"])


def number_that_fits(program: jax.stages.Compiled, samples: int = 1) -> int:
    """How many samples a call can take in the device's memory; 1 if that is not known.

    Of several processes, which run one program, in the memory of the device that has the least.

    Args:
      program: a program of so many samples on each device, to infer from what one takes.
      samples: how many.
    """
    free, needed = free_memory(), program.memory_analysis()
    if free is None or needed is None:
        return 1
    return hosts.least(max(1, samples * free // max(1, needed.temp_size_in_bytes)))


def _step_key(key: jax.Array, index: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(key, index + 1)


def _stacked(infos: list[SearchInfo]) -> SearchInfo:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *infos)
