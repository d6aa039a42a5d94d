"""What all runs have in common: one process at a time, refused, replaced, killed and resumed."""

import csv
import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import toy
from helpers import assert_one_line, held, python_path, snapshot

from nasi_jax import cli, data, device_mesh, runs
from nasi_jax.config import RankConfig, ScoreConfig, Scoring, SearchConfig, SelectConfig
from nasi_jax.search import loop
from nasi_jax.storage import files
from nasi_jax.training.recipes import TrainConfig

SIZES: dict[str, Any] = {
    "norm": "none",
    "init_channels": 2,
    "num_cells": 1,
    "image_size": 8,
    "batch_size": 4,
    "seed": 2,
}
IN_TOY: dict[str, Any] = {**SIZES, "space": "toy:Chains"}
SCORES: dict[str, Any] = {"num_archs": 4, "proxies": ("grad_norm",)}
SEARCH = SearchConfig(**IN_TOY, steps=3, penalty=2.0)
SCORE = ScoreConfig(**IN_TOY, **SCORES)
SELECT = SelectConfig(
    **IN_TOY, proxies=("grad_norm", "flops"), budget=3, population=2, tournament=2
)
OPS = ("skip_connect", "avg_pool_3x3", "none")
RANK = RankConfig(**SIZES, **SCORES, ops=OPS, table=("table.csv",), column="val_200")
TRAIN = TrainConfig(
    space="toy:Chains",
    epochs=2,
    batch_size=500,
    crop="none",
    flip=True,
    init_channels=2,
    num_cells=1,
    image_size=8,
    seed=3,
)
GENOTYPE = toy.Chain(("conv", "skip"))
WORK = ("searching", "selecting", "scoring", "training")
"""The stages that go on in steps."""


class Stopped(Exception):
    """What a test ends a run with."""


class Case(NamedTuple):
    """A kind of run, at a size of seconds.

    Attributes:
      config: how to run it.
      run: runs it: `(config, out, **options)`.
      directory: its files, by the place of its output.
      out: that place, in a folder.
      lock: what another process holds while it has the files.
      made: what it makes in the folder of its files.
      early: what of that is there before anything is computed.
      changed: other settings, and what is said of them.
      wrong: settings that are refused.
      stop: the step to stop after.
      left: how many steps are left to do then.
      removed: files that a killed run has not written yet.
      writes: how many files are written then.
      last: the one that is written last.
    """

    config: Any
    run: Callable[..., Any]
    directory: Callable[[Path], Any]
    out: str
    lock: str
    made: tuple[str, ...]
    early: set[str]
    changed: tuple[dict[str, Any], str]
    wrong: tuple[dict[str, Any], ...]
    stop: int
    left: int
    removed: tuple[str, ...]
    writes: int
    last: str


WRONG: tuple[dict[str, Any], ...] = (
    {"batch_size": 5000},
    {"image_size": 0},
    {"data": "nowhere.npz"},
)
WRONG_OF_A_SPACE: tuple[dict[str, Any], ...] = tuple(
    {"space": "nasbench201"} | change
    for change in ({"ops": ("conv",)}, {"image_size": 10}, {"num_cells": 0})
)


def train(config, out, **options):
    return runs.train.train(GENOTYPE, config, out, **options)


def train_seeds(config, out, **options):
    return runs.train.train_seeds(GENOTYPE, config, out, 2, **options)


SEARCHED = tuple(name for name in runs.search.FILES if name not in ("config.json", "checkpoint"))
SELECTED = tuple(name for name in runs.select.FILES if name not in ("config.json", "scores.csv"))
TRAINED = ("summary.json", "metrics.csv", "curves.png")
RANKED = tuple(f"rank.{kind}" for kind in ("csv", "json", "png"))
CASES = {
    "search": Case(
        config=SEARCH,
        run=runs.search.search,
        directory=runs.search.run_directory,
        out="run",
        lock="run/.lock",
        made=runs.search.FILES,
        early={"config.json", "checkpoint"},
        changed=({"seed": 5, "radius": 0.5}, "the search to resume has seed 2 not 5, radius 1.0"),
        wrong=(*WRONG, *WRONG_OF_A_SPACE),
        stop=2,
        left=1,
        removed=SEARCHED,
        writes=len(SEARCHED) + 1,
        last="result.json",
    ),
    "select": Case(
        config=SELECT,
        run=runs.select.select,
        directory=runs.select.run_directory,
        out="run",
        lock="run/.lock",
        made=runs.select.FILES,
        early={"config.json"},
        changed=({"seed": 5, "budget": 2}, "the selection to resume has seed 2 not 5, budget 3 no"),
        wrong=(*WRONG, *WRONG_OF_A_SPACE, {"proxies": ("x",)}),
        stop=3,
        left=1,
        removed=SELECTED,
        writes=len(SELECTED) + 2,
        last="result.json",
    ),
    "score": Case(
        config=SCORE,
        run=runs.score.score,
        directory=runs.score.run_directory,
        out="run/scores.csv",
        lock="run/.scores.csv.lock",
        made=("scores.csv", "scores.json"),
        early={"scores.json"},
        changed=({"seed": 5, "seeds": 2}, "the scoring to resume has seed 2 not 5, seeds 1 not 2"),
        wrong=(*WRONG, *WRONG_OF_A_SPACE, {"proxies": ("x",)}, {"genotypes": "nowhere"}),
        stop=3,  # which is told of before it is written
        left=2,
        removed=("scores.csv",),
        writes=3,  # the record twice
        last="scores.csv",
    ),
    "compare": Case(
        config=SCORE,
        run=runs.compare.compare,
        directory=runs.compare.run_directory,
        out="run",
        lock="run/.lock",
        made=("compare.csv", "compare.json", "compare.png"),
        early={"compare.json"},
        changed=({"seed": 5, "seeds": 2}, "the comparison to resume has seed 2 not 5, seeds 1 not"),
        wrong=(*WRONG, *WRONG_OF_A_SPACE, {"proxies": ("x",)}),
        stop=3,
        left=2,
        removed=("compare.png",),
        writes=3,
        last="compare.json",
    ),
    "rank": Case(
        config=RANK,
        run=runs.rank.rank,
        directory=runs.rank.run_directory,
        out="run",
        lock="run/.lock",
        made=("scores.csv", "scores.json", *RANKED),
        early={"scores.json"},
        changed=({"seed": 5, "seeds": 2}, "the ranking to resume has seed 2 not 5, seeds 1 not 2"),
        wrong=(
            *WRONG,
            *WRONG_OF_A_SPACE,
            {"column": "x"},
            {"table": ("nowhere.csv",)},
            {"table": ()},
        ),
        stop=3,
        left=2,
        removed=RANKED,
        writes=len(RANKED) + 1,
        last="rank.json",
    ),
    "train": Case(
        config=TRAIN,
        run=train,
        directory=runs.train.run_directory,
        out="run",
        lock="run/.lock",
        made=runs.train.FILES,
        early={"config.json", "data.json", "checkpoint"},
        changed=({"seed": 5, "flip": False}, "the training to resume has seed 3 not 5, flip True"),
        wrong=(*WRONG, {"drop_path": 0.2}),
        stop=4,
        left=2,
        removed=TRAINED,
        writes=len(TRAINED) + 2,
        last="summary.json",
    ),
    "seeds": Case(
        config=dataclasses.replace(TRAIN, epochs=1),
        run=train_seeds,
        directory=lambda out: runs.train.run_directory(out, ["seed-3", "seed-4"]),
        out="run",
        lock="run/.lock",
        made=("config.json", "seed-3", "seed-4", "summary.json"),
        early={"config.json", "seed-3", "seed-4"},
        changed=({"flip": False}, "the training to resume has flip True not False"),
        wrong=(*WRONG, {"drop_path": 0.2}),
        stop=5,
        left=1,
        removed=("summary.json", *(f"seed-{seed}/{name}" for seed in (3, 4) for name in TRAINED)),
        writes=1 + 2 * (len(TRAINED) + 2) + 1,
        last="summary.json",
    ),
}
VERBS = {verb: verb for verb in CASES} | {"seeds": "train"}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A folder that holds the table that is ranked against, and no neural-tangents."""
    folder = tmp_path_factory.mktemp("home")
    lines = ["arch_str,val_200"]
    for number, cell in enumerate(itertools.product(OPS, repeat=6)):
        a, b, c, d, e, f = cell
        lines.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|,{number % 97}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_neural_tangents(patch)
        yield folder


def without_neural_tangents(patch):
    nothing = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    patch.setattr(runs.compare, "importlib", nothing)


def keep_every_step(patch):
    patch.setattr(runs.search, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    patch.setattr(runs.train, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    patch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", 0)
    patch.setattr(runs.select, "_SECONDS_BETWEEN_WRITES", 0)


@pytest.fixture
def every_step_is_kept(monkeypatch):
    keep_every_step(monkeypatch)


@pytest.fixture(params=CASES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def finished(case, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    case.run(case.config, folder / case.out)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def folder_of(case, root):
    return case.directory(root / case.out).folder


def record_of(case, root):
    return folder_of(case, root) / case.directory(root / case.out).record


def is_whole(case, root):
    """Whether the last of the files is there, as a run that has come to its end leaves it."""
    path = folder_of(case, root) / case.last
    text = path.read_text() if path.exists() else None
    if text is None or path.suffix == ".csv":
        return text is not None and len(text.splitlines()) == 1 + SCORE.num_archs
    return path.name != "compare.json" or "correlations" in text


MEASURED = ("seconds", "images_per_second", "peak_memory_megabytes", "num_compilations")


def content_of(root):
    """All text files of a run, less what a clock says and how much was left to compile."""
    found = {}
    for path in sorted(root.rglob("*.csv")):
        rows = csv.DictReader(path.read_text().splitlines())
        found[path.relative_to(root)] = [unmeasured(row) for row in rows]
    for path in sorted(root.rglob("*.json")):
        if "checkpoint" not in path.parts:
            found[path.relative_to(root)] = unmeasured(json.loads(path.read_text()))
    return found


def unmeasured(content):
    if isinstance(content, list):
        return [unmeasured(each) for each in content]
    if isinstance(content, dict):
        return {key: unmeasured(x) for key, x in content.items() if key not in MEASURED}
    return content


def run(case, root, change=None, *, until=None, **options):
    """Runs to the end, or until so many steps are done; returns the stages and steps told of."""
    told = []

    def on_progress(progress):
        told.append((progress.stage, progress.done))
        if until == 0 or sum(stage in WORK for stage, _ in told) == until:
            raise Stopped

    config = dataclasses.replace(case.config, **(change or {}))
    if until is None:
        case.run(config, root / case.out, on_progress=on_progress, **options)
    else:
        with pytest.raises(Stopped):
            case.run(config, root / case.out, on_progress=on_progress, **options)
    return told


def steps_of(told):
    return [done for stage, done in told if stage in WORK]


def test_all_files_are_there_and_nothing_else(case, finished):
    folder = folder_of(case, finished)
    lock = os.path.basename(case.lock)
    assert sorted(os.listdir(folder)) == sorted([lock, *case.made])
    directory = case.directory(finished / case.out)
    assert set(case.made) <= {each.split("/")[0] for each in directory.names}


def test_files_in_use_are_left_alone(case, copy):
    before = snapshot(copy)
    directory = case.directory(copy / case.out)
    with held(copy / case.lock):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError) as caught:
                run(case, copy, **options)
            assert_one_line(caught, f"{case.out} is in use by another {directory.what}")
    assert snapshot(copy) == before


def test_a_run_is_not_replaced_unasked(case, copy):
    before = snapshot(copy)
    directory = case.directory(copy / case.out)
    first = next(each for each in directory.names if (directory.folder / each).exists())
    with pytest.raises(ValueError) as caught:
        run(case, copy)
    kind = "file" if case.out.endswith(".csv") else "directory"
    assert str(caught.value) == (
        f"the {kind} {copy / case.out} holds a {directory.what} already ({first}): continue it "
        f"with --resume, replace it with --overwrite, or name another {kind}"
    )
    assert snapshot(copy) == before


def test_whatever_looks_like_a_run_is_not_replaced_unasked(case, tmp_path):
    directory = case.directory(tmp_path / case.out)
    for each in directory.names:
        path = directory.folder / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        before = snapshot(tmp_path)
        with (
            pytest.raises(ValueError, match=rf" already \({each}\): "),
            directory.begun({}, resume=False, overwrite=False),
        ):
            pass
        assert snapshot(tmp_path) == before
        path.unlink()


def test_overwriting_removes_only_what_such_a_run_writes(case, copy):
    """And that before anything is computed: the old results are not what a resumed run has."""
    folder = folder_of(case, copy)
    (folder / "notes.txt").write_text("mine")
    (folder / "folder").mkdir()
    (folder / "other.csv").write_text("mine")
    change, _ = case.changed
    run(case, copy, change, until=0, overwrite=True)
    lock = os.path.basename(case.lock)
    left = {"notes.txt", "folder", "other.csv", lock, *case.early}
    assert set(os.listdir(folder)) == left
    assert not list(folder.rglob("checkpoint/*"))
    directory = case.directory(copy / case.out)
    assert change.items() <= directory.settings().items()
    assert steps_of(run(case, copy, change, resume=True))[0] == 1
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "other.csv").read_text() == "mine"


def test_wrong_settings_remove_nothing(case, copy):
    before = snapshot(copy)
    for change in case.wrong:
        with pytest.raises(ValueError):
            run(case, copy, change, overwrite=True)
    assert snapshot(copy) == before


def test_what_is_too_large_leaves_nothing_to_overwrite(case, tmp_path, monkeypatch):
    out = tmp_path / case.out
    monkeypatch.setattr(loop, "memory_left", lambda: 0)
    with pytest.raises(loop.TooLarge):
        case.run(case.config, out)
    directory = case.directory(out)
    assert [name for name in directory.names if (directory.folder / name).exists()] == []


def test_a_stopped_run_ends_as_an_unbroken_one(case, finished, tmp_path, every_step_is_kept):
    run(case, tmp_path, until=case.stop)
    assert not is_whole(case, tmp_path)
    told = run(case, tmp_path, resume=True)
    assert [stage for stage, _ in told[:2]] == ["compiling", "compiled"]
    assert len(steps_of(told)) == case.left
    assert content_of(tmp_path) == content_of(finished)
    assert steps_of(run(case, tmp_path, resume=True)) == []
    assert content_of(tmp_path) == content_of(finished)


def die(name, root):
    """Runs in a process of its own, which is killed while it writes in the middle of the run."""
    case, patch = CASES[name], pytest.MonkeyPatch()
    keep_every_step(patch)
    without_neural_tangents(patch)
    seen = []

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_at_checkpoint(folder):
        """Before it has its name."""
        while not [path for path in folder.glob("checkpoint/*") if not path.name.isdigit()]:
            pass
        kill()

    def on_progress(progress):
        seen.append(progress.stage)
        if sum(stage in WORK for stage in seen) == case.stop - 1:
            patch.setattr(files.os, "replace", kill)  # scores, before the file has its name
            folder = Path(root) / case.out / ("seed-4" if name == "seeds" else "")
            threading.Thread(target=kill_at_checkpoint, args=[folder], daemon=True).start()

    case.run(case.config, Path(root) / case.out, on_progress=on_progress)


def killed(function, *arguments):
    """Has a function of this file kill its process."""
    script = f"import sys, test_contract as test; test.{function}(*sys.argv[1:])"
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(Path(__file__).parent)},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def test_a_killed_run_goes_on_without_its_settings(name, case, finished, tmp_path, capsys):
    killed("die", name, tmp_path)
    folder = folder_of(case, tmp_path)
    half = [*folder.glob(".*.tmp"), *folder.rglob("checkpoint/*[!0-9]*")]
    assert len(half) == 1 and not is_whole(case, tmp_path)
    if name == "train":  # what reads it leaves it alone: another process may be writing it
        assert runs.train.trained(folder).config == case.config
        assert half[0].exists()
    cli.main(["resume", str(tmp_path / case.out)])
    printed, progress = capsys.readouterr()
    assert printed.splitlines()[-1].startswith(f"wrote {tmp_path / case.out}")
    assert re.search("ing  [2-9]/", progress) and "ing  1/" not in progress
    assert content_of(tmp_path) == content_of(finished)
    assert not list(folder.rglob("checkpoint/*[!0-9]*"))


def test_a_run_that_is_killed_early_goes_on_without_its_settings(case, finished, tmp_path):
    """Before its first step, and before its first file of results."""
    run(case, tmp_path, until=0)
    cli.main(["resume", str(tmp_path / case.out), "--no-cache"])
    assert content_of(tmp_path) == content_of(finished)


def test_a_run_of_an_earlier_version_goes_on(case, finished, copy):
    """Without settings that were added since, the precision of matrix products among them."""
    record, entry = record_of(case, copy), case.directory(copy / case.out).entry
    content = json.loads(record.read_text())
    settings = content if entry is None else content[entry]
    added = case.directory(copy / case.out).added
    for setting in added:
        del settings[setting]
    if "table" in settings:  # there was one
        (settings["table"],) = settings["table"]
    record.write_text(json.dumps(content))
    for each in case.removed[1:]:
        (folder_of(case, copy) / each).unlink()
    cli.main(["resume", str(copy / case.out)])
    found = case.directory(copy / case.out).settings()
    assert found["matmul_precision"] == added.get("matmul_precision", "highest")
    if "table" in settings:
        settings["table"] = [settings["table"]]
    assert {**settings, **added} == found


def test_other_settings_are_not_resumed(case, copy):
    before = snapshot(copy)
    change, message = case.changed
    with pytest.raises(ValueError) as caught:
        run(case, copy, change, resume=True)
    assert_one_line(caught, message)
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b'{"seed": 1', "Expecting"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[" * 100_000, ""),
        (b"[]", "an object of settings, got list"),
        (None, "to resume: cannot read "),
    ],
)
def test_a_spoilt_record_is_not_resumed(case, copy, content, message):
    record = record_of(case, copy)
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    before = snapshot(copy)
    with pytest.raises(ValueError) as caught:
        run(case, copy, resume=True)
    what = case.directory(copy / case.out).what
    said = (
        f"{record} is not the configuration of a {what}: " if content is not None else f"no {what}"
    )
    assert_one_line(caught, said, message)
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("/proc/nasi", "No such file or directory"),
    ],
)
def test_what_cannot_be_a_directory_is_refused(case, tmp_path, folder, reason):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / folder / case.out.removeprefix("run").removeprefix("/")
    with (
        pytest.raises(ValueError, match=f"cannot use .* as a directory: {reason}"),
        case.directory(out).begun({}, resume=False, overwrite=False),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_no_result(case, copy, finished, monkeypatch):
    """Space for one file more, then for two, until there is enough."""
    folder, record = folder_of(case, copy), record_of(case, copy)
    if case.last == record.name:
        record.write_text(json.dumps({"config": json.loads(record.read_text())["config"]}))
    for allowed in itertools.count():
        for each in case.removed:
            (folder / each).unlink(missing_ok=True)
        written = []

        def fsync(*_, written=written, allowed=allowed):
            written.append(1)
            if len(written) > allowed:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fsync)
            patch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", 1e9)
            patch.setattr(runs.select, "_SECONDS_BETWEEN_WRITES", 1e9)
            try:
                run(case, copy, resume=True)
            except OSError:
                assert not is_whole(case, copy)
                assert not list(folder.rglob(".*.tmp"))
            else:
                break
    assert allowed == case.writes
    assert content_of(copy) == content_of(finished)
    if case.early & {"checkpoint", "seed-3"}:  # of which nothing is computed again
        for path, (content, _) in snapshot(finished).items():
            assert path.suffix == ".png" or (copy / path).read_bytes() == content


def damage_metadata(checkpoint):
    path = checkpoint / "default" / "_METADATA"
    path.write_bytes(path.read_bytes()[:100])


def damage_all(checkpoint):
    shutil.rmtree(checkpoint / "default")


@pytest.mark.parametrize("damage", [damage_metadata, damage_all])
@pytest.mark.parametrize("name", ["search", "train"], indirect=True)
def test_a_damaged_checkpoint_is_not_used(name, case, copy, damage):
    folder = folder_of(case, copy)
    (checkpoint,) = (folder / "checkpoint").iterdir()
    damage(checkpoint)
    (folder / case.last).unlink()
    reads = [lambda: run(case, copy, resume=True)]
    if name == "train":
        reads.append(lambda: runs.train.trained(folder))
    for read in reads:
        with pytest.raises(ValueError) as caught:
            read()
        assert_one_line(caught, f"cannot read the checkpoint {checkpoint}: ")
    assert not (folder / case.last).exists()


@pytest.mark.parametrize("name", ["score"], indirect=True)
def test_another_file_of_scores_in_the_folder_is_free(case, copy):
    """And is neither replaced nor read."""
    before = snapshot(copy)
    with held(copy / case.lock):
        runs.score.score(case.config, copy / "run" / "others.csv", overwrite=True)
    assert before.items() <= snapshot(copy).items()


@pytest.mark.parametrize("name", ["score"], indirect=True)
def test_scores_of_other_columns_are_not_resumed(case, copy):
    """As those of a comparison, whose settings are the same."""
    table = copy / "run" / "scores.csv"
    whole = table.read_text()
    spoilt = (whole.replace("grad_norm", "ntk_trace"), whole.replace("\n2,", "\nx,"), "", "seed\n")
    for content in spoilt:
        table.write_text(content)
        with pytest.raises(ValueError) as caught:
            run(case, copy, resume=True)
        assert_one_line(caught, f"cannot resume from {table}: ")
        assert table.read_text() == content


def test_the_command_finds_what_there_is_to_resume(name, case, finished):
    command = cli._command(
        ["resume", str(finished / case.out), "--no-cache", "--mesh", "sample=1"]
    ).command()
    assert type(command) is cli._RUNS[VERBS[name]]
    assert (command.out, command.resume, command.overwrite) == (finished / case.out, True, False)
    assert command.config == (case.config.resolved() if name == "search" else case.config)
    assert command.options["mesh"] == device_mesh()
    assert command.no_cache and not cli._command(["resume", "run"]).no_cache
    assert getattr(command, "seeds", 1) == (2 if name == "seeds" else 1)


def test_the_command_says_what_it_resumes(tmp_path, capsys):
    def refused(path):
        with pytest.raises(SystemExit) as caught:
            cli.main(["resume", str(path)])
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err.removeprefix("nasi: error: ").removesuffix("\n")

    for path in (tmp_path, tmp_path / "missing", tmp_path / "scores.csv", tmp_path / "x" / "y.csv"):
        assert refused(path) == (
            f"there is no run at {path}: name the directory of a search, a selection, "
            "a training, a comparison or a ranking, or the .csv file of scores"
        )
    assert os.listdir(tmp_path) == []
    record = tmp_path / "scores.json"
    record.write_text('{"config": {"space": "nasbench201"}}')
    assert refused(tmp_path).startswith("there is no run at ")
    record.write_text('{"config": {"table": "x"}}')
    assert f"{record} is not the configuration of a ranking: " in refused(tmp_path)
    assert f"{record} is not the configuration of a scoring: unknown setting table" in refused(
        tmp_path / "scores.csv"
    )
    record.write_text('{"config": 3}')
    assert f"{record} is not the configuration of a scoring: " in refused(tmp_path / "scores.csv")
    record.unlink()
    config = tmp_path / "config.json"
    for content in ("", "[]", "{"):
        config.write_text(content)
        kinds = "search, selection or training"
        assert f"{config} is not the configuration of a {kinds}: " in refused(tmp_path)
    config.write_text("{}")
    assert f"{config} is not the configuration of a search: it has no " in refused(tmp_path)
    (tmp_path / "compare.json").write_text('{"config": {}}')
    assert refused(tmp_path) == (
        f"{tmp_path} holds several runs: choose one with nasi search or nasi compare, and --resume"
    )


def test_a_finished_run_is_reported_and_another_is_not(case, copy, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.report.pages, "_library", lambda: "")
    place, out = copy / case.out, tmp_path / "report.html"
    if place.suffix == ".csv":
        with pytest.raises(ValueError) as error:
            runs.report.report([place], out)
        assert_one_line(error, "holds scores alone")
        return
    runs.report.report([place], out)
    text = out.read_text()
    assert text.count('class="chart"') >= 2 and "svg role=" in text
    last = place / case.last
    if case.config is SCORE:  # whose record is there from the start
        last.write_text(files.json_text({"config": json.loads(last.read_text())["config"]}))
    else:
        last.unlink()
    with pytest.raises(ValueError) as error:
        runs.report.report([place], out, overwrite=True)
    assert_one_line(error, f"holds no finished run: nasi resume {place} goes on with it")


def test_images_are_opened_once_and_a_batch_made_once(name, case, tmp_path, monkeypatch):
    """Whatever the number of seeds; of a training for each split."""
    opened, batches = [], []
    digits, batch, read = data.generated.digits, data.Dataset.batch, runs.train._Loop._batch

    def counted_digits(split, image_size):
        opened.append(split)
        return digits(split, image_size)

    def counted_batch(self, key, step, batch_size):
        batches.append(step)
        return batch(self, key, step, batch_size)

    def counted_read(self, step):
        batches.append(step)
        return read(self, step)

    monkeypatch.setattr(data.generated, "digits", counted_digits)
    monkeypatch.setattr(data.Dataset, "batch", counted_batch)
    monkeypatch.setattr(runs.train._Loop, "_batch", counted_read)
    several = {"seeds": 2} if isinstance(case.config, Scoring) else {}
    several |= {"num_archs": 2} if isinstance(case.config, ScoreConfig) else {}
    run(case, tmp_path, several)
    trains = name in ("train", "seeds")
    assert opened == (["train", "test"] if trains else ["all"])
    steps = {"search": [0, 1, 2], "train": [*range(6)], "seeds": 2 * [0, 1, 2]}
    assert sorted(batches) == sorted(steps.get(name, [0, 0]))
