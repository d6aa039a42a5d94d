"""Several devices find what one does, each with its part of the work.

The devices are eight threads of one CPU in a process of their own, which computes in float64, where
sums in another order differ by some 1e-15, but for one test.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_one_line, flat, on_devices, random_batch, relative_error
from toy import Chains

from nasi_jax import device_mesh, runs, search_space
from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.config import ScoreConfig, SearchConfig, SelectConfig
from nasi_jax.devices.mesh import along, parse, sizes
from nasi_jax.kernels import batch_gradient
from nasi_jax.search import adaptive, nasi, one_step_ascent, run
from nasi_jax.search.objective import Constraint, ConstraintState
from nasi_jax.training import trainer
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.types import Batch, NetworkSpec

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 11
"""A multiple of no number of devices."""
SIZES: dict[str, Any] = {"init_channels": 2, "num_cells": 1, "image_size": 8, "seed": 2}
IN_TOY: dict[str, Any] = {**SIZES, "space": "toy:Chains", "norm": "none", "batch_size": 8}
SCORES: dict[str, Any] = {"proxies": ("batch_gradient", "grad_norm")}
OF_FEW = ("none", "skip_connect", "nor_conv_1x1")
SELECT = SelectConfig(
    **SIZES, **SCORES, ops=OF_FEW, batch_size=8, budget=16, population=4, tournament=2
)
TRAIN = TrainConfig(
    **SIZES, space="toy:Chains", batch_size=480, epochs=1, crop="none", learning_rate=0.01
)
CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"


def run_command(case, out, **options):
    """Its numbers and texts, on which mesh, and the FLOPs of a device in its largest program."""
    compile_, flops = jax.stages.Lowered.compile, [0.0]

    def counted(self, *args, **kwargs):
        program = compile_(self, *args, **kwargs)
        flops.append(program.cost_analysis()["flops"])
        return program

    with mock.patch.object(jax.stages.Lowered, "compile", counted):
        numbers, texts, mesh = case.command(case, out, **options)
    # A class of this file is no class of the process that reads it, which imports it otherwise.
    return SimpleNamespace(numbers=flat(numbers), texts=texts, mesh=mesh, flops=max(flops))


def by_search(case, out, **options):
    result = runs.search.search(case.config, out, **options)
    return result["alpha"], result["text"], result["mesh"]


def by_score(case, out, **options):
    scores = runs.score.score(case.config, out / "scores.csv", **options)
    return scores.values, scores.genotypes, json.loads((out / "scores.json").read_text())["mesh"]


def by_select(case, out, **options):
    result = runs.select.select(case.config, out, **options)
    return result["scores"], (result["text"], result["number"]), result["mesh"]


def by_compare(case, out, **options):
    result = runs.compare.compare(case.config, out, **options)
    return _numbers(out / "compare.csv"), result["reference"], result["mesh"]


def by_rank(case, out, **options):
    result = runs.rank.rank(case.config, out, **options)
    return _numbers(out / "scores.csv"), "", result["mesh"]


def _numbers(path):
    """The scores in a file, a row for each architecture."""
    rows = csv.DictReader(path.read_text().splitlines())
    return [[float(row[name]) for name in SCORES["proxies"]] for row in rows]


def by_train(case, out, **options):
    genotype = runs.search.read_genotype(case.genotype, case.config.space)
    summary = runs.train.train(genotype, case.config, out, **options)
    columns = next(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return [float(columns[name]) for name in ("train_loss", "test_loss")], "", summary["mesh"]


Axes = dict[str, int]
ONE, TWO, FOUR, EIGHT = ({"sample": size} for size in (1, 2, 4, 8))
BOTH = {"data": 4, "sample": 2}
HALF, QUARTER, EIGHTH = ({"data": size} for size in (2, 4, 8))


class Case(NamedTuple):
    """A command, the meshes that it has, and those that it has before and after it is stopped."""

    command: Callable[..., Any]
    config: Any
    meshes: tuple[Axes, ...]
    stopped: tuple[tuple[Axes, Axes], ...] = ()
    genotype: str = "chain:conv,conv"


CASES = {
    "search": Case(
        by_search,
        SearchConfig(**IN_TOY, variant="nasi-fix", steps=STEPS),
        (EIGHT, BOTH),
        ((BOTH, ONE),),
    ),
    "score": Case(by_score, ScoreConfig(**IN_TOY, **SCORES, num_archs=4), (FOUR,), ((TWO, ONE),)),
    "select": Case(
        by_select,
        SelectConfig(**IN_TOY, **SCORES, method="random", budget=3, population=2, tournament=2),
        (),
        ((ONE, TWO),),
    ),
    "train": Case(by_train, TRAIN, (EIGHTH,), ((HALF, ONE),)),
}
SLOW = {
    "scores with batch statistics": Case(
        by_score, ScoreConfig(**SIZES, **SCORES, ops=OF_FEW, batch_size=8, num_archs=4), (FOUR,)
    ),
    "training with batch statistics": Case(
        by_train, dataclasses.replace(TRAIN, space="nasbench201"), (EIGHTH,), genotype=CELL
    ),
    **{
        method: Case(
            by_select,
            dataclasses.replace(SELECT, method=method, archs_per_call=number),
            (TWO, EIGHT),
            ((EIGHT, ONE),),
        )
        # A random selection looks at as many on each device.
        for method, number in (("random", 1), ("evolution", 8), ("prune", 8))
    },
}


class Stopped(Exception):
    """What a run is ended with."""


@contextlib.contextmanager
def in_float64():
    """Has the commands compute in float64, keep every step, and draw nothing."""

    def spec(**settings):
        return NetworkSpec(**settings | {"dtype": jnp.float64, "param_dtype": jnp.float64})

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        for module in (runs.search, runs.score, trainer):
            stack.enter_context(mock.patch.object(module, "NetworkSpec", spec))
        for module, unit in (
            (runs.search, "CHECKPOINTS"),
            (runs.train, "CHECKPOINTS"),
            (runs.score, "WRITES"),
            (runs.select, "WRITES"),
        ):
            stack.enter_context(mock.patch.object(module, f"_SECONDS_BETWEEN_{unit}", 0))
        for module, name in (
            (runs.search, "_write"),
            (runs.select, "_draw"),
            (runs.train, "_draw"),
        ):
            stack.enter_context(mock.patch.object(module, name))
        yield


def stopper():
    """Ends a run when it tells of its work for the second time."""
    told = []

    def stop(progress):
        told.extend([progress.stage] if progress.stage.endswith("ing") and progress.done else [])
        if len(told) == 2:
            raise Stopped

    return stop


def ran(cases, out):
    """What each case finds by its meshes; by a pair of them where it goes on with the second."""
    found = {}
    with in_float64():
        for name, case in cases.items():
            each = found[name] = {}
            for axes in (ONE, *case.meshes):
                place = out / f"{name} {axes}"
                each[str(axes)] = run_command(case, place, mesh=device_mesh(**axes))
            for first, second in case.stopped:
                place = out / f"{name} {first} {second}"
                with pytest.raises(Stopped):
                    run_command(case, place, mesh=device_mesh(**first), on_progress=stopper())
                mesh = device_mesh(**second)
                each[f"{first} {second}"] = run_command(case, place, mesh=mesh, resume=True)
            each["default"] = run_command(case, out / f"{name} default")
    return found


def small(name):
    return search_space(name, init_channels=2, num_cells=3 if name == "darts" else 1)


def searched(space, axes, dtype=jnp.float64, order=1, **settings):
    """alpha, x, nu and the genotype that is selected, with the examples in this order or reversed.

    nu follows x from 0 on, and caps it at some steps.
    """

    def start(sample):
        # Each in a buffer of its own, which a step takes over.
        return ConstraintState(jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.ones((), dtype))

    algorithm = nasi(
        space,
        num_classes=4,
        optimizer=one_step_ascent(STEPS),
        proxy=functools.partial(batch_gradient, derivative="forward"),
        penalty=1.5,
        constraint=Constraint(start, adaptive(0.0).update),
        spec=NetworkSpec(dtype=dtype, param_dtype=dtype),
        **settings,
    )

    def batches(step):
        size = 32 if space.name == "transnas101" else 8
        batch = random_batch(step, 8, image_size=size)
        return Batch(batch.inputs[::order].astype(dtype), batch.labels[::order])

    found = run(jax.random.key(0), algorithm, batches, STEPS, mesh=device_mesh(**axes))
    numbers = {"alpha": found.state.alpha, "x": found.info.trace, "nu": found.info.constraint}
    return jax.device_get(numbers), space.discretize(found.state.alpha).to_text()


def searches(space, *meshes):
    """What is found by mesh, in float64."""
    with jax.enable_x64(True):
        return {str(axes): searched(space, axes) for axes in (ONE, *meshes)}


def rounding():
    """In float32 the relative errors of alpha, x and nu, by mesh, and of another order on one."""
    space = Chains()
    expected, _ = searched(space, ONE, jnp.float32)

    def errors(*arguments):
        found, _ = searched(space, *arguments)
        return {name: relative_error(found[name], expected[name]) for name in expected}

    return {
        "order": errors(ONE, jnp.float32, -1),
        **{str(axes): errors(axes, jnp.float32) for axes in (EIGHT, EIGHTH, BOTH)},
    }


SCRIPT = """
    import pickle, sys
    from pathlib import Path

    import jax
    import test_mesh as test

    out = Path(sys.argv[1])
    found = eval(sys.argv[2], {**vars(test), "out": out})
    (out / "found").write_bytes(pickle.dumps(jax.device_get(found)))
"""


def on_eight(out, expression):
    """What an expression of this file comes to where there are eight devices."""
    folder = os.path.dirname(__file__)
    process = on_devices(8, SCRIPT, out, expression, folders=[folder])
    assert process.returncode == 0, process.stderr
    return pickle.loads((out / "found").read_bytes())


def assert_as_one(found, rtol=1e-9):
    """Whatever the mesh, and wherever a run went on with another."""
    one = found[str(ONE)]
    assert one.mesh == {"data": 1, "sample": 1} and np.all(np.isfinite(one.numbers))
    for name, each in found.items():
        assert each.texts == one.texts, name
        assert relative_error(each.numbers, one.numbers) < rtol, name


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return on_eight(tmp_path_factory.mktemp("found"), "ran(CASES, out)")


@pytest.mark.parametrize("name", CASES)
def test_a_command_finds_what_it_finds_on_one_device(found, name):
    assert_as_one(found[name])


@pytest.mark.parametrize("name", CASES)
def test_a_record_names_the_mesh(found, name):
    for axes in CASES[name].meshes:
        assert found[name][str(axes)].mesh == {"data": 1, "sample": 1} | axes
    for first, second in CASES[name].stopped:
        assert found[name][f"{first} {second}"].mesh == {"data": 1, "sample": 1} | second


def test_all_devices_are_taken_where_there_is_work_for_them(found):
    taken = {name: each["default"].mesh for name, each in found.items()}
    assert taken == {
        "search": {"data": 1, "sample": 8},
        "score": {"data": 1, "sample": 4},  # architectures
        "select": {"data": 1, "sample": 3},  # networks
        "train": {"data": 8, "sample": 1},
    }


@pytest.mark.parametrize(
    ("name", "axes", "share"),
    [
        ("search", EIGHT, 1),  # of eight samples, where one device has one
        ("search", BOTH, 4),
        ("score", FOUR, 1),
        ("train", EIGHTH, 8),
    ],
)
def test_a_device_has_its_part_of_the_work(found, name, axes, share):
    one, several = (found[name][str(each)].flops for each in (ONE, axes))
    assert several == pytest.approx(one / share, rel=0.2)


def assert_searches_agree(found):
    expected, text = found[str(ONE)]
    below = expected["x"] < expected["nu"]
    assert below.any() and not below.all()
    for axes, (numbers, selected) in found.items():
        assert selected == text, axes
        for key in expected:
            assert relative_error(numbers[key], expected[key]) < 1e-9, (axes, key)


def test_samples_are_taken_in_the_order_of_steps(tmp_path):
    """With a nu that follows x, and the largest gradient so far as the unit."""
    assert_searches_agree(on_eight(tmp_path, "searches(Chains(), BOTH)"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCH_SPACES)
def test_every_space_on_several_devices(name, tmp_path):
    assert_searches_agree(on_eight(tmp_path, f"searches(small({name!r}), TWO, FOUR, EIGHT, BOTH)"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_batch_statistics_and_selections_on_several_devices(name, tmp_path):
    assert_as_one(on_eight(tmp_path, f"ran({{{name!r}: SLOW[{name!r}]}}, out)")[name])


def test_float32_rounds_as_on_one_device(tmp_path):
    """Where the examples are in another order; docs/scale.md has the figures."""
    found = on_eight(tmp_path, "rounding()")
    order = found.pop("order")
    for axes, errors in found.items():
        for name, error in errors.items():
            assert error < 4 * order[name], (axes, name)


def test_text_and_sizes():
    for text in ("data=1,sample=1", "sample=1,data=1", "data=1", "sample=1"):
        assert sizes(parse(text)) == {"data": 1, "sample": 1}
    assert sizes(None) == {"data": 1, "sample": 1}
    assert along("sample", 1) is None


@pytest.mark.parametrize(
    "text", ["", "4", "batch=2", "data=2,data=2", "data=2 sample=2", "data=-1", "data=1,"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert_one_line(caught, "a mesh must be data=N, sample=N, or data=N,sample=N, got", text)


@pytest.mark.parametrize("axes", [{"data": 1000}, {"data": 500, "sample": 2}, {"sample": 0}])
def test_more_devices_than_there_are_are_refused(axes):
    with pytest.raises(ValueError) as caught:
        device_mesh(**axes)
    found = ",".join(f"{name}={axes.get(name, 1)}" for name in ("data", "sample"))
    assert_one_line(caught, "at most 1, the devices (cpu 0), got " + found)


def test_other_meshes_are_refused():
    for mesh in (jax.make_mesh((1,), ("data",)), jax.make_mesh((1, 1), ("sample", "data"))):
        with pytest.raises(ValueError) as caught:
            sizes(mesh)
        assert_one_line(caught, "a mesh must have the axes sample and data, both Auto")


REFUSED = """
    import sys
    from pathlib import Path

    import test_mesh as test
    from nasi_jax import device_mesh, runs

    evolution = test.SLOW["evolution"]
    for case, axes in (
        (test.CASES["search"], {"data": 3}),
        (test.CASES["score"], {"data": 2}),
        (evolution, {"data": 2}),
        (evolution._replace(config=test.SELECT), {"sample": 2}),
        (test.CASES["train"], {"sample": 2}),
        (test.CASES["train"], {"data": 7}),
    ):
        try:
            test.run_command(case, Path(sys.argv[1]), mesh=device_mesh(**axes))
        except ValueError as error:
            print(error)
    assert not list(Path(sys.argv[1]).iterdir())
"""


def test_what_a_command_cannot_spread_is_refused(tmp_path):
    process = on_devices(8, REFUSED, tmp_path, folders=[os.path.dirname(__file__)])
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "batch_size must be a multiple of the 3 devices along data, got 8",
        "architectures to score are spread over the axis sample of a mesh alone, got data=2",
        "architectures to score are spread over the axis sample of a mesh alone, got data=2",
        "evolution takes at most 1 devices along sample, as many as it proposes networks at a time "
        "(--archs-per-call), got 2",
        "batches to train on are spread over the axis data of a mesh alone, got sample=2",
        "batch_size must be a multiple of the 7 devices along data, got 480",
    ]
