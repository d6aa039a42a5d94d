"""What all tests have in common: JAX's strict settings, double precision, the data's folder."""

import gc
import os

from xla_flags import known_flags

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
# Before anything imports JAX, and for processes started from here, those of pytest-xdist among
# them: compiles three times as fast, to the same mathematics. Set XLA_FLAGS to nothing for what
# users run.
os.environ["XLA_FLAGS"] = known_flags()
# For the processes of pytest-xdist: glibc else keeps what compilations have freed, for each of
# their threads, so that a process had 11 GB at the end. With one arena compilations take longer.
os.environ.setdefault("MALLOC_ARENA_MAX", "4")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000")

import compiled
import jax
import pytest
from helpers import DATA_DIR
from jax.experimental.compilation_cache import compilation_cache

from nasi_jax.report.correlation import correlations

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing allocates so much that collections took 13% of the time of the tests of scores.
gc.set_threshold(50_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(pytestconfig):
    """Programs of earlier runs of the tests are read, and those of this one kept."""
    with compiled.kept(pytestconfig.cache.mkdir(compiled.NAME)):
        yield


@pytest.fixture(scope="session", autouse=True)
def few_resamples():
    """Intervals of correlations by 50 resamples where the caller names no number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(correlations.__kwdefaults__, "num_resamples", 50)
        yield


@pytest.fixture(autouse=True)
def settings_restored():
    """What a command has JAX do in this process ends with the test that called the command."""
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_enable_compilation_cache",
    )
    before = {name: jax.config.values[name] for name in names}
    yield
    changed = {name for name in names if jax.config.values[name] != before[name]}
    for name in changed:
        jax.config.update(name, before[name])
    if changed:
        compilation_cache.reset_cache()


@pytest.fixture
def keys_used_once():
    """A key that is consumed twice is an error, in flax's own use of keys too.

    Looking for it takes a fifth of the time of what is traced, so only tests that run the commands
    in every space, or draw in every way, ask for this.
    """
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def x64():
    """Float64 for one test; flax parameters stay float32 unless `param_dtype` is passed."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests that run commands, some of them in processes of their own."""
    with compiled.quick_compilation():
        yield


@pytest.fixture(scope="module")
def unoptimized():
    """For tests whose time is XLA's, and that look at the mathematics of a program alone."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def data_dir():
    """`DATA_DIR`, where it is there."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"no folder {DATA_DIR}; set NASI_DATA to the one that holds the data")
    return DATA_DIR


@pytest.fixture(scope="session")
def data_file(data_dir):
    """Maps the name of a file in `data_dir` to its path, and skips where there is none."""

    def find(name):
        if not (data_dir / name).is_file():
            pytest.skip(f"no {data_dir / name}; set NASI_DATA to the folder that holds it")
        return data_dir / name

    return find
