"""Programs side by side on one GPU: they compile at a time, and what is timed runs alone.

A program says on its standard error or output where it stands, as `nasi` does and
`measuring.timed`: from a line that begins with `compiled in` or `timing` until one with `drawing`
or `timed`, or until it ends, it has the machine to itself, and all others are stopped (SIGSTOP)
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from measuring import TURNS

_BEGINS = re.compile("compiled in |timing$")
_ENDS = re.compile("drawing |timed$")
_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Program:
    """What is to be run.

    Attributes:
      name: what its lines are marked with.
      command: program and arguments.
      limit: seconds that it may take, without those in which it was stopped.
      timed: whether it takes turns; if not, it is stopped in the turns of others and has none.
      environment: variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    limit: float
    timed: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
      code: its exit status; None if it was ended for its time.
      seconds: that it took, without those in which it was stopped.
      stopped_compiling: seconds in which it was stopped between `compiling` and `compiled in`.
      lines: what it wrote.
    """

    code: int | None
    seconds: float
    stopped_compiling: float
    lines: tuple[str, ...]


class _Running:
    """A program under way, and the clock of its own time, which stands while it is stopped."""

    def __init__(self, program: Program, turns: _Turns, log: Callable[[str], None]) -> None:
        self.program, self.turns, self.log = program, turns, log
        self.began = time.monotonic()
        self.stopped_at: float | None = None
        self.stopped = self.compiling = self.stopped_compiling = 0.0
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            program.command,
            env={**os.environ, TURNS: "1", **program.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as written:
            for line in written:
                self._hear(line)
                self.log(f"{self.program.name}: {line}")

    def _hear(self, line: str) -> None:
        self.lines.append(line.rstrip("\n"))
        if line.startswith("compiling "):
            self.compiling = self.stopped
        elif line.startswith("compiled in "):
            self.stopped_compiling = self.stopped - self.compiling
        if self.program.timed and _BEGINS.match(line):
            self.turns.take(self)
        elif self.program.timed and _ENDS.match(line):
            self.turns.leave(self)

    def seconds(self) -> float:
        """Of its own time so far."""
        now = time.monotonic()
        return now - self.began - self.stopped - (now - self.stopped_at if self.stopped_at else 0)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the program and all that it started."""
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, number)
        if number == signal.SIGSTOP and self.stopped_at is None:
            self.stopped_at = time.monotonic()
        elif number == signal.SIGCONT and self.stopped_at is not None:
            self.stopped += time.monotonic() - self.stopped_at
            self.stopped_at = None


class _Turns:
    """Whose turn it is: one program runs, or all of them do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all: list[_Running] = []
        self.waiting: list[_Running] = []
        self.holder: _Running | None = None

    def take(self, who: _Running) -> None:
        with self.lock:
            if self.holder is None:
                self.holder = who
                for other in self.all:
                    if other is not who:
                        other.signal(signal.SIGSTOP)
            elif self.holder is not who and who not in self.waiting:
                self.waiting.append(who)

    def leave(self, who: _Running, *, ended: bool = False) -> None:
        with self.lock:
            self.waiting = [other for other in self.waiting if other is not who]
            if ended:
                self.all = [other for other in self.all if other is not who]
            if self.holder is who:
                self.holder = self.waiting.pop(0) if self.waiting else None
                for other in [self.holder] if self.holder else self.all:
                    other.signal(signal.SIGCONT)
                if self.holder and not ended:
                    who.signal(signal.SIGSTOP)


def run(
    programs: Sequence[Program],
    *,
    jobs: int,
    seconds: float,
    log: Callable[[str], None],
    on_end: Callable[[Program, Outcome], None],
) -> None:
    """Runs programs in their order, several at a time, in no more than so many seconds.

    What has not ended then is ended, and what has not begun is not begun.

    Args:
      programs: what to run.
      jobs: how many at a time.
      seconds: for all of them.
      log: called with every line that one of them writes, from several threads.
      on_end: called when one of those that began has ended.
    """
    turns, left, began = _Turns(), list(programs), time.monotonic()

    def spent() -> float:
        return time.monotonic() - began

    try:
        while (left and spent() < seconds) or turns.all:
            for running in list(turns.all):
                code = running.process.poll()
                over = running.seconds() > running.program.limit or spent() > seconds
                if code is None and not over:
                    continue
                running.signal(signal.SIGKILL)
                running.process.wait()
                running.reader.join()
                turns.leave(running, ended=True)
                on_end(
                    running.program,
                    Outcome(
                        code, running.seconds(), running.stopped_compiling, tuple(running.lines)
                    ),
                )
            with turns.lock:  # nothing begins in a turn
                while left and len(turns.all) < jobs and not turns.holder and spent() < seconds:
                    turns.all.append(_Running(left.pop(0), turns, log))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for running in turns.all:
            running.signal(signal.SIGKILL)
