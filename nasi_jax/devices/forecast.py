"""Forecasts of a process's peak memory and of a program's seconds, from its footprint.

The coefficients are in `forecast.json`, which `python benchmarks/plan.py --fit` writes: of CPUs'
memory, which besides the program holds the runtime and what XLA needed to compile, and of the
seconds of the kinds of devices that were measured.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nasi_jax.devices.footprint import Footprint

FILE = importlib.resources.files("nasi_jax") / "devices" / "forecast.json"

MEMORY = ("constant", "instructions", "total")
"""What the peak of a CPU's process beyond its imports is a sum of: a constant, bytes for each
instruction of the program, which XLA compiles, and a multiple of what the program takes."""

SECONDS = ("multiply_adds", "numbers", "launches", "total")
"""What the seconds of a call are a sum of: its `nasi_jax.devices.launches.Work`, and the memory
that the program takes, which a CPU's process is given anew for every call."""


def features(names: tuple[str, ...], footprint: Footprint) -> np.ndarray:
    """The quantities by name, `[len(names)]`."""
    known = {"constant": 1, "total": footprint.total, **footprint.work._asdict()}
    return np.array([known[name] for name in names], float)


def _sum(names: tuple[str, ...], coefficients: Mapping[str, float], footprint: Footprint) -> float:
    return float(features(names, footprint) @ [coefficients[name] for name in names])


def peak_bytes(footprint: Footprint, platform: str) -> int:
    """The largest memory that a run takes: of a device's, or of a CPU's process beyond its imports.

    Args:
      footprint: of its largest program.
      platform: what the program is compiled for, such as cpu.
    """
    if platform != "cpu":
        return footprint.total
    return round(_sum(MEMORY, _fitted()["memory"]["coefficients"], footprint))


def imported_bytes() -> int:
    """Resident memory of a process after the imports, as it was where the model was fitted."""
    return int(_fitted()["memory"]["imported"])


def seconds_of(footprint: Footprint, kind: str) -> float | None:
    """Seconds of a call; None for a kind of device that was never measured.

    Args:
      footprint: of the program.
      kind: of the device, as JAX has it.
    """
    found = _fitted()["seconds"].get(kind)
    if found is None:
        return None
    return _sum(SECONDS, found["coefficients"], footprint)


def basis(kind: str) -> str:
    """What forecasts of seconds for a kind of device stand on, in words."""
    found = _fitted()["seconds"].get(kind)
    if found is None:
        return f"no time: no {kind} was ever measured"
    here = found["processor"]
    where = f"this {kind}" if here == processor() else f"another {kind}, {here}"
    return (
        f"time by {len(found['errors'])} runs on {where}, {found['date']}, from which the "
        f"model is {100 * found['error']:.0f} % off at most"
    )


@functools.cache
def _fitted() -> Mapping[str, Any]:
    return json.loads(FILE.read_text())


@functools.cache
def processor() -> str:
    """This machine's CPU: its model, and how many cores of it this process may use."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        names = re.findall(r"^model name\s*: (.*)$", described.read_text(), re.MULTILINE)
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
