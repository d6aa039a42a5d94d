"""Compiled programs of the tests that are kept from one run of the tests to the next.

None can be stale: JAX finds a program by a checksum of its code as lowered, constants included,
of the releases of jaxlib and of the compiler, of the compiler's flags and options, and of the
instructions that the processor has. What changes a program's result changes one of them. The
number of cores, which decides how XLA parts the work, is not among them; the folder bears it.
"""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import pytest
from jax._src import compilation_cache

NAME = f"compiled-for-{os.cpu_count()}-cores"
"""Of the folder in pytest's cache, which `pytest --cache-clear` empties."""

SECONDS = 0.1
"""Programs that take no longer are compiled about as fast as they are read."""

MONTH = 30 * 24 * 3600.0
"""Seconds, after which all is removed, so that the folder does not grow for ever."""


@contextlib.contextmanager
def kept(folder):
    """Has JAX read what it would compile from a folder, which gets what had to be compiled.

    Many processes may do so at once. JAX writes a program bit by bit, so that another process may
    read half of one; here each writes into a folder of its own, of links to what the shared one
    holds, and links what is new into that at the end. A link is there at once or not at all.
    """
    oldest = time.time() - MONTH
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for path in Path(folder).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if path.stat().st_mtime < oldest:
                    # A folder is that of a process that was killed.
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                elif path.is_file():
                    os.link(path, Path(own, path.name))
        settings = {
            "jax_compilation_cache_dir": own,
            # One that evicts cannot read what one that does not has written.
            "jax_compilation_cache_max_size": -1,
            "jax_persistent_cache_min_compile_time_secs": SECONDS,
            # XLA's own, for GPUs, whose path would be an option, and so of the checksum.
            "jax_persistent_cache_enable_xla_caches": "none",
        }
        with _updated(settings):
            yield
        for program in Path(own).glob("*-cache"):
            target = Path(folder, program.name)
            if not target.exists() and _is_whole(program):
                with contextlib.suppress(FileExistsError):  # another process has been faster
                    os.link(program, target)


def _is_whole(program):
    """Whether it can be unpacked: an interrupt, or a full disk, leaves half of one."""
    try:
        compilation_cache.decompress_executable(program.read_bytes())
    except Exception:  # of one of three libraries, whichever JAX has found
        return False
    return True


@contextlib.contextmanager
def quick_compilation():
    """Without optimization, and every program kept; 6 s a search in place of 25.

    In processes started from here too, which read and write what this one does, in turn with it.
    """
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    cache = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_enable_xla_caches",
    )
    with _updated(settings), pytest.MonkeyPatch.context() as patch:
        for name in (*settings, *cache):
            patch.setenv(name.upper(), str(jax.config.values[name]))
        yield


@contextlib.contextmanager
def _updated(settings):
    """While JAX has these settings."""
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
