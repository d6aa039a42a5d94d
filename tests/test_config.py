"""Configurations: the paper's settings, their JSON form, and what is refused."""

import dataclasses
import inspect
import itertools
import json
import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from nasi_jax import config as configuration
from nasi_jax.cells import SEARCH_SPACES
from nasi_jax.cli import main
from nasi_jax.config import (
    VARIANTS,
    ConstraintRule,
    Labels,
    RankConfig,
    ScoreConfig,
    SearchConfig,
    Variant,
    from_dict,
    settings,
    to_dict,
)
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.types import (
    Depthwise,
    Derivative,
    Initializer,
    InitialNormMode,
    Loss,
    MatmulPrecision,
    Precision,
)

NAN, INF = float("nan"), float("inf")
CONFIGS = {
    "search": SearchConfig(),
    "score": ScoreConfig(),
    "rank": RankConfig(table=("cells.csv",), column="accuracy"),
    "train": TrainConfig(),
}
"""A configuration of each command, by the name of the command."""


def fields_of(kind):
    return [field.name for field in dataclasses.fields(kind)]


FIELDS = fields_of(SearchConfig)
EXPLICIT = {
    "space": "darts",
    "variant": "nasi-fix",
    "data": "gaussian",
    "labels": "random",
    "steps": 7,
    "batch_size": 3,
    "proxy": "snip",
    "penalty": 0.5,
    "constraint": 12,
    "constraint_rule": "quantile",
    "constraint_quantile": 0.25,
    "constraint_samples": 5,
    "temperature": 0.1,
    "relaxation": "hard",
    "input_relaxation": "soft",
    "until_sure": True,
    "redraw": True,
    "radius": 2.0,
    "samples_per_step": 4,
    "norm": "frozen",
    "init": "pytorch",
    "loss": "mse",
    "derivative": "reverse",
    "micro_batches": 3,
    "precision": "bfloat16",
    "matmul_precision": "default",
    "depthwise": "lax",
    "ops": ("skip_connect", "sep_conv_3x3"),
    "init_channels": 4,
    "num_cells": 5,
    "image_size": 8,
    "data_dir": "/somewhere",
    "seed": 2**32 - 1,
    "max_params": 4e6,
    "max_multiply_adds": 6e8,
    "limits_for": "imagenet",
}


def test_every_field_has_a_value_of_its_own_here():
    assert EXPLICIT.keys() == set(FIELDS)
    assert all(getattr(SearchConfig(), name) != value for name, value in EXPLICIT.items())


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig(**EXPLICIT)])
def test_json_round_trip(config):
    assert from_dict(json.loads(json.dumps(to_dict(config))), SearchConfig) == config


def test_a_ranking_alone_is_of_canonical_forms_if_nothing_is_said():
    assert CONFIGS["rank"].canonical is True and CONFIGS["score"].canonical is False


@pytest.mark.parametrize("space", SEARCH_SPACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip_of_resolved(space, variant):
    config = SearchConfig(space=space, variant=variant).resolved()
    assert from_dict(json.loads(json.dumps(to_dict(config))), SearchConfig).resolved() == config
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


COUNT, WEIGHT = "an integer from 1 to 2147483647", "a number from 0.0 to 1e+30"
SCALE, SEED = "a number from 1e-30 to 1e+30", "an integer from 0 to 4294967295"
WRONG_TYPES = [
    ("text", ("space", "data"), (None, 3, True, ["digits"], {})),
    ("text", ("data_dir",), (3, False, ["a"])),
    (COUNT, ("constraint_samples",), ("many", 1.5, 8.0, False, [], NAN, INF)),
    (COUNT, ("micro_batches",), (None, "many", 1.0, True, [8], NAN)),
    (COUNT, ("steps", "batch_size"), ("many", 1.5, 8.0, False, [], NAN, INF)),
    (SEED, ("seed",), (None, "many", 1.0, True, [8], NAN)),
    ("an integer", ("image_size",), (None, "many", 1.0, True, [8], NAN)),
    ("an integer", ("init_channels", "num_cells"), ("many", 1.5, 8.0, False, [], NAN, INF)),
    ("a number from 0.0 to 1.0", ("constraint_quantile",), ("1", True, [0.5])),
    (SCALE, ("temperature", "radius"), (None, "1", True, [0.5])),
    (WEIGHT, ("penalty", "constraint"), ("1", False, {})),
    ("true or false", ("until_sure",), (None, 0, 1, "true")),
    ("true or false", ("redraw",), (0, 1, "true")),
    ("a list of text", ("ops",), ("skip_connect", 3, [["a"]], [1], [None], {"a": 1})),
]


@pytest.mark.parametrize(
    ("field", "expected", "value"),
    [
        (field, expected, value)
        for expected, fields, values in WRONG_TYPES
        for field in fields
        for value in values
    ],
)
def test_wrong_types_are_refused(field, expected, value):
    with pytest.raises(ValueError) as caught:
        from_dict({field: value}, SearchConfig)
    got = tuple(value) if isinstance(value, list) else value
    assert str(caught.value) == f"{field} must be {expected}, got {got!r}"


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        *[(name, value, COUNT) for name in ("steps", "batch_size") for value in (0, -1, 2**31)],
        *[("constraint_samples", value, COUNT) for value in (0, -3, 2**40)],
        *[("seed", value, SEED) for value in (-1, 2**32, 10**30)],
        *[
            (name, value, WEIGHT)
            for name in ("penalty", "constraint")
            for value in (-1, -1e-9, NAN, INF, -INF, 1e31, 10**400)
        ],
        *[
            (name, value, SCALE)
            for name in ("temperature", "radius")
            for value in (0, 0.0, -0.0, -1.0, NAN, INF, -INF, 1e-31, 10**400)
        ],
        *[
            ("constraint_quantile", value, "a number from 0.0 to 1.0")
            for value in (-0.1, 1.1, 50, NAN, INF, -INF)
        ],
    ],
)
def test_values_out_of_range_are_refused(field, value, accepted):
    with pytest.raises(ValueError) as caught:
        SearchConfig(**{field: value})
    assert str(caught.value) == f"{field} must be {accepted}, got {value}"


NAMES = {
    "variant": Variant,
    "labels": Labels,
    "constraint_rule": ConstraintRule,
    "norm": InitialNormMode,
    "init": Initializer,
    "loss": Loss,
    "derivative": Derivative,
    "precision": Precision,
    "matmul_precision": MatmulPrecision,
    "depthwise": Depthwise,
}


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("value", ["", "None", "BATCH", "nasi fix", "running", 3, True, (), {}])
def test_unknown_names_are_refused_with_the_known_ones(field, value):
    known = get_args(NAMES[field])
    with pytest.raises(ValueError) as caught:
        SearchConfig(**{field: value})
    assert str(caught.value) == f"{field} must be one of {', '.join(known)}, got {value!r}"
    for name in known:
        assert getattr(SearchConfig(**{field: name}), field) == name


def test_every_variant_has_settings():
    assert get_args(Variant) == tuple(VARIANTS)


@pytest.mark.parametrize("command", CONFIGS)
@pytest.mark.parametrize("value", [object(), NAN, INF, 1j, b"x"])
def test_every_field_is_checked_however_a_configuration_comes_about(command, value):
    config = CONFIGS[command]
    for name in fields_of(config):
        for make in (
            lambda changes: type(config)(**{**to_dict(config), **changes}),
            lambda changes: dataclasses.replace(config, **changes),
            lambda changes: from_dict({**to_dict(config), **changes}, type(config)),
        ):
            with pytest.raises(ValueError) as caught:
                make({name: value})
            assert type(caught.value) is ValueError
            message = str(caught.value)
            assert message.startswith(f"{name} must be ") and message.endswith(f", got {value!r}")
            assert "\n" not in message


@settings
class Boundless:
    """A number without a range."""

    number: float = 0.0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_numbers_are_finite_without_a_range_too(value):
    with pytest.raises(ValueError, match=f"^number must be a number, got {value}$"):
        Boundless(number=value)


def test_what_is_missing_or_unknown_is_refused():
    with pytest.raises(ValueError, match=r"^table must be a list of text, and is missing$"):
        from_dict({"column": "accuracy"}, RankConfig)
    with pytest.raises(ValueError, match=r"^unknown setting step; known: batch_size, "):
        dataclasses.replace(SearchConfig(), step=3)
    with pytest.raises(TypeError):
        SearchConfig("darts")


@pytest.mark.parametrize("command", CONFIGS)
def test_a_configuration_does_not_change(command):
    config = CONFIGS[command]
    assert hash(config) == hash(dataclasses.replace(config))
    for name in fields_of(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))


def helps_of(kind):
    """What the docstring of a class says of fields, by their names."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^  (\w+): (.*?)(?=^  \w+: |\Z)", section, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def choices_of(hint):
    """The names that a `Literal` accepts, or one of the types in a union."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(name for part in get_args(hint) for name in choices_of(part))


@pytest.mark.parametrize("command", [*CONFIGS, "compare"])
def test_the_help_tells_of_every_field_and_lists_the_names(command, capsys, monkeypatch):
    kind = type(CONFIGS.get(command, CONFIGS["score"]))
    monkeypatch.setenv("COLUMNS", "2000")  # a text is a line
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = re.sub(r"[│ ]+", " ", capsys.readouterr().out).split("\n --")
    shown = {option.split()[0].rstrip(","): option for option in options}
    num_choices = 0
    for name, hint in get_type_hints(kind).items():
        first = next(helps_of(each)[name] for each in kind.__mro__ if name in helps_of(each))
        option, choices = shown[name.replace("_", "-")], choices_of(hint)
        assert f" {first} (" in option
        assert not choices or f"{','.join(choices)}}}" in option
        num_choices += bool(choices)
    assert num_choices >= 4


def test_no_help_stands_twice():
    kinds = {each for config in CONFIGS.values() for each in type(config).__mro__} - {object}
    assert kinds >= {configuration.Images, configuration.Supernet, configuration.Network}
    for one, other in itertools.combinations(kinds, 2):
        assert not helps_of(one).items() & helps_of(other).items()
    for kind in kinds:
        assert helps_of(kind).keys() <= set(fields_of(kind))


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
    """nasi-ada has the paper's, which a search without a variant has not."""
    chosen = SearchConfig(space=space).resolved()
    assert chosen.variant == "nasi-fix"
    assert (chosen.steps, chosen.batch_size) == (200, 16)
    assert (chosen.constraint_rule, chosen.constraint_quantile) == ("quantile", 0.4)
    assert (chosen.init_channels, chosen.num_cells) == (8, 1)
    paper = SearchConfig(space=space, variant="nasi-ada").resolved()
    assert (paper.steps, paper.batch_size) == (390, 64)
    assert (paper.constraint, paper.constraint_rule) == (1000.0, "adaptive")
    assert paper.init_channels is paper.num_cells is None
    for config in (chosen, paper):
        assert (config.penalty, config.redraw, config.relaxation) == (1.0, False, "hard")


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_the_variant_of_other_spaces(space):
    assert SearchConfig(space=space).resolved().variant == "nasi-ada"


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
        config.constraint_quantile,
        config.constraint_samples,
        config.redraw,
        config.relaxation,
        config.variant,
        config.derivative,
    )
    assert None not in needed


@pytest.mark.parametrize("space", SEARCH_SPACES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_explicit_values_win_over_the_variant(space, variant):
    config = SearchConfig(**{**EXPLICIT, "space": space, "variant": variant})
    assert to_dict(config.resolved()) == to_dict(config)
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
    ],
)
def test_settings_of_the_step(settings, message):
    with pytest.raises(ValueError) as caught:
        SearchConfig(**settings)
    assert str(caught.value).startswith(message)
