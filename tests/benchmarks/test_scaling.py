"""What a chip does as a slice grows, by programs for meshes."""

from types import SimpleNamespace

import pytest
import scaling

from nasi_jax import device_mesh
from nasi_jax.devices.launches import Traffic


def costs(multiply_adds, memory, **collectives):
    footprint = SimpleNamespace(work=SimpleNamespace(multiply_adds=multiply_adds))
    return scaling.Costs(footprint, Traffic(memory, collectives))


def test_seconds_are_of_products_or_memory_and_of_collectives():
    """At 98.5e12 multiply-adds in bfloat16, a sixth in float32, 819e9 bytes, 200e9 bytes."""
    assert scaling.seconds_of(costs(197e12, 819e9), "default") == (2.0, 0.0)
    assert scaling.seconds_of(costs(197e12, 819e9), "highest") == (12.0, 0.0)
    found = scaling.seconds_of(costs(1, 3 * 819e9, reduce=100e9, gather=300e9), "default")
    assert found == (3.0, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", scaling.PROGRAMS)
def test_every_program_compiles_for_a_mesh(name):
    """Of the one device here; work on several is in tests/devices/test_mesh.py."""
    mesh = device_mesh()
    _, make = scaling.PROGRAMS[name]
    found = scaling.costs_of(make(scaling.Config(smoke=True), mesh), mesh)
    assert found.footprint.work.multiply_adds > 1e6 and found.traffic.memory > 1e6


def test_unknown_programs_are_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["scaling.py", "--only", "serach"])
    with pytest.raises(SystemExit, match=r"no program 'serach'; known: search, .*train"):
        scaling.main()
