"""The compiled programs that the command keeps: read again, bounded, and never in the way."""

import os
import re
import subprocess
import sys
import textwrap

import jax
import pytest
import tiny
from helpers import python_path

from nasi_jax import runs
from nasi_jax.cli import main
from nasi_jax.devices import cache

FLAGS = ["search", *tiny.TOY, "--steps", "3"]
COMPILING = "compiling the search step of toy:Chains, init_channels 2, num_cells 1, batch_size 4"


def python(code, *arguments, home, **settings):
    """Runs code in a process of its own that compiles quickly, with a cache folder of its own."""
    settings = {
        "XDG_CACHE_HOME": home,
        "PYTHONPATH": python_path(),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": True,
        # Everything: the search step alone takes half a second on one machine, less on another.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
        **settings,
    }
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
    )
    assert process.returncode == 0, process.stderr
    return process


def search(home, out, *flags, **settings):
    """What a search that keeps its cache there says on stderr, and the genotype that it prints."""
    code = "from nasi_jax import cli; cli.main()"
    process = python(code, *FLAGS, "--out", out, *flags, home=home, **settings)
    return process.stderr.splitlines(), process.stdout.splitlines()[0]


def programs(home):
    return sorted((home / "nasi-jax" / "compiled").glob("*-cache"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The cache's home after one search, and what that search said."""
    home = tmp_path_factory.mktemp("home")
    return home, *search(home, home / "out")


def test_the_first_search_compiles(first):
    home, lines, _ = first
    assert lines[0] == COMPILING
    assert lines[1].startswith("compiled in ") and lines[1].endswith(" s")
    assert any(program.name.startswith("jit_step_fn") for program in programs(home))
    assert (home / "nasi-jax" / "compiled").stat().st_mode & 0o077 == 0


def test_the_second_search_reads_what_the_first_compiled(first, tmp_path):
    home, _, found = first
    before = programs(home)
    lines, genotype = search(home, tmp_path / "out")
    assert lines[0] == COMPILING
    assert lines[1].startswith("compiled in ") and lines[1].endswith(" s, from the cache")
    assert [line.split()[0] for line in lines[2:]] == ["searching", "drawing"]  # no noise of XLA
    assert genotype == found
    assert programs(home) == before


def test_damaged_programs_are_compiled_anew(first, tmp_path):
    home, _, found = first
    whole = {program: program.read_bytes() for program in programs(home)}
    for program, content in whole.items():
        program.write_bytes(content[:100])
    lines, genotype = search(home, tmp_path / "out")
    for program, content in whole.items():
        program.write_bytes(content)
    warnings = [line for line in lines if line.startswith("nasi: warning: ")]
    # By name, since Python shows a warning of the same text once.
    entry = re.compile("Error reading persistent compilation cache entry for '(.*?)'")
    damaged = {program.name.rsplit("-", 2)[0] for program in whole}
    assert {name for line in warnings for name in entry.findall(line)} == damaged
    (compiled,) = [line for line in lines if line.startswith("compiled in ")]
    assert compiled.endswith(" s")
    assert genotype == found


def test_no_cache_keeps_nothing(tmp_path):
    own = tmp_path / "own"
    lines, _ = search(tmp_path, tmp_path / "out", "--no-cache", JAX_COMPILATION_CACHE_DIR=own)
    assert lines[0] == COMPILING and not lines[1].endswith("from the cache")
    assert not (tmp_path / "nasi-jax").exists() and not own.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    def search(config, out, **options):
        raise ValueError("reached")

    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", None)  # that of the tests
    monkeypatch.setattr(runs.search, "search", search)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        main([*FLAGS, "--out", str(tmp_path / "out")])
    warning, reached = capsys.readouterr().err.splitlines()
    assert warning.startswith("nasi: warning: nothing that is compiled will be kept: [Errno ")
    assert reached == "nasi: error: reached"
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_the_folder_keeps_to_its_size(tmp_path):
    """A program is about 2 kB here."""
    code = """
        import sys, warnings
        from pathlib import Path

        import jax

        from nasi_jax.devices import cache

        warnings.simplefilter("error")
        cache.MAX_BYTES = 10_000
        folder = Path(sys.argv[1])
        cache.turn_on(folder)
        for number in range(20):
            jax.jit(lambda x, n=number: x * n + n)(1.0)
        print(sum(program.stat().st_size for program in folder.glob("*-cache")))
    """
    process = python(code, tmp_path / "folder", home=tmp_path)
    assert 5_000 < int(process.stdout) <= 10_000


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (tmp_path / name).write_bytes(b"")
    cache.turn_on(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["whole-atime", "whole-cache"]
    assert settings == {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_compilation_cache_max_size": 2 * 1024**3,
    }
