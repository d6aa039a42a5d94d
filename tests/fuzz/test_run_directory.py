"""A run directory through any sequence of starts, kills, full disks, spoilt files and rivals.

The runs are those of `nasi score` in the toy space, with all of their files; only what computes a
score is replaced by a sum. The numbers of inputs are those of `test_readers.py`.
"""

import csv
import errno
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy
from filelock import FileLock
from helpers import snapshot
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from nasi_jax import runs
from nasi_jax.config import ScoreConfig
from nasi_jax.storage import files

MANY = int(os.environ.get("NASI_FUZZ_EXAMPLES", 100_000)) // 10
STEPS = 20
NAMES = ("scores.csv", "scores.json")


class Stopped(BaseException):
    """What ends a run between two steps, or within a write."""


GENOTYPES = [toy.Chain(ops) for ops in itertools.product(toy.OPS, repeat=2)]


class Sums:
    """In place of what scores: a sum of the seed and the number of an architecture."""

    num_at_once, num_compilations, compile_seconds = 1, 1, 0.0

    def __init__(self, config, proxies, *_, **__):
        self.names = list(proxies)

    def __call__(self, seed, numbers):
        return [{name: seed + number / 7 for name in self.names} for number in numbers], 0.25


def numbers_of(config, space, genotypes):
    """In place of the weights of architectures: their numbers."""
    return {(each.to_text(),): number for number, each in enumerate(genotypes)}


class Fault:
    """Ends a run: `stopped` after so many steps, `full` or `killed` in one of the writes."""

    def __init__(self, kind, number):
        self.kind, self.number, self.happened = kind, number, False

    def on_progress(self, progress):
        if progress.stage == "scoring":
            self._count("stopped", Stopped())

    def fsync(self, _):
        self._count("full", OSError(errno.ENOSPC, "No space left on device"))
        self._count("killed", Stopped())

    def _count(self, kind, error):
        if self.kind == kind:
            self.number -= 1
            if self.number == 0:
                self.happened = True
                raise error

    def unlink(self, path, missing_ok=False):
        """Who is killed tidies nothing up."""
        if not (self.happened and self.kind == "killed"):
            os.unlink(path) if path.exists() or not missing_ok else None


FAULTS = st.builds(Fault, st.sampled_from(("stopped", "full", "killed")), st.integers(1, 12))
OPTIONS = st.sampled_from(({}, {"resume": True}, {"overwrite": True}))
SPOILT = {
    "deleted": lambda content, share: None,
    "cut off": lambda content, share: content[: int(share * len(content))],
    "zeros": lambda content, share: bytes(len(content)),
    "no text": lambda content, share: b"\xff\xfe" + content,
    "another": lambda content, share: b'{"seed,genotype": []}\n',
}


class RunDirectories(RuleBasedStateMachine):
    steps = 0

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.seed, self.spoilt = None, False

    def teardown(self):
        shutil.rmtree(self.folder)

    def run(self, seed, options, fault):
        config = ScoreConfig(space="toy:Chains", seed=seed, proxies=())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "fsync", fault.fsync)
            patch.setattr(Path, "unlink", lambda *a, **k: fault.unlink(*a, **k))
            runs.score.score(
                config, self.folder / "scores.csv", on_progress=fault.on_progress, **options
            )

    def files(self):
        """What the files hold; settings are written again, as they were, by who resumes."""
        return {path: content for path, (content, _) in snapshot(self.folder).items()}

    def rows(self):
        path = self.folder / "scores.csv"
        lines = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
        return [{**row, "seconds": None} for row in lines]

    @rule(
        seed=st.sampled_from((1, 2)),
        options=OPTIONS,
        fault=st.just(None) | FAULTS,
    )
    def start(self, seed, options, fault):
        self.count()
        fault = fault or Fault("none", 0)
        before, kept = self.files(), [] if self.spoilt else self.rows()
        there = any((self.folder / name).exists() for name in NAMES)
        try:
            self.run(seed, options, fault)
        except ValueError as error:
            assert "\n" not in str(error)
            resumes = "resume" in options
            assert there and "overwrite" not in options
            assert not resumes or self.spoilt or seed != self.seed
            assert self.files() == before
            return
        except (OSError, Stopped):
            assert fault.happened
            if "overwrite" in options or not there:
                self.spoilt = False
            else:
                assert all(row in self.rows() for row in kept)
        else:
            assert not there or options
            assert self.rows() == UNBROKEN[seed]
            assert sorted(os.listdir(self.folder)) == [".scores.csv.lock", *NAMES]
            self.spoilt = False
        self.seed = seed

    @rule(seed=st.sampled_from((1, 2)), options=OPTIONS)
    def start_while_another_runs(self, seed, options):
        self.count()
        before = self.files()
        with (
            FileLock(self.folder / ".scores.csv.lock"),
            pytest.raises(ValueError, match="is in use by another scoring"),
        ):
            self.run(seed, options, Fault("none", 0))
        assert self.files() == before

    @precondition(lambda self: any((self.folder / name).exists() for name in NAMES))
    @rule(
        name=st.sampled_from(NAMES), how=st.sampled_from(sorted(SPOILT)), share=st.floats(0, 0.99)
    )
    def spoil(self, name, how, share):
        self.count()
        path = self.folder / name
        if path.exists():
            content = SPOILT[how](path.read_bytes(), share)
            path.unlink() if content is None else path.write_bytes(content)
            self.spoilt = True

    def count(self):
        RunDirectories.steps += 1


UNBROKEN = {}
"""The rows of a run that nothing happened to, by its seed."""


@pytest.fixture(scope="module", autouse=True)
def without_programs(tmp_path_factory):
    dataset = SimpleNamespace(batch=lambda *_: None, num_classes=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.score, "Scorer", Sums)
        patch.setattr(runs.score, "genotypes_of", lambda config: GENOTYPES)
        patch.setattr(runs.score, "_weights", numbers_of)
        patch.setattr(runs.score, "datasets_of", lambda config: lambda seed: dataset)
        patch.setattr(runs.score, "provenance", dict)
        patch.setattr(runs.score, "_SECONDS_BETWEEN_WRITES", -1)
        for seed in (1, 2):
            machine = RunDirectories()
            machine.run(seed, {}, Fault("none", 0))
            UNBROKEN[seed] = machine.rows()
            machine.teardown()
        assert len(UNBROKEN[1]) == len(UNBROKEN[2]) == len(GENOTYPES) and UNBROKEN[1] != UNBROKEN[2]
        yield


def explored(number, **options):
    """Goes through so many sequences; returns how many steps that were."""
    RunDirectories.steps = 0
    chosen = settings(
        max_examples=number,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    run_state_machine_as_test(RunDirectories, settings=chosen)
    return RunDirectories.steps


def test_nothing_is_lost_and_nothing_wrong_is_kept():
    assert explored(25, derandomize=True) > 100


@pytest.mark.nightly
def test_nothing_is_lost_in_many_sequences():
    steps = explored(-(-MANY // STEPS))
    print(f"run directory: {steps} steps")
    assert steps >= MANY // 2
