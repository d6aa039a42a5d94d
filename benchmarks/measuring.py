"""What the benchmarks share: a process of its own for each program, seconds, memory, records.

Imports no JAX up here: a process that measures another library would carry its memory.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
"""The cell that the paper of DARTS selects, which its recipes are measured with."""


def alone(function: Callable[..., T], *args: Any) -> T:
    """What a function returns that is called in a fresh process, which then ends.

    Args:
      function: a function at the top level of its module.
      *args: its arguments; they and what it returns are pickled.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


TURNS = "NASI_TURNS"
"""The variable of the environment that `turns.py` sets for what it runs."""


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """What is timed inside: `turns.py`, if that is what runs this process, lets it run alone."""
    if TURNS not in os.environ:
        yield
        return
    print("timing", file=sys.stderr, flush=True)
    yield
    print("timed", file=sys.stderr, flush=True)


def timed(function: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock seconds of each of the calls, after one that is not timed."""
    with turn():
        function()
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    return seconds


def peak_megabytes() -> float:
    """The largest resident memory that this process had so far, the interpreter's included."""
    # On Linux ru_maxrss of a fresh process is not below that of the process that started it
    # (500 MB there made 500 MB of 11 here); VmHWM starts anew.
    if (megabytes := _status("VmHWM")) is not None:
        return megabytes
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e6


def resident_megabytes() -> float:
    """The resident memory that this process has now; where that is not told, the peak so far."""
    megabytes = _status("VmRSS")
    return peak_megabytes() if megabytes is None else megabytes


def _status(name: str) -> float | None:
    """An entry of /proc/self/status in megabytes; None where there is none, as off Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024 / 1e6


def write_record(out: Path, name: str, record: dict[str, Any]) -> None:
    """Writes `name.json`: a record, with the peak memory of this process and its provenance.

    Args:
      out: the directory, made if need be.
      name: of the benchmark.
      record: its configuration and figures.
    """
    from nasi_jax.storage import files
    from nasi_jax.storage.directory import provenance

    whole = {**record, "peak_megabytes": peak_megabytes(), **provenance()}
    out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(out / f"{name}.json", json.dumps(whole, indent=2).encode())


RECORDS = Path(__file__).parent / "records.jsonl"
"""What the benchmarks were told to remember, which `history.py` shows."""


def remember(metrics: Mapping[str, tuple[float, str]], to: Path = RECORDS) -> None:
    """Appends figures of this script to the records, one a line, with what they depend on.

    Args:
      metrics: value and unit of each by its name; less is better.
      to: the file.
    """
    import jax

    from nasi_jax.devices.forecast import processor
    from nasi_jax.storage.directory import versions

    device = jax.devices()[0]
    found = versions()
    common = {
        "script": Path(sys.argv[0]).stem,
        "arguments": _settings(sys.argv[1:]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "card": None if device.platform == "cpu" else device.device_kind,
        "versions": {name: found[name] for name in ("python", "jax", "flax")},
    }
    with to.open("a") as file:
        for metric, (value, unit) in metrics.items():
            record = {**common, "metric": metric, "value": value, "unit": unit}
            file.write(json.dumps(record) + "\n")


def _settings(arguments: list[str]) -> str:
    """The arguments that figures depend on: not where the files go, nor that it is recorded."""
    rest, left = iter(arguments), list[str]()
    for argument in rest:
        if argument == "--out":
            next(rest, None)
        elif argument != "--record" and not argument.startswith("--out="):
            left.append(argument)
    return " ".join(left)


def _commit() -> str:
    """The commit that is checked out, with a plus sign if files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "*.py")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
