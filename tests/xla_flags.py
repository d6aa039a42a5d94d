"""Flags that have XLA compile the tests fast."""

import os
import subprocess
import sys

_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def known_flags():
    """`XLA_FLAGS` where it is set, else those of ours that the XLA at hand knows.

    It ends a process that gives it another one, so each is tried in a process of its own.
    """
    if "XLA_FLAGS" in os.environ:
        return os.environ["XLA_FLAGS"]
    return " ".join(_FLAGS if _are_known(*_FLAGS) else filter(_are_known, _FLAGS))


def _are_known(*flags):
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0
