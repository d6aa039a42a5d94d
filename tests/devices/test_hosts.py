"""Two processes find what one does, and neither outlives the other.

The processes have two devices each, threads of one CPU, and meet on the loopback address.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from devices.test_mesh import (
    IN_TOY,
    OF_FEW,
    SCORES,
    SELECT,
    SIZES,
    TRAIN,
    Case,
    Stopped,
    by_compare,
    by_rank,
    by_score,
    by_search,
    by_select,
    by_train,
    in_float64,
    run_command,
    stopper,
)
from helpers import DATA_DIR, assert_one_line, flags_of, python_path, relative_error

from nasi_jax import cli, device_mesh, runs
from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.config import RankConfig, ScoreConfig, SearchConfig
from nasi_jax.devices import hosts
from nasi_jax.storage.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEARCH = SearchConfig(**IN_TOY, variant="nasi-fix", steps=8)
OF_SPACE: dict[str, dict[str, Any]] = {
    "darts": {"num_cells": 3},
    "transnas101": {"image_size": 32, "batch_size": 16},
}
CASES = {
    "search": Case(by_search, SEARCH, ()),
    "score": Case(by_score, ScoreConfig(**IN_TOY, **SCORES, num_archs=4, seeds=2), ()),
    "train": Case(by_train, TRAIN, ()),
}
SLOW = {
    "search over both axes": Case(by_search, SEARCH, ({"data": 2, "sample": 2},)),
    **{
        f"search of {name}": Case(
            by_search,
            dataclasses.replace(
                SearchConfig(**SIZES, space=name, variant="nasi-fix", batch_size=4, steps=8),
                **OF_SPACE.get(name, {}),
            ),
            (),
        )
        for name in SEARCH_SPACES
    },
    "select": Case(by_select, dataclasses.replace(SELECT, archs_per_call=4), ()),
    "rank": Case(
        by_rank,
        RankConfig(
            **SIZES,
            **SCORES,
            ops=OF_FEW,
            table=(str(DATA_DIR / "nasbench201_cifar10.csv"),),
            column="c10_test_200",
            num_archs=4,
        ),
        (),
    ),
    "compare": Case(by_compare, ScoreConfig(**IN_TOY, **SCORES, num_archs=4), ()),
}
"""Each with the mesh of the processes, or the one that they take by themselves."""

NAMED = {"default": CASES, **{name: {name: case} for name, case in SLOW.items()}}
"""What a pair of processes runs."""

FLAGS = ["search", *tiny.TOY, "--steps", "100000", "--no-cache"]
"""A search that does not end by itself."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(*arguments):
    """Starts a process that may have another, with two devices."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": python_path(Path(__file__).parent),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags_of(2),
        },
    )


@contextlib.contextmanager
def pair(*arguments):
    """Two processes with these arguments and the flags by which they find each other."""
    meet = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id"]
    processes = [start(*arguments, *meet, number) for number in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def told(processes):
    """What each process writes to the two outputs, which are read at once."""
    found = [None] * len(processes)

    def read(number):
        found[number] = processes[number].communicate()

    threads = [threading.Thread(target=read, args=[number]) for number in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def writes_below(folder):
    """The files and folders in a folder that this process makes from now on, as it makes them."""
    made = []

    def hear(event, arguments):
        makes = {"os.mkdir": 0, "os.rename": 1}
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = arguments[0]
        elif event in makes:
            path = arguments[makes[event]]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder):
            made.append(str(path))

    sys.addaudithook(hear)
    return made


def ran(cases, out):
    """What each case finds that was stopped and goes on; the rows read, and the files made."""
    read, write, sizes = runs.train._Sets.read, RunDirectory.write, []

    def counted(self, dataset, indices):
        sizes.append(len(indices))
        return read(self, dataset, indices)

    def late(self, name, text):
        if hosts.is_writer():
            time.sleep(0.2)  # the other process has to wait for the file
        write(self, name, text)

    made, found = writes_below(out), {}
    with (
        in_float64(),
        mock.patch.object(runs.train._Sets, "read", counted),
        mock.patch.object(RunDirectory, "write", late),
    ):
        for name, case in cases.items():
            mesh = device_mesh(**case.meshes[0]) if case.meshes else None
            with pytest.raises(Stopped):
                run_command(case, out / name, mesh=mesh, on_progress=stopper())
            found[name] = run_command(case, out / name, mesh=mesh, resume=True)
    return {"found": found, "made": made, "sizes": set(sizes)}


SCRIPT = """
    import pickle, sys
    from pathlib import Path

    import jax
    import test_hosts as test
    from nasi_jax.devices import hosts

    out, cases, flags = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    hosts.initialize(flags[1], int(flags[3]), int(flags[5]))
    print("result of process", jax.process_index())
    found = {"devices": len(jax.devices()), **test.ran(test.NAMED[cases], out / "runs")}
    (out / f"found-{jax.process_index()}").write_bytes(pickle.dumps(found))
    hosts.leave()
"""


def by_two_and_one(cases, out):
    """What is found by each of two processes, with what they told, and by one."""
    with pair("-c", textwrap.dedent(SCRIPT), out, cases) as processes:
        outputs = told(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    both = [pickle.loads((out / f"found-{number}").read_bytes()) for number in range(2)]
    # As in the processes, to which the settings of the tests have not come.
    with in_float64(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        one = {
            name: run_command(case, out / f"one {name}", mesh=device_mesh())
            for name, case in NAMED[cases].items()
        }
    return both, outputs, one


def assert_as_one(both, expected, name):
    assert np.all(np.isfinite(expected.numbers))
    for each in both:
        assert each["devices"] == 4
        assert each["found"][name].texts == expected.texts
        assert relative_error(each["found"][name].numbers, expected.numbers) < 1e-9


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    return *by_two_and_one("default", out), out


@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_what_one_does(found, name):
    both, _, one, _ = found
    assert_as_one(both, one[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_in_other_cases(name, tmp_path, data_dir):
    both, _, one = by_two_and_one(name, tmp_path)
    assert_as_one(both, one[name], name)


def test_they_take_all_devices(found):
    meshes = {name: result.mesh for name, result in found[0][0]["found"].items()}
    along = {"data": 1, "sample": 4}
    assert meshes == {"search": along, "score": along, "train": {"data": 4, "sample": 1}}


def test_the_first_alone_writes_and_prints(found):
    (first, second), outputs, _, out = found
    assert first["made"] and second["made"] == []
    assert json.loads((out / "runs" / "train" / "summary.json").read_text())["mesh"]["data"] == 4
    assert outputs == [("result of process 0\n", ""), ("", "")]


def test_a_process_reads_its_rows_of_a_batch(found):
    assert [each["sizes"] for each in found[0]] == [{TRAIN.batch_size // 2}] * 2


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_ends_when_the_other_is_lost(lost, tmp_path):
    with pair("-m", "nasi_jax", *FLAGS, "--out", tmp_path / "run") as processes:
        for line in processes[0].stderr:
            if line.startswith("searching"):
                break
        begun = time.monotonic()
        processes[lost].kill()
        left = processes[1 - lost]
        _, error = left.communicate(timeout=60)
        assert time.monotonic() - begun < 60
        assert left.returncode not in (0, None)
        lines = [line for line in error.splitlines() if not line.startswith("searching  ")]
        assert len(lines) == 1 and re.match("nasi: error: .*another", lines[0]), error


REPLACED = """
    import os, sys

    from nasi_jax.devices import hosts

    hosts._filter_native_output()
    sys.stdout = open(os.devnull, "w")
    os.write(1, b"[Gloo] Rank 0 is connected\\nnative\\n")
    print("python", file=sys.stderr)
"""


def test_outputs_are_filtered_to_the_end():
    """Also in a process that prints nothing, whose stdout is closed."""
    process = start("-c", textwrap.dedent(REPLACED))
    assert process.communicate() == ("", "native\npython\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--process-id 0", "--coordinator, --num-processes and --process-id go together"),
        ("--num-processes 2", "--coordinator, --num-processes and --process-id go together"),
        ("--coordinator here:1 --num-processes 2", "and --process-id go together"),
        ("--coordinator here --num-processes 2 --process-id 0", "must be HOST:PORT, got 'here'"),
        ("--coordinator here:0 --num-processes 2 --process-id 0", "must be HOST:PORT, got"),
        ("--coordinator here:1 --num-processes 0 --process-id 0", "must be at least 1, got 0"),
        ("--coordinator here:1 --num-processes 2 --process-id 2", "must be from 0 to 1, one less"),
        ("--coordinator here:1 --num-processes 2 --process-id -1", "must be from 0 to 1, one less"),
        ("--distributed --process-id 0", "--distributed finds out --coordinator"),
    ],
)
def test_wrong_flags_are_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*FLAGS, "--out", str(tmp_path / "run"), *flags.split()])
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_a_first_process_that_is_not_reached_is_told_of(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "_SECONDS_TO_MEET", 0.3)
    address = f"127.0.0.1:{free_port()}"
    flags = ["--coordinator", address, "--num-processes", "2", "--process-id", "1"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*FLAGS, *flags])
    assert caught.value.code == 2
    message = f"nasi: error: the first process was not reached at {address} within 0.3 s: "
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.slow
def test_there_has_to_be_a_cluster_to_detect(tmp_path):
    process = start("-m", "nasi_jax", *FLAGS, "--distributed", "--out", tmp_path / "run")
    out, error = process.communicate()
    assert process.returncode == 2 and out == ""
    assert error.startswith("nasi: error: cannot run with other processes: JAX knows of no cluster")
    assert error.count("\n") == 1


def test_a_mesh_has_the_devices_of_all_processes(monkeypatch):
    """Also where there is less to do."""
    monkeypatch.setattr(hosts, "are_several", lambda: True)
    monkeypatch.setattr(jax, "devices", lambda: [*jax.local_devices(), *jax.local_devices()])
    with pytest.raises(ValueError) as caught:
        device_mesh(sample=1)
    assert_one_line(caught, "must have all their 2 devices, got data=1,sample=1")
