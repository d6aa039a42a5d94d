"""Run directories, the one protocol of all runs: lock, settings, checkpoints; and provenance."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from filelock import FileLock, Timeout
from orbax.checkpoint.options import MultiprocessingOptions

from nasi_jax.devices import hosts
from nasi_jax.storage import files

_PACKAGES = ("nasi-jax", "jax", "jaxlib", "flax", "optax", "numpy")
_EXTRAS = ("neural-tangents", "tensorflow-datasets")
"""Optional packages, whose versions are recorded only if they were imported."""


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, by name."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _EXTRAS:
        # Some are given away under other names too, such as tfds-nightly.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if sys.modules.get(name.replace("-", "_")):
                found[name] = importlib.metadata.version(name)
    return {**found, "python": platform.python_version()}


def provenance() -> dict[str, Any]:
    """The provenance of a result: device, peak device memory, versions."""
    return {
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "peak_memory_megabytes": _peak_memory_megabytes(),
        "versions": versions(),
    }


def _peak_memory_megabytes() -> float | None:
    """Peak device memory of this process in MB; None where the backend has no report, as on CPU."""
    told = (device.memory_stats() for device in jax.local_devices())
    peaks = [stats["peak_bytes_in_use"] for stats in told if stats]
    return max(peaks) / 1e6 if peaks else None


ADDED: Mapping[str, Any] = {"matmul_precision": "default"}
"""Settings of every run that earlier versions did not have, with the values that those ran with."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run, which one process at a time has, and from which a killed run goes on.

    Of several processes that run together the first has them. The others read them, so the folder
    is one that all of them see.

    Attributes:
      folder: where they are.
      what: what runs, in words, such as "search".
      names: the files of such a run; `overwrite` removes no others.
      record: the JSON file with the settings that the run depends on.
      entry: under which entry it has them; it has nothing else if None.
      file: the file that the run is called by where other runs may be in the folder too; else it is
        called by the folder.
      early: files besides the record that are there before anything is computed.
      added: settings added since earlier versions, with the values that those ran with.
    """

    folder: Path
    what: str
    names: tuple[str, ...]
    record: str = "config.json"
    entry: str | None = None
    file: str | None = None
    early: tuple[str, ...] = ()
    added: Mapping[str, Any] = field(default_factory=lambda: ADDED)

    @contextlib.contextmanager
    def begun(
        self,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        saved: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Iterator[None]:
        """Has the files for a run, from before anything is computed until all is written.

        The folder is made if it is not there, and the settings are in it at once, so that a run
        that is killed early can be resumed. The operating system releases the lock of a killed
        process. Processes that run together go on when the files are ready to be read, and end when
        all is written.

        Args:
          settings: what the run depends on, as JSON.
          resume: whether to go on with the run that is there, if there is one.
          overwrite: whether to remove what an earlier run left.
          saved: reads the settings of the run to resume, if not `settings`.

        Raises:
          ValueError: if the folder cannot be used or another process has the files, there is a run
            and neither is set, or one of other settings; in the processes that the first one has
            the files for, if they do not see its settings there, or have others.
        """
        ready, written = (f"the {self.what} in {self.folder} is {how}" for how in ("begun", "done"))
        if not hosts.is_writer():
            hosts.barrier(ready)
            _check_same(self.settings(), settings, f"{self.what} of the first process")
            yield
            hosts.barrier(written)
            return
        with self._locked():
            present = [name for name in self.names if (self.folder / name).exists()]
            if overwrite:
                self._remove(self.folder / name for name in present)
            elif present and not resume:
                kind = "file" if self.file else "directory"
                raise ValueError(
                    f"{self._place} holds a {self.what} already ({present[0]}): continue it with "
                    f"--resume, replace it with --overwrite, or name another {kind}"
                )
            elif present:
                _check_same((saved or self.settings)(), settings, f"{self.what} to resume")
            for name in self.names:
                for left in files.unfinished(self.folder / name):
                    left.unlink()
            content = dict(settings)
            if self.entry is not None:
                kept = {} if overwrite or not present else self._content()
                content = {**kept, self.entry: content}
            self.write(self.record, files.json_text(content))
            hosts.barrier(ready)
            try:
                yield
            except ValueError:
                if overwrite or not present:
                    self._remove_settings()
                raise
        hosts.barrier(written)

    def _remove_settings(self) -> None:
        """Removes what a run wrote that was refused before it had anything to show.

        So the same command with other settings needs no `--overwrite`.
        """
        present = [path for name in self.names if (path := self.folder / name).exists()]
        early = {self.folder / name for name in (self.record, *self.early)}
        if all(path in early or _is_empty(path) for path in present):
            self._remove(present)

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        name = f".{self.file}.lock" if self.file else ".lock"
        lock = FileLock(self.folder / name, blocking=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self._place} is in use by another {self.what}") from error
        except OSError as error:
            reason = f"cannot use {self.folder} as a directory: {error.strerror}"
            raise ValueError(reason) from error
        with held:
            yield

    @property
    def _place(self) -> str:
        return (
            f"the file {self.folder / self.file}" if self.file else f"the directory {self.folder}"
        )

    def settings(self) -> dict[str, Any]:
        """Reads the settings of the run that is there.

        Raises:
          ValueError: if there is none, or they cannot be read.
        """
        content = self._content()
        fields = content if self.entry is None else content.get(self.entry)
        if not isinstance(fields, dict):
            raise self.unreadable(f"its entry {self.entry} is no object of settings")
        return {**self.added, **_as_now(fields)}

    def _content(self) -> dict[str, Any]:
        path = self.folder / self.record
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise ValueError(f"no {self.what} to resume: cannot read {path}") from error
        except (ValueError, RecursionError) as error:
            raise self.unreadable(error) from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise self.unreadable(f"a configuration is an object of settings, got {kind}")
        return content

    def unreadable(self, why: object) -> ValueError:
        """The error of settings that cannot be read, in one line."""
        path = self.folder / self.record
        return ValueError(f"{path} is not the configuration of a {self.what}: {why}")

    def write(self, name: str, text: str) -> None:
        """Writes one of the files atomically.

        Raises:
          OSError: if that fails; what the file held before is then still there.
        """
        files.write_bytes(self.folder / name, text.encode())

    @contextlib.contextmanager
    def checkpoints(self, *, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
        """Opens the manager of the checkpoints.

        Orbax renames a checkpoint into place when it is complete, so a partial one is never
        restored. Of several processes that run together each has a manager that waits for none of
        the others, and the first one alone saves: all that is saved is replicated, so that no other
        has a part of it, and the loss of one leaves no save half done.

        Args:
          read_only: whether to leave all as it is, such as what another process is writing.
        """
        read_only = read_only or not hosts.is_writer()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 1,
            create=False,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
            multiprocessing_options=_alone(),
        )
        path = (self.folder / "checkpoint").absolute()
        if not read_only:
            path.mkdir(exist_ok=True)
        with contextlib.closing(ocp.CheckpointManager(path, options=options)) as manager:
            yield manager


def _is_empty(path: Path) -> bool:
    """Whether there is a directory with nothing in it but the locks of runs."""
    return path.is_dir() and all(each.name.endswith(".lock") for each in path.iterdir())


def _alone() -> MultiprocessingOptions:
    """What has orbax wait for no other process."""
    if not hosts.are_several():
        return MultiprocessingOptions()
    this = jax.process_index()
    return MultiprocessingOptions(this, active_processes={this}, barrier_sync_key_prefix=f"{this}")


def save(manager: ocp.CheckpointManager, step: int, content: Any) -> None:
    """Saves the checkpoint of a step, whose arrays every process has whole; see `checkpoints`."""
    if hosts.is_writer():
        manager.save(step, args=ocp.args.StandardSave(jax.device_get(content)))


def _as_now(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as earlier versions named them, under their present names."""
    now = dict(fields)
    if "hard" in now:
        now["relaxation"] = "hard" if now.pop("hard") else "soft"
    if isinstance(now.get("table"), str):
        now["table"] = [now["table"]]
    return now


def _check_same(kept: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    # As JSON has them: tuples are lists there.
    kept, given = (json.loads(json.dumps(each)) for each in (kept, given))
    differences = [
        f"{name} {kept.get(name)} not {given.get(name)}"
        for name in {**given, **kept}
        if given.get(name) != kept.get(name)
    ]
    if differences:
        raise ValueError(f"the {what} has {', '.join(differences)}")


def restored(manager: ocp.CheckpointManager, like: Any) -> Any:
    """Restores the latest complete checkpoint, bit for bit, as NumPy arrays on the host.

    Args:
      manager: of the checkpoints, one of which there is.
      like: its shapes and dtypes.

    Raises:
      ValueError: if it cannot be read.
    """
    done = manager.latest_step()
    # As numpy's arrays: others orbax would put on the devices that they were saved from.
    like = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf, like
    )
    try:
        return manager.restore(done, args=ocp.args.StandardRestore(like))
    except Exception as error:  # a damaged checkpoint fails in many ways
        raise ValueError(
            f"cannot read the checkpoint {manager.directory / str(done)}: "
            f"{textwrap.shorten(str(error), 160)}"
        ) from error
