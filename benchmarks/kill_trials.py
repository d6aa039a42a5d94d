"""Runs that are killed at random moments and resumed, against the unbroken ones.

Command:   python benchmarks/kill_trials.py --trials 100 --out runs/kill_trials
Time:      20 to 40 s a trial on two busy CPU cores
Expected:  benchmarks/README.md, "Killed and resumed"

A trial starts `nasi search`, `score`, `select` or `train` at a size of seconds, kills it with
SIGKILL at a moment drawn uniformly over the time of the unbroken run (one trial in three: the
resumed run too), resumes it to its end, and compares what it leaves. One trial in four goes on with
another number of devices, of 1 or 2 that the CPU is parted into. On the same devices all numbers
must be those of the unbroken run, bit for bit; on others within 1e-5 of it in norm, with the same
genotype. Every step is kept, so that there is something to resume at any moment. Keeps a row a
trial in trials.csv, and goes on after the rows that are there: of other settings, name another
directory. Ends with status 1 if a trial failed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from nasi_jax import runs
from nasi_jax.storage import files

SIZES = "--init-channels 2 --num-cells 1 --image-size 8 --seed 2"
SUPERNET = f"{SIZES} --space nasbench201 --ops skip_connect avg_pool_3x3 none --norm none"
SCORES = f"{SUPERNET} --batch-size 4 --proxies grad_norm flops"
CELL = "|avg_pool_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"
COMMANDS = {
    "search": f"{SUPERNET} --batch-size 4 --steps 20 --penalty 2",
    "score": f"{SCORES} --num-archs 30 --seeds 2",
    "select": f"{SCORES} --budget 30 --archs-per-call 2 --population 4 --tournament 2",
    "train": f"'{CELL}' {SIZES} --crop none --epochs 3 --batch-size 240",
}
"""The flags of each command; a selection looks at two networks at a time, for two devices."""

PROGRAM = """
from nasi_jax import cli, runs
runs.search._SECONDS_BETWEEN_CHECKPOINTS = runs.train._SECONDS_BETWEEN_CHECKPOINTS = 0
runs.score._SECONDS_BETWEEN_WRITES = runs.select._SECONDS_BETWEEN_WRITES = 0
cli._SECONDS_BETWEEN_LINES = 0
cli.main()
"""
"""`nasi`, which keeps and tells of every step."""

TOLERANCE = 1e-5
"""The largest relative difference in norm that other devices may make, in float32."""

PHASES = ("importing", "compiling", "in steps", "writing", "ended")
"""What a process was doing when it was killed; one that had ended was not."""

UNLIKE = ("seconds", "images_per_second", "num_compilations", "mesh")
"""What differs from run to run."""

FILES = {
    "search": ("result.json", "history.csv"),
    "score": ("scores.json", "scores.csv"),
    "select": ("result.json", "scores.csv"),
    "train": ("summary.json", "metrics.csv"),
}
"""What each command leaves that is compared, in its folder; of a training the checkpoint too."""

NUMBERS = {
    "search": ("x", "nu", "objective", "gradient_norm"),
    "score": ("grad_norm", "num_params", "flops"),
    "select": ("grad_norm", "num_params", "flops"),
    "train": ("train_loss", "test_loss"),
}
"""The columns that are compared where they may differ by rounding."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the trials."""

    trials: int = 100
    """How many."""
    seed: int = 0
    """Of what is drawn: the moments, the devices, and which are killed twice."""
    out: Path = Path("runs/kill_trials")
    """Where trials.csv, the unbroken runs and the failed ones are."""


def run(
    arguments: Sequence[str], devices: int, cache: Path, kill_after: float | None = None
) -> str:
    """Runs the command, or kills it after so many seconds; returns the phase it came to.

    Raises:
      RuntimeError: if it fails by itself, with what it says.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": flags,
        "XDG_CACHE_HOME": str(cache.absolute()),
    }
    command = [sys.executable, "-c", PROGRAM, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            _, told = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            _, told = process.communicate()
            return phase_of(told)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {told.strip()[-300:]}")
    return "ended"


def phase_of(told: str) -> str:
    """What a process was doing that has told of its progress so far."""
    lines = told.splitlines()
    if not lines:
        return "importing"
    if not any(line.startswith("compiled") for line in lines):
        return "compiling"
    done, _, total = next((word for word in lines[-1].split() if "/" in word), "0/1").partition("/")
    return "writing" if done == total else "in steps"


@dataclass(frozen=True)
class Left:
    """What a run left, without what differs from run to run.

    Attributes:
      record: its JSON record.
      columns: of its table, as text.
      arrays: alpha of a search, parameters and statistics of a training.
    """

    record: dict[str, Any]
    columns: dict[str, list[str]]
    arrays: list[np.ndarray]


def left(verb: str, folder: Path) -> Left:
    """Reads what a run left in its folder."""
    record, table = (folder / name for name in FILES[verb])
    fields = json.loads(record.read_text())
    rows = list(csv.DictReader(table.read_text().splitlines()))
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in UNLIKE}
    found = runs.train.trained(folder).variables if verb == "train" else fields.get("alpha", {})
    return Left(
        {name: value for name, value in fields.items() if name not in UNLIKE},
        columns,
        [np.asarray(leaf) for leaf in jax.tree.leaves(found)],
    )


def difference(verb: str, found: Left, unbroken: Left, *, exact: bool) -> float:
    """The largest relative difference in norm between the numbers of two runs.

    Args:
      verb: the command.
      found: what was left by the one that was killed.
      unbroken: by the other.
      exact: whether all must be the same, bit for bit.

    Raises:
      ValueError: if more differs than may.
    """
    # Of a training the genotype is given.
    for name in unbroken.record if exact else {"text", "genotype"} & unbroken.record.keys():
        if found.record.get(name) != unbroken.record[name]:
            raise ValueError(f"{name} is {found.record.get(name)}, not {unbroken.record[name]}")
    if exact and found.columns != unbroken.columns:
        raise ValueError(f"{FILES[verb][1]} is another")
    pairs = list(zip(found.arrays, unbroken.arrays, strict=True))
    for name in NUMBERS[verb]:
        mine, theirs = (np.array(each.columns[name], float) for each in (found, unbroken))
        pairs.append((mine, theirs))
    largest = max(relative(mine, theirs) for mine, theirs in pairs)
    if largest > (0 if exact else TOLERANCE):
        raise ValueError(f"a relative difference of {largest:.2g}")
    return largest


def relative(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The norm of the difference over the norm; 0 where both are."""
    size = float(np.linalg.norm(mine - theirs))
    return size and size / float(np.linalg.norm(theirs))


def arguments_of(verb: str, folder: Path) -> list[str]:
    """The command line of a run whose output goes to the folder."""
    out = folder / "scores.csv" if verb == "score" else folder
    return [verb, *shlex.split(COMMANDS[verb]), "--out", str(out)]


def resumed(verb: str, folder: Path) -> list[str]:
    """The command line that goes on with a run; the first one where there is no run yet."""
    *_, out = first = arguments_of(verb, folder)
    try:
        runs.resume.verb_of(Path(out))
    except ValueError:
        return first
    return ["resume", out]


def trial(
    verb: str, number: int, config: Config, unbroken: Mapping[int, tuple[Left, float]]
) -> dict[str, Any]:
    """Kills a run, resumes it, compares it: a row of trials.csv."""
    draw = random.Random(f"{config.seed} {number}")
    before = draw.choice((1, 2))
    after = 3 - before if number // len(COMMANDS) % 4 == 3 else before
    folder = config.out / f"trial-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    kills = []
    begun = time.monotonic()
    row = {"trial": number, "seed": config.seed, "command": verb, "before": before, "after": after}
    try:
        for devices in (before, after)[: draw.choice((1, 1, 2))]:
            moment = draw.uniform(0, unbroken[devices][1])
            phase = run(resumed(verb, folder), devices, config.out, moment)
            kills.append(phase)
        run(resumed(verb, folder), after, config.out)
        found = difference(verb, left(verb, folder), unbroken[after][0], exact=before == after)
        outcome = "equal" if before == after else f"within {found:.1g}"
        shutil.rmtree(folder)
    except (ValueError, RuntimeError, OSError) as error:
        outcome = f"failed: {' '.join(str(error).split())}"
    return {
        **row,
        "kills": " / ".join(kills),
        "outcome": outcome,
        "seconds": round(time.monotonic() - begun, 1),
    }


def without_break(config: Config, verb: str, devices: int) -> tuple[Left, float]:
    """What the unbroken run leaves, and its seconds where programs are in the cache."""
    folder = config.out / f"unbroken-{verb}-{devices}"
    seconds = folder.with_suffix(".seconds")
    if not seconds.exists():
        for _ in range(2):  # the first fills the cache
            shutil.rmtree(folder, ignore_errors=True)
            begun = time.monotonic()
            run(arguments_of(verb, folder), devices, config.out)
        files.write_bytes(seconds, str(time.monotonic() - begun).encode())
    return left(verb, folder), float(seconds.read_text())


def main() -> None:
    """Runs the trials that are left, and counts them all."""
    config = tyro.cli(Config, description=__doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    table = config.out / "trials.csv"
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    rows = [row for row in rows if row["seed"] == str(config.seed)]
    done = {int(row["trial"]) for row in rows}
    unbroken: dict[str, dict[int, tuple[Left, float]]] = {}
    for number in range(config.trials):
        if number in done:
            continue
        verb = list(COMMANDS)[number % len(COMMANDS)]
        if verb not in unbroken:
            unbroken[verb] = {devices: without_break(config, verb, devices) for devices in (1, 2)}
        rows.append(trial(verb, number, config, unbroken[verb]))
        files.write_bytes(table, files.csv_text(rows[0], map(dict.values, rows)).encode())
        print("  ".join(map(str, rows[-1].values())), flush=True)
    failed = sum(row["outcome"].startswith("failed") for row in rows)
    moments = Counter(phase for row in rows for phase in row["kills"].split(" / ") if phase)
    listed = ", ".join(f"{moments[phase]} {phase}" for phase in PHASES)
    print(f"{len(rows)} trials, {failed} failed; killed: {listed}")
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
