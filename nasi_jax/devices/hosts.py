"""Several processes that run one command together, on one host or many, by `jax.distributed`.

All of them go through the same program on the devices of all of them. The first one alone, the
writer, has the files of the run and the terminal; what the others need of the files they read.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_SECONDS_TO_MEET = 120
"""For the processes to find one another; an allocation of many hosts does not start all at once."""

_SECONDS_OF_SILENCE = 30
"""After which a process counts as lost, whose host vanished without closing its connections."""

_output = contextlib.ExitStack()
"""What is to be done before this process ends, so that all that was written is shown."""


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    detect: bool = False,
) -> None:
    """Has this process run the command together with others; does nothing if nothing is given.

    To be called before JAX has looked for devices. From then on `jax.devices()` are those of all
    processes, the output of the writer alone is shown, and of a process that is lost the others
    tell in one line on stderr, and end: at once where its connections are closed, else within
    about 30 s.

    Args:
      coordinator: `HOST:PORT`, where the first process is to be reached by the others.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      detect: whether JAX is to find these three out, as it does under SLURM and Open MPI, on GKE
        and on Cloud TPUs.

    Raises:
      ValueError: if one of the three is missing or out of range, `detect` is set with them, there
        is nothing to detect, or the first process cannot be reached within 120 s.
    """
    given = coordinator, num_processes, process_id
    if given == (None, None, None):
        if detect:
            _start(jax.distributed.initialize)
        return
    if detect:
        raise ValueError(
            "--distributed finds out --coordinator, --num-processes and --process-id by itself"
        )
    if coordinator is None or num_processes is None or process_id is None:
        raise ValueError("--coordinator, --num-processes and --process-id go together")
    address = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):(\d{1,5})", coordinator)
    if address is None or not 1 <= int(address[2]) <= 65535:
        raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if num_processes < 1:
        raise ValueError(f"--num-processes must be at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process-id must be from 0 to {num_processes - 1}, one less than --num-processes, "
            f"got {process_id}"
        )
    if process_id:
        _reach(address[1].strip("[]"), int(address[2]))
    connect = functools.partial(
        jax.distributed.initialize,
        coordinator,
        num_processes,
        process_id,
        cluster_detection_method="deactivate",  # which would take one device a process
    )
    _start(connect)


def _reach(host: str, port: int) -> None:
    """Waits for the first process, which JAX would end this one for, by SIGABRT, if it is late."""
    end = time.monotonic() + _SECONDS_TO_MEET
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"the first process was not reached at {host}:{port} within "
                    f"{_SECONDS_TO_MEET} s: {error}"
                ) from error
            time.sleep(0.2)


def _start(connect: Callable[..., None]) -> None:
    _filter_native_output()
    # It would have SIGTERM do nothing, and log where a process is lost.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        connect(
            initialization_timeout=_SECONDS_TO_MEET, heartbeat_timeout_seconds=_SECONDS_OF_SILENCE
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error)
        if "should be defined" in reason or "must be defined" in reason:
            reason = (
                "JAX knows of no cluster here (it knows SLURM, Open MPI, GKE and Cloud TPUs): give "
                "--coordinator, --num-processes and --process-id"
            )
        raise ValueError(f"cannot run with other processes: {reason}") from error
    if not is_writer():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as this process lives


def _filter_native_output() -> None:
    """Has another process read stderr, and what native code writes to stdout.

    JAX's runtime ends a process whose peer is lost by itself, with a dozen lines on stderr: only
    another process can make one line of them. Gloo tells of its connections on stdout, where
    results are printed.
    """
    reader, writer = os.pipe()
    said = subprocess.Popen(
        [sys.executable, "-I", Path(__file__).with_name("native_output.py")],
        stdin=reader,
        start_new_session=True,  # it outlives us, where a terminal or a scheduler stops us
    )
    out, err = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stdout = os.fdopen(out, "w", buffering=1, closefd=False)  # also if this is replaced
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out, 1)
        os.dup2(err, 2)
        said.wait()

    _output.callback(end)
    atexit.register(_output.close)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The work of a process that may have others: it ends with them, and not alone.

    One that fails ends at once, for which the others end too: JAX would have it wait for them,
    which wait for it.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        _output.close()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def leave() -> None:
    """Ends the connection to the others, when they have all come to the end of their work."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_writer() -> bool:
    """Whether this process has the files: the first of several, and any that is alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def are_several() -> bool:
    """Whether this process has others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def barrier(name: str) -> None:
    """Waits for all processes.

    Args:
      name: of the place, the same in all of them.
    """
    if are_several():
        multihost_utils.sync_global_devices(name)


def least(number: int) -> int:
    """The least of the numbers that the processes have."""
    if not are_several():
        return number
    return int(np.min(multihost_utils.process_allgather(np.asarray(number))))
