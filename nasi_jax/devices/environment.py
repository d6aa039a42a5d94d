"""Checks of the environment: versions of Python, JAX and its plugins, and the devices.

Imports nothing of JAX by itself, and nothing that an older Python would stumble over, so that it
can say in words what is wrong with them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

PYTHON = (3, 11)
"""The lowest Python."""

JAX = (0, 10, 2)
"""The lowest JAX."""

_LONGEST = 2_000
"""Characters of an error; what a spoilt file holds may be in it."""
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")

_ACCELERATORS = {
    ("an NVIDIA GPU", "cuda13"): ("proc/driver/nvidia/version", "dev/nvidia0"),
    ("a TPU", "tpu"): ("dev/accel0", "dev/vfio/0"),
}
"""What shows that a machine has a kind of device, by its name and the extra that JAX needs."""


def require_versions(python: tuple[int, ...] = sys.version_info[:2]) -> None:
    """Checks that Python and JAX are not too old for this package.

    Args:
      python: the version of Python.

    Raises:
      ImportError: if one is, or JAX cannot be imported at all; in one line.
    """
    if python < PYTHON:
        raise ImportError(
            f"nasi-jax needs Python {_text(PYTHON)} or newer, this is {_text(python)}"
        )
    try:
        with warnings.catch_warnings():
            if is_the_command():  # where `devices` says in a line which plugin does not fit
                warnings.simplefilter("ignore", RuntimeWarning)
            import jax
    # A jaxlib that does not fit raises what it likes.
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"nasi-jax needs JAX, which cannot be imported: {_line(error)}"
        ) from error
    if jax.__version_info__ < JAX:
        raise ImportError(
            f"nasi-jax needs jax {_text(JAX)} or newer, this is {jax.__version__}: "
            "pip install --upgrade jax"
        )


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def is_the_command() -> bool:
    """Whether this process is `nasi`, or `python -m nasi_jax`."""
    return Path(sys.argv[0]).name == "nasi" or sys.orig_argv[1:3] == ["-m", "nasi_jax"]


def fail(message: str, status: int) -> NoReturn:
    """Prints a one-line error on stderr, of no more than a screenful, and exits."""
    line = " ".join(message.split())
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    print(f"nasi: error: {shown}", file=sys.stderr)
    raise SystemExit(status)


def devices(warn: Callable[[str], None]) -> list[Any]:
    """The devices that JAX computes on; initializes JAX's backend.

    Args:
      warn: called with what JAX says of devices and plugins that it cannot use, a line each.

    Raises:
      ValueError: if JAX cannot use what it was told to, or there is a plugin that does not fit.
    """
    import jax

    platforms = jax.config.values["jax_platforms"] or ""
    if platforms != "cpu":
        _require_fitting_plugins()
    with _said_to(warn if not platforms else lambda _: None) as said:
        try:
            return jax.devices()
        # JAX raises an AssertionError where it is told to use a GPU and there is none.
        except (RuntimeError, AssertionError) as error:
            reason = said[-1] if said else _line(error)
            if isinstance(error, AssertionError) and not said:
                reason = "there is no such device, or no plugin for it"
            raise ValueError(
                f"JAX cannot compute on {platforms or 'this machine'}: {reason}"
            ) from error


def _require_fitting_plugins(version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Checks that JAX's plugins are of the release of jaxlib, which would not use others."""
    for plugin in _PLUGINS:
        try:
            theirs, ours = version(plugin), version("jaxlib")
        except importlib.metadata.PackageNotFoundError:
            continue
        if _release(theirs) != _release(ours):
            extra = plugin.split("-")[1]
            raise ValueError(
                f"{plugin} {theirs} does not fit jaxlib {ours}: pip install --upgrade "
                f"'jax[{extra}]', or uninstall it"
            )


def _release(version: str) -> str:
    """The release numbers of a version."""
    found = re.match(r"[0-9.]*[0-9]", version)
    return found[0] if found else version


@contextlib.contextmanager
def _said_to(warn: Callable[[str], None]) -> Iterator[list[str]]:
    """Hands on what JAX logs of devices, each in one line; it logs tracebacks."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            parts = [record.getMessage(), *([_line(error)] if error else [])]
            said.append(": ".join(parts))
            # Or `idle_accelerator` says so, and what to do.
            if "may be present on this machine" not in said[-1]:
                warn(said[-1])

    logger, handler = logging.getLogger("jax._src.xla_bridge"), Handler(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def idle_accelerator(platform: str, root: Path = Path("/")) -> str | None:
    """A note for a machine with an accelerator that JAX does not use; None elsewhere.

    Args:
      platform: what JAX computes on.
      root: where the machine's files are.

    Returns:
      A line that names the device and what to install; None if there is nothing to say.
    """
    import jax

    if platform != "cpu" or jax.config.values["jax_platforms"]:  # or the user chose the CPU
        return None
    for (name, extra), signs in _ACCELERATORS.items():
        if any((root / sign).exists() for sign in signs):
            return (
                f"this machine has {name}, and JAX computes on its CPU: to use the former, "
                f"pip install 'nasi-jax[{extra}]'"
            )
    return None
