"""What the benchmarks remember, and how it is told that a figure has become worse."""

import json
import sys

import measuring
import pytest


def lines(*values, machine="a machine", card=None, metric="step"):
    return [
        json.dumps(
            {
                "script": "search_step",
                "arguments": "--smoke",
                "metric": metric,
                "value": value,
                "unit": "s",
                "commit": f"{number:010x}",
                "date": "2026-01-01T00:00:00+00:00",
                "machine": machine,
                "card": card,
                "versions": {"python": "3.11", "jax": "0.10.2", "flax": "0.12.7"},
            }
        )
        for number, value in enumerate(values)
    ]


@pytest.fixture
def history(run, tmp_path):
    """What `history.py --check` prints of these lines, and its exit status."""

    def history(*records, **options):
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(records) + "\n")
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        out = tmp_path / "history.png"
        try:
            printed = run("history", "--check", "--records", path, "--out", out, *flags)
        except SystemExit as stopped:
            return stopped.code
        assert out.read_bytes().startswith(b"\x89PNG")
        return printed

    return history


def test_a_figure_that_has_become_worse_fails_the_check(history):
    steady = lines(1.0, 1.1, 0.9, 1.0)
    assert history(*steady, *lines(2.0, 2.0, 2.0, 2.7, metric="memory")) == 1


@pytest.mark.parametrize(
    "records",
    [
        lines(1.0, 1.1, 0.9, 1.29),  # within 30 %
        lines(1.0, 1.1, 0.9, 0.1),  # better
        lines(1.0, 1.0, 5.0, 1.0),  # worse once, and not now
        lines(1.0, 1.0, 2.0),  # too few to say
        [*lines(1.0, 1.0, 1.0), *lines(9.0, machine="another machine")],
        [*lines(1.0, 1.0, 1.0), *lines(9.0, card="a card")],
    ],
)
def test_no_other_figure_does(history, records):
    assert "worse" not in history(*records)


def test_the_rule_can_be_set(history):
    records = lines(1.0, 1.1, 0.9, 1.3)
    assert history(*records, percent=20) == 1
    assert "+30 %" in history(*records, percent=20, least=5)


def test_figures_are_remembered_with_what_they_depend_on(tmp_path, monkeypatch):
    arguments = [
        "benchmarks/search_step.py",
        "--smoke",
        "--record",
        "--out",
        "there",
        "--seed",
        "3",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    path = tmp_path / "records.jsonl"
    for value in (1.5, 2.5):
        measuring.remember({"step": (value, "s"), "memory": (7.0, "MB")}, path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["value"] for each in found] == [1.5, 7.0, 2.5, 7.0]
    assert found[0].keys() == json.loads(lines(1.0)[0]).keys()
    assert (
        found[0]
        | {
            "script": "search_step",
            "arguments": "--smoke --seed 3",
            "metric": "step",
            "unit": "s",
            "card": None,
        }
        == found[0]
    )
    assert found[0]["versions"].keys() == {"python", "jax", "flax"}


def test_without_records_it_says_how_to_make_some(run, tmp_path):
    with pytest.raises(SystemExit, match=r"there are no records in .*none.jsonl: run a benchmark"):
        run("history", "--records", tmp_path / "none.jsonl")
