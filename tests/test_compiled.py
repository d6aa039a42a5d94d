"""The programs that the tests keep: whole ones only, in one folder for all processes."""

import os
import time

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nasi_jax.devices import cache


@pytest.fixture
def all_kept(monkeypatch):
    """However fast the machine compiles."""
    monkeypatch.setattr(compiled, "SECONDS", 0.0)


def compute(number):
    """Compiles the same program each time that it is called."""
    return jax.jit(lambda x: jnp.cos(x) * number)(np.ones(3, np.float32))


def programs(folder):
    return {path.name for path in folder.iterdir()}


def counted(number):
    with cache.counted() as events:
        compute(number)
    return events[cache.HIT], events[cache.MISS]


def test_a_program_is_compiled_once(tmp_path, all_kept):
    with compiled.kept(tmp_path):
        assert counted(2.0) == (0, 1)
        assert len(programs(tmp_path)) == 1  # its own folder; nobody can read half of a program
    before = programs(tmp_path)
    with compiled.kept(tmp_path):
        assert counted(2.0) == (1, 0)
        assert counted(3.0) == (0, 1)  # another program is compiled
    assert before < programs(tmp_path)


def test_half_a_program_is_not_kept(tmp_path, all_kept):
    with compiled.kept(tmp_path):
        compute(2.0)
        own = tmp_path / programs(tmp_path).pop()
        (half,) = own.iterdir()
        compute(3.0)
        (whole,) = programs(own) - {half.name}
        half.write_bytes(half.read_bytes()[:-9])
    assert programs(tmp_path) == {whole}


def test_of_two_processes_the_first_gives_a_program(tmp_path, all_kept):
    with compiled.kept(tmp_path):
        with compiled.kept(tmp_path):
            compute(2.0)
        first = {name: (tmp_path / name).stat().st_ino for name in programs(tmp_path)}
        assert counted(2.0) == (0, 1)  # links are made at the beginning
    found = {name: (tmp_path / name).stat().st_ino for name in programs(tmp_path)}
    assert found.items() <= first.items() and found


def test_what_is_old_goes(tmp_path, all_kept):
    with compiled.kept(tmp_path):
        compute(2.0)
        compute(3.0)
    old, young = programs(tmp_path)
    of_a_killed_process = tmp_path / "killed"
    of_a_killed_process.mkdir()
    (of_a_killed_process / old).touch()
    long_ago = time.time() - compiled.MONTH - 1
    for path in (tmp_path / old, of_a_killed_process):
        os.utime(path, (long_ago, long_ago))
    with compiled.kept(tmp_path):
        pass
    assert programs(tmp_path) == {young}
