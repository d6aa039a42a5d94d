"""Configurations: the paper's settings, their JSON form, and what is refused."""

import dataclasses
import json

import pytest

from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.config import CONSTRAINT_RULES, LABELS, VARIANTS, SearchConfig, from_dict, to_dict
from nasi_jax.types import DERIVATIVES, INITIALIZERS, LOSSES, NORM_MODES

NAN, INF = float("nan"), float("inf")
FIELDS = [field.name for field in dataclasses.fields(SearchConfig)]
EXPLICIT = {
    "space": "darts",
    "variant": "nasi-fix",
    "data": "gaussian",
    "labels": "random",
    "steps": 7,
    "batch_size": 3,
    "penalty": 0.5,
    "constraint": 12,
    "constraint_rule": "quantile",
    "constraint_quantile": 0.25,
    "constraint_samples": 5,
    "temperature": 0.1,
    "hard": True,
    "redraw": True,
    "radius": 2.0,
    "norm": "frozen",
    "init": "pytorch",
    "loss": "mse",
    "derivative": "reverse",
    "micro_batches": 3,
    "precision": "bfloat16",
    "depthwise": "lax",
    "ops": ("skip_connect", "sep_conv_3x3"),
    "init_channels": 4,
    "num_cells": 5,
    "image_size": 8,
    "data_dir": "/somewhere",
    "seed": 2**32 - 1,
}


def test_every_field_has_a_value_of_its_own_here():
    assert list(EXPLICIT) == FIELDS
    assert all(getattr(SearchConfig(), name) != value for name, value in EXPLICIT.items())


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig(**EXPLICIT)])
def test_json_round_trip(config):
    assert from_dict(json.loads(json.dumps(to_dict(config))), SearchConfig) == config


@pytest.mark.parametrize("space", SEARCH_SPACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip_of_resolved(space, variant):
    config = SearchConfig(space=space, variant=variant).resolved()
    assert from_dict(json.loads(json.dumps(to_dict(config))), SearchConfig) == config
    assert config.resolved() == config


def test_a_missing_field_takes_its_default():
    assert from_dict({}, SearchConfig) == SearchConfig()
    assert from_dict({"seed": 3}, SearchConfig) == SearchConfig(seed=3)


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(ValueError) as caught:
        from_dict({"step": 3, "seed": 0, "Seed": 1}, SearchConfig)
    message = str(caught.value)
    assert message.startswith("unknown setting Seed, step; known: ")
    assert message.partition("known: ")[2].split(", ") == sorted(FIELDS)


@pytest.mark.parametrize("values", [[], None, "seed", 3, [["seed", 0]]])
def test_only_an_object_is_a_configuration(values):
    with pytest.raises(ValueError, match="object of settings, got"):
        from_dict(values, SearchConfig)


WRONG_TYPES = {
    "text": (
        ("space", "variant", "data", "labels", "norm", "init", "loss"),
        (None, 3, True, ["digits"], {}),
    ),
    "text ": (("constraint_rule", "derivative", "data_dir"), (3, False, ["a"])),
    "an integer": (
        ("constraint_samples", "image_size", "seed"),
        (None, "many", 1.0, True, [8], NAN),
    ),
    "an integer ": (
        ("steps", "batch_size", "init_channels", "num_cells"),
        ("many", 1.5, 8.0, False, [], NAN, INF),
    ),
    "a number": (
        ("constraint_quantile", "temperature", "radius"),
        (None, "1", True, [0.5]),
    ),
    "a number ": (("penalty", "constraint"), ("1", False, {})),
    "true or false": (("hard",), (None, 0, 1, "true")),
    "a list of names": (("ops",), ("skip_connect", 3, [["a"]], [1], [None], {"a": 1})),
}


@pytest.mark.parametrize(
    ("field", "expected", "value"),
    [
        (field, expected.strip(), value)
        for expected, (fields, values) in WRONG_TYPES.items()
        for field in fields
        for value in values
    ],
)
def test_wrong_types_are_refused(field, expected, value):
    with pytest.raises(ValueError) as caught:
        from_dict({field: value}, SearchConfig)
    message = str(caught.value)
    assert message.startswith(f"{field} must be {expected}, got ")
    assert "\n" not in message
    if not isinstance(value, list):
        assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        *[(name, value, "from 1 to") for name in ("steps", "batch_size") for value in (0, -1)],
        *[(name, 2**31, "to 2147483647") for name in ("steps", "batch_size")],
        *[("constraint_samples", value, "from 1 to 2147483647") for value in (0, -3, 2**40)],
        *[("seed", value, "from 0 to 4294967295") for value in (-1, 2**32, 10**30)],
        *[
            (name, value, "from 0 to 1e+30")
            for name in ("penalty", "constraint")
            for value in (-1, -1e-9, NAN, INF, -INF, 1e31, 10**400)
        ],
        *[
            (name, value, "from 1e-30 to 1e+30")
            for name in ("temperature", "radius")
            for value in (0, 0.0, -0.0, -1.0, NAN, INF, -INF, 1e-31, 10**400)
        ],
        *[
            ("constraint_quantile", value, "from 0 to 1,")
            for value in (-0.1, 1.1, 50, NAN, INF, -INF)
        ],
    ],
)
def test_values_out_of_range_are_refused(field, value, accepted):
    with pytest.raises(ValueError) as caught:
        SearchConfig(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} must be from ")
    assert accepted in message
    assert message.endswith(f"got {value}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("variant", tuple(VARIANTS)),
        ("labels", LABELS),
        ("constraint_rule", CONSTRAINT_RULES),
        ("norm", NORM_MODES),
        ("init", INITIALIZERS),
        ("loss", LOSSES),
        ("derivative", DERIVATIVES),
    ],
)
@pytest.mark.parametrize("value", ["", "None", "BATCH", "nasi fix"])
def test_unknown_names_are_refused_with_the_known_ones(field, known, value):
    with pytest.raises(ValueError) as caught:
        SearchConfig(**{field: value})
    assert str(caught.value) == f"unknown {field} {value!r}; known: {', '.join(known)}"
    for name in known:
        assert getattr(SearchConfig(**{field: name}), field) == name


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-30, "radius": 1e30},
        {"penalty": 0, "constraint": 0, "constraint_quantile": 0},
        {"constraint_quantile": 1, "steps": 1, "batch_size": 1, "constraint_samples": 1},
    ],
)
def test_bounds_are_accepted(fields):
    config = SearchConfig(**fields)
    assert to_dict(config).items() >= fields.items()


PAPER = [
    ("nasi-fix", "darts", (100, 64, 2.0, 100.0, "fixed")),
    ("nasi-ada", "darts", (100, 64, 2.0, 500.0, "adaptive")),
]


@pytest.mark.parametrize(("variant", "space", "settings"), PAPER)
def test_the_settings_of_the_paper(variant, space, settings):
    config = SearchConfig(space=space, variant=variant).resolved()
    found = (
        config.steps,
        config.batch_size,
        config.penalty,
        config.constraint,
        config.constraint_rule,
    )
    assert found == settings
    assert config.temperature == config.radius == 1.0


@pytest.mark.parametrize("space", [each for each in SEARCH_SPACES if "1shot1" in each])
def test_nasbench1shot1_has_the_settings_that_were_chosen(space):
    config = SearchConfig(space=space).resolved()
    assert (config.steps, config.batch_size, config.penalty) == (20, 16, 2.0)
    assert (config.constraint, config.constraint_rule, config.redraw) == (10.0, "adaptive", True)


def test_the_reduced_darts_space_is_without_none():
    ops = SearchConfig(space="darts").resolved().ops
    assert ops is not None and set(SEARCH_SPACES["darts"].ops) - set(ops) == {"none"}


@pytest.mark.parametrize("space", SEARCH_SPACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resolved_leaves_nothing_open_that_the_search_needs(space, variant):
    config = SearchConfig(space=space, variant=variant).resolved()
    needed = (
        config.steps,
        config.batch_size,
        config.penalty,
        config.constraint,
        config.constraint_rule,
        config.redraw,
        config.derivative,
    )
    assert None not in needed


@pytest.mark.parametrize("space", SEARCH_SPACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_explicit_values_win_over_the_variant(space, variant):
    config = SearchConfig(**{**EXPLICIT, "space": space, "variant": variant})
    assert config.resolved() == config
    zeros = SearchConfig(space=space, variant=variant, penalty=0, constraint=0).resolved()
    assert (zeros.penalty, zeros.constraint) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batches": 2}, "micro_batches must be 1 under norm batch"),
        (
            {"micro_batches": 3, "norm": "none", "batch_size": 8},
            "batch_size must be a multiple of micro_batches, 3, got 8",
        ),
        ({"precision": "float16"}, "unknown precision 'float16'; known: float32, bfloat16"),
        ({"depthwise": "fft"}, "unknown depthwise 'fft'; known: auto, shift, lax"),
    ],
)
def test_settings_of_the_step(settings, message):
    with pytest.raises(ValueError) as caught:
        SearchConfig(**settings)
    assert str(caught.value).startswith(message)
