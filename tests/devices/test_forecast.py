"""Forecasts of peak memory and seconds from a footprint."""

import json

import pytest

from nasi_jax.devices import forecast
from nasi_jax.devices.footprint import Footprint
from nasi_jax.devices.launches import Work

FOOTPRINT = Footprint(5, 4, 3, 2, 1, None, None, Work(10, 100, 1000, 10_000))


@pytest.fixture
def fitted(monkeypatch, tmp_path):
    """Has the forecasts read other coefficients, of this machine's CPU unless another is named."""

    def fitted(processor=None):
        content = {
            "memory": {
                "imported": 7.0,
                "coefficients": {"constant": 1.0, "instructions": 2.0, "total": 3.0},
            },
            "seconds": {
                "cpu": {
                    "coefficients": {
                        "total": 1.0,
                        "launches": 2.0,
                        "multiply_adds": 3.0,
                        "numbers": 4.0,
                    },
                    "error": 0.25,
                    "errors": {"a": 0.25, "b": -0.1},
                    "processor": processor or forecast.processor(),
                    "date": "2026-01-02",
                }
            },
        }
        path = tmp_path / "forecast.json"
        path.write_text(json.dumps(content))
        monkeypatch.setattr(forecast, "FILE", path)
        forecast._fitted.cache_clear()

    yield fitted
    forecast._fitted.cache_clear()


def test_a_cpu_has_its_coefficients_and_a_device_the_program_alone(fitted):
    fitted()
    assert FOOTPRINT.total == 9
    assert forecast.peak_bytes(FOOTPRINT, "cpu") == 1 + 2 * 10_000 + 3 * 9
    assert forecast.peak_bytes(FOOTPRINT, "gpu") == FOOTPRINT.total
    assert forecast.seconds_of(FOOTPRINT, "cpu") == 9 + 2 * 10 + 3 * 100 + 4 * 1000
    assert forecast.basis("cpu") == (
        "time by 2 runs on this cpu, 2026-01-02, from which the model is 25 % off at most"
    )


def test_a_kind_that_was_never_measured_has_memory_and_no_time(fitted):
    fitted()
    assert forecast.seconds_of(FOOTPRINT, "NVIDIA H100") is None
    assert forecast.basis("NVIDIA H100") == "no time: no NVIDIA H100 was ever measured"


def test_times_of_another_cpu_are_labelled(fitted):
    fitted("Some CPU, 64 cores")
    assert "on another cpu, Some CPU, 64 cores, 2026-01-02" in forecast.basis("cpu")


def test_the_package_has_coefficients_of_memory():
    coefficients = json.loads(forecast.FILE.read_text())["memory"]["coefficients"]
    assert coefficients.keys() == set(forecast.MEMORY)
    assert min(coefficients.values()) >= 0
    assert forecast.peak_bytes(FOOTPRINT, "cpu") > FOOTPRINT.total
