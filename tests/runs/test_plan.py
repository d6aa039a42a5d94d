"""Plans of runs: their programs, what of them fits, and what is refused early."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy
from helpers import assert_one_line

from nasi_jax import data, runs
from nasi_jax.config import ScoreConfig, SearchConfig
from nasi_jax.devices import forecast
from nasi_jax.runs.plan import Device, ImageSet, Job, device_named, largest_that_fits, plan
from nasi_jax.search import loop
from nasi_jax.training.recipes import TrainConfig

SIZES = {"space": "toy:Chains", "init_channels": 2, "num_cells": 1, "image_size": 8}
SEARCH = SearchConfig(**SIZES, norm="none", batch_size=4, steps=5, penalty=2.0).resolved()
SCORE = ScoreConfig(**SIZES, norm="none", batch_size=4, num_archs=3, proxies=("grad_norm",))
TRAIN = TrainConfig(**SIZES, epochs=2, batch_size=300, crop="none")
IMAGES = ImageSet(10, 1500)
CHAIN = toy.Chain(("conv", "skip"))
JOBS = {
    "search": Job(SEARCH, IMAGES),
    "score": Job(SCORE, IMAGES),
    "train": Job(TRAIN, IMAGES, CHAIN),
}
GPU = Device("gpu", "a card", None)
"""Whose programs the CPU's compiler stands in for."""


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compilation):
    """No test here looks at how fast a program is."""


def test_a_plan_has_the_numbers_of_the_program_that_a_search_runs():
    """Which is compiled with the arrays of its first step."""
    _, algorithm = runs.search.build(SEARCH, 10)
    batch = data.load("digits", image_size=8).batch(jax.random.key(0), 0, SEARCH.batch_size)
    state = algorithm.init(jax.random.key(0), batch)
    step = jax.jit(algorithm.step, donate_argnums=1)
    memory = step.lower(jax.random.key(1), state, batch).compile().memory_analysis()
    result = plan(JOBS["search"], GPU)
    (row,) = result["rows"]
    assert row["program"]["arguments"] == memory.argument_size_in_bytes
    assert row["program"]["temporaries"] == memory.temp_size_in_bytes
    assert (
        row["peak_bytes"]
        == row["program"]["total"]
        == (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes
        )
    )
    assert row["calls"] == 5 and row["fits"] is None and result["largest"] == {}
    assert row["seconds"] is None and result["time"] == "no time: no a card was ever measured"


@pytest.mark.parametrize("verb", JOBS)
def test_more_images_need_more_memory(verb, monkeypatch):
    """And the seconds of the run are those of its calls, where a call was measured."""
    monkeypatch.setattr(forecast, "seconds_of", lambda footprint, kind: 1e-9 * footprint.total)
    job = JOBS[verb]
    sizes = [job.config.batch_size * factor for factor in (1, 2)]
    compiled = []
    result = plan(job, device_named(None), vary={"batch_size": sizes}, on_compile=compiled.append)
    assert compiled == [{}, {"batch_size": sizes[1]}]  # each program once
    same, first, second = result["rows"]
    assert same == first and second["changes"] == {"batch_size": sizes[1]}
    assert second["program"]["total"] > first["program"]["total"]
    assert second["peak_bytes"] >= first["peak_bytes"] > first["program"]["total"]
    assert first["seconds_of_call"] == pytest.approx(1e-9 * first["program"]["total"])
    assert first["seconds"] == pytest.approx(first["calls"] * first["seconds_of_call"])


def test_calls_of_a_run():
    assert (JOBS["search"].calls(), JOBS["train"].calls()) == (5, 2 * 5)
    assert JOBS["search"].altered({"samples_per_step": 2}).calls() == 3
    assert JOBS["score"].altered({"archs_per_call": 2, "seeds": 4}).calls() == 8


def test_devices_share_the_samples_of_a_search_and_the_batch_of_a_training():
    search, training = (
        plan(JOBS[verb], GPU, vary={"num_devices": [3]}) for verb in ("search", "train")
    )
    one, three = search["rows"]
    assert three["changes"] == {"num_devices": 3} and one["program"] == three["program"]
    assert (one["calls"], three["calls"]) == (5, 2)
    one, three = training["rows"]
    assert one["calls"] == three["calls"]
    part = JOBS["train"].altered({"batch_size": 100})
    assert plan(part, GPU)["rows"][0]["program"] == three["program"] != one["program"]
    assert JOBS["score"].altered({"archs_per_call": 1, "num_devices": 2}).calls() == 2
    assert JOBS["train"].altered({"num_devices": 4}).bounds("batch_size") == (4, 1500)


@pytest.mark.parametrize(
    ("verb", "number", "message"),
    [
        ("search", 0, "num_devices must be at least 1, got 0"),
        ("train", 7, "batch_size must be a multiple of the 7 devices, got 300"),
    ],
)
def test_devices_that_cannot_share_are_refused(verb, number, message):
    with pytest.raises(ValueError) as caught:
        plan(JOBS[verb], GPU, vary={"num_devices": [number]})
    assert_one_line(caught, message)


def test_the_largest_batch_fits_and_the_next_does_not():
    job = JOBS["search"]
    sizes = plan(job, GPU, vary={"batch_size": [13, 14]})["rows"]
    limit = sizes[1]["peak_bytes"]
    assert limit < sizes[2]["peak_bytes"]
    memory = next(count for count in range(limit, 2 * limit) if GPU.usable(count) == limit)
    result = plan(job, GPU, memory=memory)
    assert result["largest"]["batch_size"] == (13, 14)
    assert result["usable_memory"] == limit and result["rows"][0]["fits"]
    fits, fails = result["largest"]["samples_per_step"]
    assert 1 <= fits <= 5 and (fails is None) == (fits == 5)


@pytest.mark.parametrize(
    ("needed", "limit", "step", "most", "expected"),
    [
        (lambda n: 100 + 7 * n, 800, 1, 1000, (100, 101)),
        (lambda n: 100 + 7 * n, 799, 1, 1000, (99, 100)),
        (lambda n: 100 + 7 * n, 800, 8, 1000, (96, 104)),
        (lambda n: 100 + 7 * n, 1e9, 1, 1000, (1000, None)),
        (lambda n: 100 + 7 * n, 106, 1, 1000, (None, 1)),
        (lambda n: n**1.2, 50, 1, 1000, (26, 27)),
        (lambda n: 100, 99, 1, 4, (None, 1)),
    ],
)
def test_the_largest_value_by_few_compilations(needed, limit, step, most, expected):
    asked = []

    def compiled(value):
        asked.append(value)
        return needed(value)

    start = 4 * step if most > 4 else 2
    found = largest_that_fits(compiled, limit, {start: needed(start)}, step=step, most=most)
    assert found == expected
    assert len(asked) == len(set(asked)) <= 5 and all(value % step == 0 for value in asked)


def test_a_training_keeps_whole_groups():
    config = dataclasses.replace(TRAIN, norm_group=30, micro_batches=2)
    assert Job(config, IMAGES, CHAIN).bounds("batch_size") == (60, 1500)
    assert JOBS["search"].bounds("samples_per_step") == (1, 5)


def test_images_that_are_not_there(monkeypatch):
    def load(*_, **__):
        raise AssertionError("they were opened")

    monkeypatch.setattr(data, "load", load)
    recipe = dataclasses.replace(TRAIN, data="imagenet2012")
    assert runs.plan.image_set(recipe) == ImageSet(1000, 1_281_167)
    assert runs.plan.image_set(dataclasses.replace(SEARCH, data="./x"), (3, 70)) == (
        3,
        70,
        np.uint8,
    )


def test_images_that_are_there():
    assert runs.plan.image_set(TRAIN) == ImageSet(10, 1500, np.float32)
    assert runs.plan.image_set(SEARCH).num_examples == 1797


def test_a_gpu_keeps_a_part_of_its_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert GPU.usable(8_000) == 6_000
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert GPU.usable(8_000) == 4_000
    assert Device("tpu", "a chip", None).usable(8_000) == 8_000
    assert device_named("cpu").usable(8 * 10**9) == 8 * 10**9 - forecast.imported_bytes()


def test_an_unknown_device_and_setting_are_refused():
    with pytest.raises(ValueError) as caught:
        device_named("abacus")
    assert_one_line(caught, "device must be cpu, which is at hand, or one of h100, v5e", "'abacus'")
    with pytest.raises(ValueError, match="unknown setting batches"):
        plan(JOBS["search"], GPU, vary={"batches": [1]})


PROGRAM = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=4_000_000_000))


def test_what_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(loop, "memory_left", lambda: 3_000_000_000)
    with pytest.raises(loop.TooLarge) as caught:
        loop.require_memory(PROGRAM, "batch_size", 64)
    assert_one_line(
        caught, "takes 4 GB", "has 3 GB left", "a batch_size of about 48 in place of 64"
    )
    monkeypatch.setattr(loop, "memory_left", lambda: 10)
    with pytest.raises(loop.TooLarge, match=r"left$"):  # and nothing of it would fit
        loop.require_memory(PROGRAM, "batch_size", 64)
    for enough in (None, 4_000_000_000):
        monkeypatch.setattr(loop, "memory_left", lambda enough=enough: enough)
        loop.require_memory(PROGRAM, "batch_size", 64)
