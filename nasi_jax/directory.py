"""Directories of results: one process at a time writes to them, and a killed run resumes from them.

Such a directory holds `config.json`, the settings that the run depends on, and `checkpoint`, of
which a half-written one is never used: it gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from nasi_jax import files

_PACKAGES = ("nasi-jax", "jax", "jaxlib", "flax", "optax", "numpy")
_EXTRAS = ("neural-tangents", "tensorflow-datasets")
"""Packages that a result depends on only if they were imported."""


def provenance() -> dict[str, Any]:
    """The device and the versions that a result was made with."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _EXTRAS:
        # Some are given away under other names too, such as tfds-nightly.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if sys.modules.get(name.replace("-", "_")):
                versions[name] = importlib.metadata.version(name)
    return {
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "versions": {"python": platform.python_version(), **versions},
    }


@contextlib.contextmanager
def claimed(out: Path, what: str) -> Iterator[None]:
    """Keeps other processes out of a directory, which is made if it is not there.

    The lock goes with the process, so a killed one leaves nothing behind that is in the way.

    Args:
      out: the directory.
      what: what it is for, such as "search", in words.

    Raises:
      ValueError: if it cannot be used, or is in use.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    except OSError as error:
        raise ValueError(f"cannot use {out} as a directory: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"the directory {out} is in use by another {what}") from error
        yield


def prepare(
    out: Path,
    what: str,
    settings: Mapping[str, Any],
    names: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    saved: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Makes a directory one of a run of these very settings, which may be written to.

    Args:
      out: the directory.
      what: what runs, in words.
      settings: what the run depends on, as JSON.
      names: the files of such a run, and all that `overwrite` removes.
      resume: whether to go on with the run that the directory holds, if it holds one.
      overwrite: whether to remove what an earlier run left.
      saved: reads the settings of the run that the directory holds; they are as `config.json` has
        them if not given.

    Raises:
      ValueError: if the directory holds a run and neither is set, or one of other settings.
    """
    present = [name for name in names if (out / name).exists()]
    if overwrite:
        for name in present:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif present and not resume:
        raise ValueError(
            f"the directory {out} holds a {what} already ({present[0]}): continue it with "
            "--resume, replace it with --overwrite, or name another directory"
        )
    elif present:
        _check_same(saved() if saved else saved_settings(out, what), settings, what)
    files.write_bytes(out / "config.json", files.json_text(settings).encode())


@contextlib.contextmanager
def opened(out: Path, *, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in a directory.

    Args:
      out: the directory.
      read_only: whether to leave all in it as it is, such as what another process is writing.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 1,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=False,
    )
    manager = ocp.CheckpointManager((out / "checkpoint").absolute(), options=options)
    with contextlib.closing(manager):
        yield manager


def saved_settings(out: Path, what: str) -> dict[str, Any]:
    """The settings of the run that a directory holds.

    Raises:
      ValueError: if the directory holds none, or they cannot be read.
    """
    path = out / "config.json"
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"no {what} to resume: cannot read {path}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not the configuration of a {what}: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"{path} is not the configuration of a {what}: a configuration is an object of "
            f"settings, got {type(fields).__name__}"
        )
    return fields


def _check_same(kept: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    # As JSON has them: tuples are lists there.
    kept, given = (json.loads(json.dumps(each)) for each in (kept, given))
    differences = [
        f"{name} {kept.get(name)} not {given.get(name)}"
        for name in {**given, **kept}
        if given.get(name) != kept.get(name)
    ]
    if differences:
        raise ValueError(f"the {what} to resume has {', '.join(differences)}")


def restored(manager: ocp.CheckpointManager, like: Any) -> Any:
    """What the last whole checkpoint holds, bit for bit, on the host.

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
