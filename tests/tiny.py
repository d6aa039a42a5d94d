"""A search small enough for a test, and compilation without optimisation that is kept on disk."""

import contextlib
import shlex

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from nasi_jax.config import SearchConfig

CONFIG = SearchConfig(
    ops=("skip_connect", "avg_pool_3x3"),
    norm="none",
    init_channels=2,
    num_cells=1,
    image_size=8,
    batch_size=4,
    steps=3,
    penalty=2.0,
    seed=2,
)

FLAGS = shlex.split(
    "search --ops skip_connect avg_pool_3x3 --norm none --init-channels 2 --num-cells 1 "
    "--image-size 8 --batch-size 4 --steps 3 --penalty 2 --seed 2"
)
"""The command line of `CONFIG`."""


@contextlib.contextmanager
def quick_compilation(folder):
    """Here and in processes started from here; 6 s a search in place of 25."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in settings}
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
