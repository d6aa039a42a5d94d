"""Runs that are killed and resumed end as unbroken ones, and one that did not would be told."""

import csv
import dataclasses

import kill_trials
import numpy as np
import pytest


@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["kill_trials.py", "--trials", "2", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        kill_trials.main()
    assert caught.value.code == 0
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["outcome"] for row in rows] == ["equal", "equal"]
    assert "2 trials, 0 failed; killed: " in capsys.readouterr().out


def test_a_difference_is_told():
    columns = {name: ["1.0", "2.0"] for name in kill_trials.NUMBERS["search"]}
    left = kill_trials.Left({"text": "a", "steps": 2}, columns, [np.ones(3)])
    for exact in (True, False):
        assert kill_trials.difference("search", left, left, exact=exact) == 0
    near = dataclasses.replace(left, arrays=[np.ones(3) * (1 + 1e-6)])
    assert kill_trials.difference("search", near, left, exact=False) == pytest.approx(1e-6)
    others = (
        dataclasses.replace(left, arrays=[np.ones(3) * 1.001]),
        dataclasses.replace(left, record={"text": "b", "steps": 2}),
        dataclasses.replace(left, columns={**columns, "nu": ["1.0", "2.1"]}),
    )
    for other in others:
        for exact in (True, False):
            with pytest.raises(ValueError):
                kill_trials.difference("search", other, left, exact=exact)
    with pytest.raises(ValueError):
        kill_trials.difference("search", near, left, exact=True)


@pytest.mark.parametrize(
    ("told", "phase"),
    [
        ("", "importing"),
        ("compiling the search step\n", "compiling"),
        ("compiling\ncompiled in 1.0 s\n", "in steps"),
        ("compiling\ncompiled in 1.0 s\nsearching  3/20  0:00:01 left\n", "in steps"),
        ("compiling\ncompiled in 1.0 s\ndrawing  20/20  0:00:00 left\n", "writing"),
    ],
)
def test_phases(told, phase):
    assert kill_trials.phase_of(told) == phase
