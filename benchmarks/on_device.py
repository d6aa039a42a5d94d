"""What nasi-jax does on one GPU: searches, scores, training, PyTorch's peers, and what must hold.

Command:   bash benchmarks/on_device.sh (or with names of parts)
Time:      at most 8 minutes on one GPU with 16 CPU cores; `--smoke` minutes on two cores
Expected:  every check passed, no part without figures

Runs the commands that users run, each part with a time limit of its own; one that fails or takes
too long says so in the table, and the others go on. Several programs compile at a time (`--jobs`),
and what is timed runs alone, see `turns.py`: seconds to compile are those of a machine that
compiles other programs too, less those in which the program was stopped, and without XLA's choice
of kernels by timing (set XLA_FLAGS to nothing for that). Steps are medians of 20.
What a whole search takes is computed: the seconds to compile, and the median step times the number
of steps. Writes table.md, on_device.json and log.txt, and prints the table.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import turns
import tyro
from device_checks import NASI
from estimators import GENOTYPE
from measuring import DARTS_V2, write_record

from nasi_jax.config import RankConfig, SelectConfig
from nasi_jax.storage import files

# Nothing here computes with JAX before all programs have ended: it would take device memory.

HERE = Path(__file__).parent
SEARCHES: dict[str, tuple[tuple[str, ...], int]] = {
    "darts": (("--variant", "nasi-fix", "--batch-size", "64"), 100),
    "nasbench201": ((), 100),
    **{f"nasbench1shot1-{number}": (("--variant", "nasi-ada"), 390) for number in (1, 2, 3)},
}
"""Of each space the paper's settings beside the defaults, and the paper's steps T."""

SMOKE_SEARCHES = {
    "darts": ("--num-cells", "3", "--ops", "max_pool_3x3", "skip_connect"),
    "nasbench201": ("--ops", "skip_connect", "avg_pool_3x3"),
    "nasbench1shot1-1": ("--num-cells", "1", "--ops", "conv1x1-bn-relu", "maxpool3x3"),
}
SMALLEST = ("--image-size", "8", "--init-channels", "2")
STEPS = 20

NO_TUNING = "--xla_gpu_autotune_level=0"
"""Of XLA, which otherwise times several kernels for each product: minutes for a step of DARTS."""

LEFT_OUT = ("profile", "tests", "train-darts")
"""Parts that run only if they are named: they take long, or show nothing that others do not."""


@dataclass(frozen=True)
class Config:
    """Settings of the run."""

    parts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of parts, all but profile, tests and train-darts if none is given."""
    data: str = "digits"
    """A data set with images to train on and to test on, as for `nasi train`."""
    seconds: float = 460.0
    """For everything; what has not ended then is ended."""
    jobs: int | None = None
    """Programs at a time; a third of the CPU cores, but at most 5, if not given."""
    out: Path = Path("runs/on_device")
    """Where table.md, on_device.json and log.txt go."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where PyTorch computes."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


class Row(NamedTuple):
    """A line of the table: seconds of each call are those of `each`, such as a step."""

    part: str
    what: str
    compile_seconds: float | None = None
    seconds: tuple[float, ...] = ()
    each: str = ""
    whole: float | None = None
    megabytes: float | None = None
    says: str = ""


Read = Callable[[turns.Outcome], list[Row]]
"""What a program found, from how it ended; its files are there still."""


class Task(NamedTuple):
    """A program of a part, and how its figures are read once it has ended."""

    part: str
    program: turns.Program
    read: Read
    failing: tuple[int, ...] = ()
    """Exit statuses, beside 0, with which it has figures all the same."""


def search(config: Config, space: str, work: Path) -> Task:
    """20 steps at the paper's settings."""
    settings, whole_steps = SEARCHES[space]
    steps = 3 if config.smoke else STEPS
    command = [*NASI, "search", "--space", space, *settings, "--data", config.data]
    command += ["--steps", str(steps), "--no-cache", "--out", str(work)]
    if config.smoke:
        command += [*SMOKE_SEARCHES.get(space, SMOKE_SEARCHES["nasbench1shot1-1"]), *SMALLEST]
        command += ["--batch-size", "4"]
    name = f"search-{space}"

    def read(outcome: turns.Outcome) -> list[Row]:
        result = json.loads((work / "result.json").read_text())
        with (work / "history.csv").open() as file:
            seconds = tuple(float(row["seconds"]) for row in csv.DictReader(file))
        compiled = result["seconds"]["compile"] - outcome.stopped_compiling
        whole = compiled + whole_steps * float(np.median(seconds))
        what = f"{space}, {result['config']['batch_size']} images"
        says = f"{whole_steps} steps in all; selects {result['text']}"
        return [Row(name, what, compiled, seconds, "step", whole, _peak(result), says)]

    limits = {"darts": 240.0, "nasbench201": 90.0}
    return Task(name, turns.Program(name, command, limits.get(space, 150.0)), read)


def score(config: Config, space: str, num_cells: int, work: Path) -> Task:
    """The proxies of `nasi rank`, of `nasi select`, and per-example gradients on random cells."""
    out = work / "scores.csv"
    command = [*NASI, "score", "--space", space, "--num-archs", str(num_cells), "--no-cache"]
    command += ["--norm", "frozen", "--data", config.data, "--out", str(out)]
    if config.smoke:
        command += [*SMOKE_SEARCHES[space], *SMALLEST, "--batch-size", "4"]
        command += ["--proxies", "batch_gradient", "num_params"]
    else:
        ranked = RankConfig(table=("",), column="").proxies
        usual = (*ranked, *SelectConfig().proxies, "per_example_gradient")
        command += ["--proxies", *dict.fromkeys(usual)]

    def read(outcome: turns.Outcome) -> list[Row]:
        record = json.loads(out.with_suffix(".json").read_text())
        with out.open() as file:
            rows = list(csv.DictReader(file))
        proxies = rows[0].keys() - {"seed", "genotype", "seconds"}
        undefined = [
            name
            for name in sorted(proxies)
            if not all(np.isfinite(float(row[name])) for row in rows)
        ]
        config = record["config"]
        return [
            Row(
                "score",
                f"{space}, {len(proxies)} proxies, {config['batch_size']} images, norm frozen",
                record["seconds"]["compile"] - outcome.stopped_compiling,
                tuple(float(row["seconds"]) for row in rows),
                "cell",
                megabytes=_peak(record),
                says=f"not finite somewhere: {', '.join(undefined)}" if undefined else "",
            )
        ]

    return Task("score", turns.Program(f"score-{space}", command, 300.0), read)


def train(config: Config, name: str, genotype: str, flags: Sequence[str], work: Path) -> Task:
    """Some epochs of a recipe."""
    command = [*NASI, "train", genotype, *flags, "--data", config.data, "--no-cache"]
    command += ["--out", str(work)]
    if config.smoke:
        command += ["--num-cells", "3" if name == "train-darts" else "1", *SMALLEST]
        command += ["--epochs", "1"]

    def read(outcome: turns.Outcome) -> list[Row]:
        summary = json.loads((work / "summary.json").read_text())
        settings = summary["config"]
        with (work / "metrics.csv").open() as file:
            rates = [float(row["images_per_second"]) for row in csv.DictReader(file)]
        (told,) = (line for line in outcome.lines if line.startswith("compiled in "))
        compiled = float(told.split()[2]) - outcome.stopped_compiling
        cells, channels = settings["num_cells"], settings["init_channels"]
        what = f"recipe {settings['recipe']}, {settings['batch_size']} images, "
        what += f"num_cells {cells}, init_channels {channels}"
        says = f"{np.median(rates):,.0f} images/s (median of {len(rates)} epochs); test accuracy "
        says += f"{summary['last_accuracy']:.1f} % after them"
        seconds = tuple(settings["batch_size"] / rate for rate in rates)
        return [Row(name, what, compiled, seconds, "step", None, _peak(summary), says)]

    return Task(name, turns.Program(name, command, 150.0 if name == "train" else 300.0), read)


def peer(
    config: Config, name: str, cases: Sequence[str], *, precision: str, ours: bool, work: Path
) -> Task:
    """PyTorch's side of `torch_peer.py`, or both."""
    command = [sys.executable, str(HERE / "torch_peer.py"), "--cases", *cases]
    command += ["--device", config.device, "--precision", precision, "--out", str(work)]
    command += ["--batch-size", "64", "--chunk-size", "64", "--repeats", "3"]
    command += [*([] if ours else ["--no-ours"]), *(["--smoke"] if config.smoke else [])]
    label = {"tf32": "TF32", "highest": "float32"}[precision]

    def read(outcome: turns.Outcome) -> list[Row]:
        rows = []
        for row in json.loads((work / "torch_peer.json").read_text())["rows"]:
            case, theirs = row["case"], row["torch"]
            of_theirs = tuple(theirs["seconds"])
            figures = (of_theirs, "call", None, theirs["peak_megabytes"])
            rows.append(Row("torch", f"{case}, PyTorch, {label}", None, *figures))
            if mine := row.get("ours"):
                seconds = tuple(mine["seconds"])
                ratio = np.median(seconds) / np.median(of_theirs)
                what, says = f"{case}, ours, {label}", f"{ratio:.2f} of PyTorch's time"
                figures = (seconds, "call", None, mine["peak_megabytes"])
                rows.append(Row("torch", what, mine["compile_seconds"], *figures, says))
        return rows

    return Task("torch", turns.Program(f"torch-{name}", command, 200.0), read)


def check(config: Config, which: str, limit: float, work: Path) -> Task:
    """`device_checks.py`."""
    out = work / "checks.json"
    command = [sys.executable, str(HERE / "device_checks.py"), which, "--data", config.data]
    command += ["--out", str(out), *(["--smoke"] if config.smoke else [])]

    def read(outcome: turns.Outcome) -> list[Row]:
        return [
            Row(which, each["what"], says=f"{'' if each['passed'] else 'FAILED: '}{each['found']}")
            for each in json.loads(out.read_text())
        ]

    # With status 1 it tells which check failed.
    program = turns.Program(which, command, limit, timed=False)
    return Task(which, program, read, failing=(1,))


def memory(config: Config, work: Path) -> Task:
    """A search that cannot fit."""
    command = [*NASI, "search", "--data", config.data, "--steps", "1", "--no-cache"]
    command += ["--out", str(work), "--init-channels", "128", "--batch-size", str(_most(config))]
    if config.smoke:
        # What no machine has fails at once, on a CPU too.
        command += ["--batch-size", "4", "--image-size", str(10**6)]

    def read(outcome: turns.Outcome) -> list[Row]:
        told = [line for line in outcome.lines if line.startswith("nasi: error: ")]
        stands = len(told) == 1 and outcome.code == 1
        line = told[0] if told else (outcome.lines or ("nothing",))[-1]
        others = len(outcome.lines) - len(told)
        says = f"{'' if stands else 'FAILED: '}exit {outcome.code}, {others} other lines; {line}"
        what = "nasbench201, 128 channels, all images at once"
        return [Row("memory", what, says=says)]

    program = turns.Program("memory", command, 90.0, timed=False)
    return Task("memory", program, read, failing=(1, 2))


def _most(config: Config) -> int:
    """As many images as there are to draw from, or as few as are more than enough."""
    if not (config.data.endswith(".npz") and Path(config.data).is_file()):
        return 1024
    with np.load(config.data) as arrays:
        return len(arrays["y_train"])


def tests(config: Config, work: Path) -> Task:
    """The tests of the estimates, on the device."""
    names = ["kernels/test_ntk.py", "kernels/test_per_example.py", "cells/test_conv.py"]
    names = names[: 1 if config.smoke else 3]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    command += [str(HERE.parent / "tests" / name) for name in names]
    if config.smoke:
        command += ["-k", "refusals"]
    else:
        command += ["--numprocesses", "4", "--dist", "worksteal"]

    def read(outcome: turns.Outcome) -> list[Row]:
        says = outcome.lines[-1].strip("= ") if outcome.lines else "nothing"
        return [Row("tests", ", ".join(names), says=f"{'FAILED: ' if outcome.code else ''}{says}")]

    # The flags that the tests give to XLA otherwise are for the CPU.
    program = turns.Program("tests", command, 240.0, timed=False, environment={"XLA_FLAGS": ""})
    return Task("tests", program, read, failing=(1,))


def profile(config: Config) -> Task:
    """The ten costliest kernels of a step of the DARTS search; its trace is kept."""
    out = config.out / "profile"
    command = [sys.executable, str(HERE / "costliest_kernels.py"), "--out", str(out), "--only"]
    command += ["search/nasbench201", "--smoke"] if config.smoke else ["search/darts"]

    def read(outcome: turns.Outcome) -> list[Row]:
        rows = []
        record = json.loads((out / "costliest_kernels.json").read_text())
        for program in record["programs"]:
            kernels, name = program["kernels"], program["name"]
            says = f"{sum(kernel['launches'] for kernel in kernels):,.0f} launches"
            rows.append(Row("profile", name, None, tuple(program["seconds"]), "call", says=says))
            for kernel in kernels[:10]:
                seconds = (kernel["milliseconds"] / 1e3,)
                says = f"{kernel['launches']:,.0f} launches: {kernel['source']}"
                rows.append(Row("profile", kernel["name"], None, seconds, "call", says=says))
        return rows

    return Task("profile", turns.Program("profile", command, 300.0), read)


def _peak(result: Mapping[str, Any]) -> float | None:
    """Peak of the device's memory in a result, in megabytes, if it is there."""
    found: float | None = result.get("peak_memory_megabytes")
    return found


def tasks_of(config: Config, work: Path) -> list[Task]:
    """All tasks by part, in the order in which they begin: long compilations and figures first.

    Raises:
      ValueError: for an unknown part.
    """
    recipe = ("--recipe", "nasbench201", "--epochs", "16")
    cells = ("--recipe", "darts-cifar10", "--num-cells", "5", "--epochs", "2")
    others = ("per_example", "trace", "training_step")

    def of_peer(name: str, cases: Sequence[str], precision: str, ours: bool) -> Task:
        folder = work / f"torch-{name}"
        return peer(config, name, cases, precision=precision, ours=ours, work=folder)

    everything = [
        search(config, "darts", work / "darts"),
        search(config, "nasbench201", work / "nasbench201"),
        search(config, "nasbench1shot1-1", work / "nasbench1shot1-1"),
        score(config, "nasbench201", 2 if config.smoke else 10, work / "score-nasbench201"),
        train(config, "train", GENOTYPE, recipe, work / "train"),
        search(config, "nasbench1shot1-2", work / "nasbench1shot1-2"),
        search(config, "nasbench1shot1-3", work / "nasbench1shot1-3"),
        of_peer("darts-tf32", ("nasi_step",), "tf32", False),
        check(config, "oracles", 150.0, work / "oracles"),
        check(config, "resume", 200.0, work / "resume"),
        score(config, "darts", 1 if config.smoke else 3, work / "score-darts"),
        of_peer("both-tf32", others, "tf32", True),
        memory(config, work / "memory"),
        of_peer("darts-float32", ("nasi_step",), "highest", False),
        of_peer("float32", others, "highest", False),
        train(config, "train-darts", DARTS_V2, cells, work / "train-darts"),
        profile(config),
        tests(config, work / "tests"),
    ]
    names = list(dict.fromkeys(task.part for task in everything))
    unknown = [part for part in config.parts if part not in names]
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}; known: {', '.join(names)}")
    chosen = config.parts or [name for name in names if name not in LEFT_OUT]
    tasks = [task for task in everything if task.part in chosen]
    # The limits are a GPU's and those of the processor beside it.
    slower = 10 if config.smoke else 1
    return [
        task._replace(program=replace(task.program, limit=slower * task.program.limit))
        for task in tasks
    ]


def rows_of(task: Task, outcome: turns.Outcome) -> list[Row]:
    """The figures of a task, or why there are none."""
    name = task.program.name
    if outcome.code is None:
        late = Row(task.part, name, says=f"FAILED: not done in {outcome.seconds:.0f} s")
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            return [*task.read(outcome), late]
        return [late]
    if outcome.code not in (0, *task.failing):
        last = next((line for line in reversed(outcome.lines) if line.strip()), "nothing")
        return [Row(task.part, name, says=f"FAILED: exit {outcome.code}: {last}")]
    try:
        return task.read(outcome)
    except (OSError, ValueError, KeyError, IndexError) as error:
        return [Row(task.part, name, says=f"FAILED: no figures: {type(error).__name__}: {error}")]


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    names = (
        "part",
        "what",
        "compile, s",
        "run, s",
        "range",
        "each",
        "whole, computed, s",
        "MB",
        "",
    )
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for row in rows:
        seconds = row.seconds
        cells = [
            row.part,
            row.what,
            "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
            f"{np.median(seconds):.3g}" if seconds else "",
            f"{min(seconds):.3g}-{max(seconds):.3g}" if seconds else "",
            row.each,
            "" if row.whole is None else f"{row.whole:.0f}",
            "" if row.megabytes is None else f"{row.megabytes:.0f}",
            " ".join(row.says.split()).replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def card() -> str:
    """The GPU by nvidia-smi, or the processor."""
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader",
        ]
        done = subprocess.run(query, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"no GPU: {names[0] if names else 'a processor without a name'}"


def main() -> None:
    """Runs the parts."""
    config = tyro.cli(Config, description=__doc__)
    cores = os.cpu_count() or 1
    jobs = config.jobs or max(1, min(5, cores // 3))
    began = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()
    with (
        tempfile.TemporaryDirectory() as folder,
        (config.out / "log.txt").open("w") as log_file,
    ):
        work = Path(folder)
        os.environ.update(
            XLA_PYTHON_CLIENT_PREALLOCATE="false",
            PYTHONUNBUFFERED="1",
            MPLBACKEND="Agg",
            XDG_CACHE_HOME=str(work / "cache"),
        )
        os.environ.setdefault("XLA_FLAGS", NO_TUNING)
        try:
            tasks = tasks_of(config, work)
        except ValueError as error:
            sys.exit(str(error))
        title = f"{card()}; {cores} CPU cores, {jobs} programs at a time"
        found: dict[str, list[Row]] = {}

        def log(line: str) -> None:
            text = f"{time.monotonic() - began:6.1f} {line.rstrip()}"
            with lock:
                print(text[:300], flush=True)
                print(text, file=log_file, flush=True)

        def text() -> str:
            missing = "FAILED: no time was left to begin"
            rows = [
                row
                for task in tasks
                for row in found.get(
                    task.program.name, [Row(task.part, task.program.name, says=missing)]
                )
            ]
            return f"{title}\n\n{table(rows)}\n"

        def on_end(program: turns.Program, outcome: turns.Outcome) -> None:
            task = next(task for task in tasks if task.program is program)
            found[program.name] = rows_of(task, outcome)
            log(f"{program.name}: ended after {outcome.seconds:.1f} s with {outcome.code}")
            # Now, so that what there is outlasts this process.
            files.write_bytes(config.out / "table.md", text().encode())

        programs = [task.program for task in tasks]
        turns.run(programs, jobs=jobs, seconds=config.seconds, log=log, on_end=on_end)
        files.write_bytes(config.out / "table.md", text().encode())
        spent = time.monotonic() - began
        print(f"\n{text()}\n{spent:.0f} s in all")
    record = {
        "config": {**asdict(config), "out": str(config.out), "data": Path(config.data).name},
        "card": title,
        "seconds": spent,
        "rows": {name: [row._asdict() for row in rows] for name, rows in found.items()},
    }
    write_record(config.out, "on_device", record)


if __name__ == "__main__":
    main()
