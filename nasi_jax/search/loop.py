"""The search loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from nasi_jax.search.nasi import SearchAlgorithm, SearchInfo, SearchState
from nasi_jax.types import Batch

Batches = Callable[[int], Batch]
"""Maps the index of a step, from 0, to its mini-batch."""


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
    start: Run | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_step: Callable[[Run], None] | None = None,
) -> Run:
    """Runs a search from its start or from a restored state.

    Everything random at a step follows from the key and the number of the step, so a run that
    starts from where another stopped ends as the unbroken one.

    Args:
      key: random key, used for nothing else.
      algorithm: the search. Its step is compiled once, and takes over the memory of its state.
      batches: the mini-batches.
      num_steps: T.
      start: the run to go on with; from the beginning if not given. Its state is used up.
      on_stage: called with "compiling" before anything is compiled and "compiled" after it, unless
        no step is left to do.
      on_step: called with the run so far after each step. Its state is used up by the next one:
        copy what is to be kept.

    Returns:
      The run after `num_steps` steps.

    Raises:
      FloatingPointError: if the trace or its gradient is not finite at some step.
    """
    begin = time.perf_counter()
    if start is not None and len(start.step_seconds) >= num_steps:
        return start
    if on_stage is not None:
        on_stage("compiling")
    if start is None:
        state = jax.jit(algorithm.init)(jax.random.fold_in(key, 0), batches(0))
        infos, seconds = [], []
    else:
        state, seconds = start.state, list(start.step_seconds)
        infos = [jax.tree.map(lambda leaf, t=t: leaf[t], start.info) for t in range(len(seconds))]
    jitted = jax.jit(algorithm.step, donate_argnums=1)
    step = jitted.lower(_step_key(key, len(infos)), state, batches(len(infos))).compile()
    compile_seconds = time.perf_counter() - begin
    if on_stage is not None:
        on_stage("compiled")
    for index in range(len(infos), num_steps):
        begin = time.perf_counter()
        state, info = step(_step_key(key, index), state, batches(index))
        info = jax.device_get(info)
        seconds.append(time.perf_counter() - begin)
        if not np.isfinite(info.trace) or not np.isfinite(info.gradient_norm):
            raise FloatingPointError(
                f"at step {index + 1} the trace is {info.trace} and the norm of its gradient "
                f"{info.gradient_norm}"
            )
        infos.append(info)
        if on_step is not None:
            on_step(Run(state, _stacked(infos), np.array(seconds), compile_seconds))
    return Run(state, _stacked(infos), np.array(seconds), compile_seconds)


def _step_key(key: jax.Array, index: int) -> jax.Array:
    return jax.random.fold_in(key, index + 1)


def _stacked(infos: list[SearchInfo]) -> SearchInfo:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *infos)
