"""Fits the forecasts of `nasi plan` for this CPU, and checks them against runs not fitted to.

Command:   python benchmarks/plan.py --fit     (writes nasi_jax/devices/forecast.json)
           python benchmarks/plan.py
Time:      half an hour each on two CPU cores
Expected:  memory within 20 % and seconds of a call within 50 % of what was measured, in five
           configurations that nothing was fitted to; exit status 1 otherwise

Each configuration is a command that runs in processes of its own: the first finds an empty cache of
programs, and the peak of its resident memory less that after the imports is what is forecast. The
seconds are the least over `--repeats` processes: of a search those of its fastest call, of scores
the mean of the cells, of a training the mean of an epoch. What is measured and what `nasi plan`
says, in another process, is kept in a file for each, and read from there if it is.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import DARTS_V2, alone, peak_megabytes, remember, resident_megabytes, turn

NASBENCH201 = (
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|"
    "+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
)

FITTED = {
    "search 201, tiny": (
        "search --ops skip_connect avg_pool_3x3 --norm none --init-channels 2 --num-cells 1 "
        "--image-size 8 --batch-size 4 --steps 20"
    ),
    "search 201": "search --num-cells 1 --batch-size 16 --steps 4",
    "search 201, wide": (
        "search --num-cells 1 --batch-size 32 --init-channels 32 --steps 3 "
        "--ops skip_connect nor_conv_3x3"
    ),
    "search darts": (
        "search --space darts --num-cells 3 --init-channels 8 --batch-size 8 --steps 3 "
        "--ops skip_connect max_pool_3x3 sep_conv_3x3"
    ),
    "search 1shot1": "search --space nasbench1shot1-1 --num-cells 1 --batch-size 16 --steps 3",
    "score 201": "score --num-cells 1 --batch-size 16 --num-archs 4",
    "score 201, wide": (
        "score --num-cells 2 --init-channels 32 --batch-size 32 --num-archs 3 --proxies grad_norm"
    ),
    "train 201": f"train '{NASBENCH201}' --batch-size 64 --epochs 1",
    "train 201, wide": f"train '{NASBENCH201}' --init-channels 32 --batch-size 50 --epochs 1",
    "train darts": f'train "{DARTS_V2}" --batch-size 32 --epochs 1',
}
"""What the coefficients are fitted to."""

HELD_OUT = {
    "search 201, large batch": (
        "search --num-cells 2 --batch-size 64 --steps 3 --ops nor_conv_1x1 nor_conv_3x3"
    ),
    "search darts, more cells": (
        "search --space darts --num-cells 4 --batch-size 16 --steps 3 "
        "--ops skip_connect avg_pool_3x3 dil_conv_3x3"
    ),
    "search 1shot1, no norm": (
        "search --space nasbench1shot1-3 --num-cells 1 --batch-size 32 --norm none --steps 3"
    ),
    "score 201, large batch": "score --num-cells 2 --batch-size 64 --num-archs 3",
    "train 201, more cells": f"train '{NASBENCH201}' --num-cells 3 --batch-size 100 --epochs 1",
}
"""What they are checked against."""


MEMORY_WITHIN, SECONDS_WITHIN = 0.2, 0.5
"""How far off forecasts may be, relative to what was measured."""


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    fit: bool = False
    """Fit the coefficients, instead of checking them."""
    repeats: int = 3
    """How many processes to run each configuration in."""
    out: Path = Path("runs/plan")
    """Folder for what was measured."""
    record: bool = False
    """Append the figures to `benchmarks/records.jsonl`."""


def measured(command: str, cache: str) -> dict[str, float]:
    """Runs a command in this process, which does nothing else.

    Args:
      command: what follows `nasi`.
      cache: a folder for compiled programs; if it is empty, the process compiles them all.

    Returns:
      Bytes of resident memory after the imports, of its peak beyond these, and the least seconds of
      a call of the command's program.
    """
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    from nasi_jax import cli

    imported = resident_megabytes()
    verb, *arguments = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / ("scores.csv" if verb == "score" else "run")
        with turn():
            cli.main([verb, *arguments, "--out", str(out)])
        seconds = _seconds_of(verb, out)
    peak = peak_megabytes() - imported
    return {"imported": 1e6 * imported, "peak": 1e6 * peak, "seconds": seconds}


def _seconds_of(verb: str, out: Path) -> float:
    """The seconds of a call, by the files of the run: the least of a search, the mean of cells.

    Those of a training are the mean of its epoch with the least.
    """
    files = {"search": out / "history.csv", "train": out / "metrics.csv", "score": out}
    rows: list[dict[str, str]] = list(csv.DictReader(files[verb].read_text().splitlines()))
    if verb == "train":
        size = json.loads((out / "config.json").read_text())["batch_size"]
        return min(size / float(row["images_per_second"]) for row in rows)
    seconds = [float(row["seconds"]) for row in rows]
    # Cells have other operations: a forecast is of one with the mean of their work.
    return min(seconds) if verb == "search" else float(np.mean(list(filter(None, seconds))))


def planned(command: str) -> dict[str, Any]:
    """What `nasi plan` says of a command, in this process."""
    from nasi_jax import cli

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        cli.main(["plan", *shlex.split(command), "--no-cache", "--out", str(out)])
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def record_of(config: Config, name: str, command: str) -> dict[str, Any]:
    """What was measured of a command, and its program; read from its file if that is there."""
    path = config.out / f"{name.replace(',', '').replace(' ', '-')}.json"
    if not path.exists():
        with tempfile.TemporaryDirectory() as cache:
            runs = [alone(measured, command, cache) for _ in range(config.repeats)]
        program = alone(planned, command)["rows"][0]["program"]
        seconds = [run["seconds"] for run in runs]
        record = {**runs[0], "seconds": seconds, "command": command, "program": program}
        config.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def fitted(
    names: tuple[str, ...], footprints: list[Any], measured: list[float]
) -> dict[str, float]:
    """Nonnegative coefficients of the features by name, by least squares of relative errors."""
    from scipy.optimize import nnls

    from nasi_jax.devices.forecast import features

    matrix = np.stack([features(names, each) for each in footprints])
    relative = matrix / np.array(measured)[:, None]
    scale = relative.max(axis=0)  # from 1e-11 for a multiply-add to 1
    found, _ = nnls(relative / scale, np.ones(len(measured)))
    return dict(zip(names, (found / scale).tolist(), strict=True))


def footprint(record: dict[str, Any]) -> Any:
    """The footprint of a record's program."""
    from nasi_jax.devices.footprint import Footprint
    from nasi_jax.devices.launches import Work

    fields = {name: value for name, value in record["program"].items() if name != "total"}
    return Footprint(**{**fields, "work": Work(**fields["work"])})


def fit(config: Config) -> None:
    """Measures what the coefficients are fitted to, and writes the package's file."""
    from nasi_jax.devices import forecast
    from nasi_jax.storage.directory import versions

    records = {name: record_of(config, name, command) for name, command in FITTED.items()}
    footprints = [footprint(record) for record in records.values()]
    peaks = [record["peak"] for record in records.values()]
    seconds = [min(record["seconds"]) for record in records.values()]
    common = {
        "command": f"python benchmarks/plan.py --fit --repeats {config.repeats}",
        "date": str(datetime.date.today()),
        "processor": forecast.processor(),
        "versions": versions(),
    }
    content: dict[str, Any] = {
        "memory": {
            "imported": float(np.mean([record["imported"] for record in records.values()])),
            "coefficients": fitted(forecast.MEMORY, footprints, peaks),
            **common,
        },
        "seconds": {
            "cpu": {"coefficients": fitted(forecast.SECONDS, footprints, seconds), **common}
        },
        "configurations": FITTED,
    }

    def write() -> None:
        Path(str(forecast.FILE)).write_text(json.dumps(content, indent=2) + "\n")

    write()
    memory = [forecast.peak_bytes(each, "cpu") for each in footprints]
    time: list[Any] = [forecast.seconds_of(each, "cpu") for each in footprints]  # fitted above
    for found, measured, predicted in (
        (content["memory"], peaks, memory),
        (content["seconds"]["cpu"], seconds, time),
    ):
        errors = [each / value - 1 for each, value in zip(predicted, measured, strict=True)]
        found["error"] = max(map(abs, errors))
        found["errors"] = dict(zip(records, errors, strict=True))
        print(json.dumps({**found, **dict.fromkeys(common, "")}, indent=2))
    write()


def check(config: Config) -> bool:
    """Prints forecasts beside what was measured; says whether all are near enough."""
    from nasi_jax.devices import forecast

    print(
        "| configuration | memory measured | forecast | off | seconds measured | forecast | off |"
    )
    print("| --- | --: | --: | --: | --: | --: | --: |")
    near, metrics = True, dict[str, tuple[float, str]]()
    for name, command in HELD_OUT.items():
        record = record_of(config, name, command)
        program, seconds = footprint(record), min(record["seconds"])
        peak, call = forecast.peak_bytes(program, "cpu"), forecast.seconds_of(program, "cpu")
        assert call is not None
        off, late = peak / record["peak"] - 1, call / seconds - 1
        metrics |= {name: (seconds, "s"), f"{name}: memory": (record["peak"] / 1e6, "MB")}
        near = near and abs(off) <= MEMORY_WITHIN and abs(late) <= SECONDS_WITHIN
        print(
            f"| {name} | {record['peak'] / 1e6:.0f} MB | {peak / 1e6:.0f} MB | {100 * off:+.0f} % "
            f"| {seconds:.3g} | {call:.3g} | {100 * late:+.0f} % |"
        )
    if config.record:
        remember(metrics)
    return near


def main() -> None:
    """Runs the benchmark."""
    config = tyro.cli(Config, description=__doc__)
    if config.fit:
        fit(config)
    elif not check(config):
        sys.exit(1)


if __name__ == "__main__":
    main()
