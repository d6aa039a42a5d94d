"""`nasi plan`, and runs that are refused because they do not fit, as a user meets them."""

import json
import shlex

import pytest

from nasi_jax.cli import main
from nasi_jax.search import loop
from nasi_jax.training.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = "--space toy:Chains --init-channels 2 --num-cells 1 --image-size 8"
RUNS = {
    "search": f"search {SIZES} --norm none --batch-size 4 --steps 2",
    "score": f"score {SIZES} --norm none --batch-size 4 --num-archs 2 --proxies grad_norm",
    "train": f"train chain:conv,skip {SIZES} --batch-size 500 --epochs 1 --crop none",
}
LESS = {"search": "--samples-per-step", "score": "--archs-per-call", "train": "--micro-batches"}


def refusal(capsys, arguments):
    """What a command says in the one line of error that it ends with."""
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(arguments))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("nasi: error: ")]
    assert error == lines[-1]
    return error.removeprefix("nasi: error: ")


@pytest.mark.parametrize("verb", RUNS)
def test_a_plan_is_printed_and_written(verb, tmp_path, capsys):
    out = tmp_path / "plan.json"
    main(shlex.split(f"plan {RUNS[verb]} --vary batch-size=8 --out {out}"))
    text, errors = capsys.readouterr()
    assert errors.splitlines() == ["compiling the run", "compiling batch_size 8"]
    result = json.loads(out.read_text())
    assert result["command"] == verb and result["config"]["space"] == "toy:Chains"
    assert [row["changes"] for row in result["rows"]] == [{}, {"batch_size": 8}]
    assert f"nasi {verb} on cpu" in text and "temporaries" in text and "calls" in text
    assert result["time"] in text and f"wrote {out}" in text
    assert not (tmp_path / "runs").exists()


def test_what_does_not_fit_is_told_after_the_table(capsys):
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(f"plan {RUNS['search']} --device-memory 1MB"))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert "no" in out and "batch_size: not even the least fits" in out
    assert err.splitlines()[-1].startswith("nasi: error: the run does not fit: lower --batch-size")


def test_a_plan_has_the_settings_of_the_recipe(monkeypatch, capsys):
    seen = []

    def plan(job, device, **_):
        seen.append(job.config)
        raise ValueError("enough")

    monkeypatch.setattr("nasi_jax.runs.plan.plan", plan)
    refusal(capsys, f"plan {RUNS['train']} --recipe nasbench201 --epochs 3")
    (config,) = seen
    assert config.batch_size == 500 and config.epochs == 3
    assert config.nesterov == RECIPES["nasbench201"].nesterov and config.recipe == "nasbench201"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--device-memory 80", "a size of memory is a number and one of B, kB, MB, GB, TB, KiB"),
        ("--vary batch_size", "--vary takes settings with whole numbers, such as batch_size=32,64"),
        ("--vary batch_size=4.5", "got 'batch_size=4.5'"),
        ("--vary batch_size=0", "batch_size must be an integer from 1"),
        ("--num-classes 3", "--num-classes and --num-examples go together"),
        ("--num-classes 0 --num-examples 3", "must be at least 1"),
        ("--device abacus", "device must be cpu, which is at hand, or one of h100, v5e"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_compiled(capsys, flags, message):
    assert message in refusal(capsys, f"plan {RUNS['search']} {flags}")


@pytest.mark.parametrize("verb", RUNS)
def test_a_run_that_cannot_fit_is_refused_before_it_begins(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "memory_left", lambda: 10_000)
    message = refusal(capsys, f"{RUNS[verb]} --out {tmp_path / 'out.csv'}")
    assert message.startswith("a call takes ") and "1e-05 GB left" in message
    assert LESS[verb] in message and message.endswith("; nasi plan forecasts what fits")
