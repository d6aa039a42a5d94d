"""The commands compute what they did when tests/oracle.py was last run."""

import json
import math

import oracle
import pytest

KEPT = json.loads(oracle.FILE.read_text())
pytestmark = pytest.mark.usefixtures("keys_used_once")

RELATIVE = 1e-5
"""Between machines and between releases of JAX, all in float32."""

OF_TERMS = {"alpha": 1.0, "objective": 1000.0}
"""The size of the terms that these are sums of, where the terms cancel."""

LOOSER = {"gradient_norm": 10.0, "zico": 1000.0}
"""Second derivatives round more, and zico divides by differences of two gradients, some near 0:
its scores were 0.3% apart in jax 0.10.2 and 0.12.0."""


def first_difference(kept, found, relative, where=()):
    """The path to the first entry that differs, and both values; None where none does."""
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        pairs = [(key, kept[key], found[key]) for key in kept]
    elif isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        pairs = [(index, *pair) for index, pair in enumerate(zip(kept, found, strict=True))]
    elif isinstance(kept, float) and isinstance(found, float):
        absolute = relative * max((OF_TERMS.get(key, 0.0) for key in where), default=0.0)
        relative *= max((LOOSER.get(key, 1.0) for key in where), default=1.0)
        same = math.isclose(kept, found, rel_tol=relative, abs_tol=absolute)
        return None if same else (*where, kept, found)
    else:
        return None if kept == found else (*where, kept, found)
    differences = (first_difference(a, b, relative, (*where, key)) for key, a, b in pairs)
    return next(filter(None, differences), None)


@pytest.mark.parametrize("name", oracle.CASES)
def test_the_same_as_before(name, tmp_path):
    kept = KEPT[name]
    assert kept["command"] == oracle.CASES[name]
    relative = 0.0 if oracle.machine() == kept["machine"] else RELATIVE
    difference = first_difference(kept["rows"], oracle.run(name, tmp_path), relative)
    assert difference is None, f"row {difference[0] + 1} differs: {difference[1:]}"


def test_the_first_difference_is_named():
    kept = [{"x": 1.0, "genotype": "a"}, {"x": 2.0, "genotype": "b"}, {"x": 3.0, "genotype": "c"}]
    found = [{"x": 1.000001, "genotype": "a"}, {"x": 2.0, "genotype": "d"}, {"x": 4.0}]
    assert first_difference(kept, found, 1e-5) == (1, "genotype", "b", "d")
    assert first_difference(kept, found, 0.0) == (0, "x", 1.0, 1.000001)
    assert first_difference(kept, kept[:2], 0.0) == (kept, kept[:2])
    small = [{"alpha": {"ops": 1e-9}}], [{"alpha": {"ops": 2e-9}}]
    assert first_difference(*small, 1e-5) is None
    assert first_difference(*small, 0.0) == (0, "alpha", "ops", 1e-9, 2e-9)
