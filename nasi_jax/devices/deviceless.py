"""Programs compiled for a GPU or a TPU that this machine does not have."""

from __future__ import annotations

import functools
import importlib.resources
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from nasi_jax.devices import launches
from nasi_jax.devices.launches import Launches


@dataclass(frozen=True)
class Target:
    """A device to compile for.

    Attributes:
      backend: what `jax.default_backend()` is where the device is.
      extra: of this package, which installs the compiler.
      topology: what `jax.experimental.topologies.get_topology_desc` takes.
    """

    backend: str
    extra: str
    topology: Callable[[], dict[str, Any]]


def _described(name: str) -> dict[str, Any]:
    """A GPU by its description, a file of the package."""
    path = importlib.resources.files("nasi_jax") / "devices" / f"{name}.txtpb"
    return {"platform": "cuda", "topology": "1x1x1", "target_config": path.read_text()}


TARGETS: dict[str, Target] = {
    "h100": Target("gpu", "aot", lambda: _described("h100")),
    "v5e": Target("tpu", "aot-tpu", lambda: {"platform": "tpu", "topology_name": "v5e:2x2"}),
}
"""The devices by name. A program is compiled for one chip of the smallest v5e that there is."""


@dataclass(frozen=True)
class Compiled:
    """Costs of a compiled program: seconds to compile, memory, code, kernel launches.

    Attributes:
      name: of the program.
      lower_seconds: to trace it and lower it to XLA's input.
      compile_seconds: of XLA.
      temporary_megabytes: of memory of the device for temporaries.
      code_megabytes: of the program. On a TPU by XLA's word, of memory of the device; on a GPU, of
        which it says nothing, the executable as it is stored, compressed.
      launches: of kernels in a call; None on a TPU, where a program is one.
      samples: how many samples, cells or images a call serves.
      details: of the launches.
    """

    name: str
    lower_seconds: float
    compile_seconds: float
    temporary_megabytes: float
    code_megabytes: float
    launches: int | None
    samples: int
    details: Launches | None


def target_of(name: str) -> Target:
    """Looks up one of `TARGETS` by name.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


@functools.cache
def device_of(target: str) -> jax.Device:
    """The abstract device of a target: programs can be compiled for it, not run.

    Args:
      target: one of `TARGETS`.

    Raises:
      ValueError: for an unknown target, or where its compiler is not installed.
    """
    found = target_of(target)
    # Without the first libtpu asks a server that only Google's machines have, for minutes; without
    # the second only one process of a machine can have it, as if all were after one TPU.
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(variable, "1")
    try:
        topology = topologies.get_topology_desc(**found.topology())
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"no compiler for target {target}: pip install 'nasi-jax[{found.extra}]', and set "
            f"JAX_PLATFORMS=cpu where there is no such device ({reason})"
        ) from error
    return cast(jax.Device, topology.devices[0])


def chosen_as_for(target: str) -> AbstractContextManager[Any]:
    """A context in which code that chooses by `jax.default_backend()` chooses as on a target.

    Raises:
      ValueError: for an unknown target.
    """
    backend = target_of(target).backend
    return mock.patch.object(jax, "default_backend", lambda: backend)


def lowered_for(target: str, function: Callable[..., Any], *arguments: Any) -> jax.stages.Lowered:
    """Lowers a function for a device that is not there, which `compile` then compiles it for.

    Args:
      target: one of `TARGETS`.
      function: the function, or what `jax.jit` makes of it, which says what is donated.
      *arguments: what it would be called with, or `jax.ShapeDtypeStruct` in place of arrays.

    Raises:
      ValueError: for an unknown target, or where its compiler is not installed.
    """
    sharding = SingleDeviceSharding(device_of(target))

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
        )

    shapes = jax.tree.map(placed, jax.eval_shape(lambda *leaves: leaves, *arguments))
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    with chosen_as_for(target):
        return jitted.lower(*shapes)


def compile_for(
    target: str, function: Callable[..., Any], *arguments: Any, name: str, samples: int = 1
) -> Compiled:
    """Compiles a function for a device that is not there; nothing is computed.

    Args:
      target: one of `TARGETS`.
      function: the function, or what `jax.jit` makes of it, which says what is donated.
      *arguments: what it would be called with, or `jax.ShapeDtypeStruct` in place of arrays.
      name: a name for the record.
      samples: how many samples, cells or images a call serves.

    Raises:
      ValueError: for an unknown target, or where its compiler is not installed.
    """
    backend = target_of(target).backend
    begin = time.perf_counter()
    lowered = lowered_for(target, function, *arguments)
    lower_seconds = time.perf_counter() - begin
    compiled: Any = lowered.compile()
    compile_seconds = time.perf_counter() - begin - lower_seconds
    memory = compiled.memory_analysis()
    if backend == "gpu":
        code = len(compiled.runtime_executable().serialize())
        details = launches.count(compiled.as_text())
    else:
        code, details = memory.generated_code_size_in_bytes, None
    return Compiled(
        name=name,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        temporary_megabytes=memory.temp_size_in_bytes / 1e6,
        code_megabytes=code / 1e6,
        launches=details.total if details else None,
        samples=samples,
        details=details,
    )
