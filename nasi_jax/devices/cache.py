"""Compiled programs kept on disk from one run to the next, by JAX's persistent cache."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import platformdirs

MAX_BYTES = 2 * 1024**3
"""Of compiled programs in the folder; those that were not used for longest make room."""

HIT = "/jax/compilation_cache/cache_hits"
"""JAX's event of a program that was read from the cache."""

MISS = "/jax/compilation_cache/cache_misses"
"""JAX's event of a program that was compiled and goes into the cache."""


def default_folder() -> Path:
    """The default folder of the cache, in `XDG_CACHE_HOME` or the platform's cache folder."""
    return platformdirs.user_cache_path("nasi-jax", appauthor=False) / "compiled"


def turn_on(folder: Path) -> None:
    """Turns on JAX's persistent compilation cache, for programs of a second or more.

    JAX tells programs apart by their code, its own version, the compiler's flags, the instructions
    that the processor has and the folder's path, so machines may share a folder of one path.

    Args:
      folder: made if it is not there. It must be the user's alone: what it holds is run.

    Raises:
      OSError: if the folder cannot be made or written to. Nothing has changed then.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # JAX would find out by itself, and warn at each of hundreds of small programs.
    with tempfile.TemporaryFile(dir=folder):
        pass
    # JAX writes a program and then its time, neither at once. A program without a time was left
    # by a process that was killed: it would fail to load for ever, and every eviction on it.
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


def turn_off() -> None:
    """Turns off JAX's persistent compilation cache, whatever its environment variables say."""
    jax.config.update("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts JAX's events, `HIT` and `MISS` among them, by name."""
    events: Counter[str] = Counter()

    def count(event: str, **_: str | int) -> None:
        events[event] += 1

    jax.monitoring.register_event_listener(count)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(count)
