"""Trainings from a configuration to a directory, killed and resumed."""

import csv
import dataclasses
import errno
import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import assert_one_line, assert_same, on_devices, snapshot

from nasi_jax import data, runs
from nasi_jax.cells import genotype_from_dict, parse_genotype
from nasi_jax.config import from_dict
from nasi_jax.training.recipes import TrainConfig
from nasi_jax.training.trainer import size_of

GENOTYPE = parse_genotype(
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
)
OTHER = parse_genotype(GENOTYPE.to_text().replace("none~1", "skip_connect~1"))
CONFIG = TrainConfig(
    epochs=3, batch_size=128, crop="none", init_channels=2, num_cells=1, image_size=8, seed=3
)
PER_EPOCH = 1500 // 128
STEPS = CONFIG.epochs * PER_EPOCH
TIMES = ("images_per_second", "seconds")


class Stopped(Exception):
    """What a test ends a training with."""


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished training: its directory, what `train` returned, and what it told of itself."""
    out = tmp_path_factory.mktemp("finished") / "made" / "here"
    told = []
    summary = runs.train.train(GENOTYPE, CONFIG, out, on_progress=told.append)
    return out, summary, told


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished training's directory."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(runs.train, "_SECONDS_BETWEEN_CHECKPOINTS", 0)


def metrics(out):
    """The columns of `metrics.csv`."""
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def checkpoints(out):
    return sorted(os.listdir(out / "checkpoint"))


def kept(out):
    """All that the last checkpoint holds, less the times, read without what wrote it."""
    with ocp.CheckpointManager(out / "checkpoint") as manager:
        content = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    times = [runs.train.COLUMNS.index(name) for name in TIMES]
    return {**content, "history": np.delete(content["history"], times, axis=1)}


def assert_ended_alike(out, other):
    """Two trainings have the same parameters, statistics, momenta and metrics, bit for bit."""
    ours, theirs = kept(out), kept(other)
    assert ours.keys() == {"state", "totals", "history"}
    assert ours["state"].keys() == {"params", "batch_stats", "opt_state", "step"}
    assert_same(ours, theirs)
    ours, theirs = metrics(out), metrics(other)
    for name in set(ours) - set(TIMES):
        np.testing.assert_array_equal(ours[name], theirs[name])
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (out, other))
    timed = {"images_per_second", "seconds"}
    assert {**ours, **dict.fromkeys(timed)} == {**theirs, **dict.fromkeys(timed)}


def train(out, config=CONFIG, genotype=GENOTYPE, *, until=None, **options):
    """Trains, to the end or until so many steps are done; returns what it told of itself."""
    told = []

    def on_progress(progress):
        told.append((progress.stage, progress.done))
        if told[-1] == ("training", until):
            raise Stopped

    if until is None:
        runs.train.train(genotype, config, out, on_progress=on_progress, **options)
    else:
        with pytest.raises(Stopped):
            runs.train.train(genotype, config, out, on_progress=on_progress, **options)
        assert not (out / "summary.json").exists()
    return told


def test_the_metrics_have_a_row_an_epoch(finished):
    columns = metrics(finished[0])
    assert (finished[0] / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoints(finished[0]) == [str(STEPS)]
    assert tuple(columns) == runs.train.COLUMNS
    assert columns["epoch"].tolist() == [1, 2, 3]
    # The cosine at the last step of each epoch.
    last = PER_EPOCH * columns["epoch"] - 1
    expected = 0.05 * (1 + np.cos(np.pi * last / STEPS))
    np.testing.assert_allclose(columns["learning_rate"], expected, rtol=1e-5, atol=1e-8)
    assert columns["train_loss"][-1] < columns["train_loss"][0]
    assert columns["test_accuracy"][-1] > 20  # chance is 10
    assert (columns["images_per_second"] > 0).all()
    np.testing.assert_allclose(
        columns["seconds"] * columns["images_per_second"], PER_EPOCH * CONFIG.batch_size
    )


def test_the_summary_agrees_with_the_metrics(finished):
    out, returned, _ = finished
    summary, columns = json.loads((out / "summary.json").read_text()), metrics(out)
    assert summary == json.loads(json.dumps(returned))
    accuracy = columns["test_accuracy"]
    assert summary["last_accuracy"] == accuracy[-1]
    assert summary["best_accuracy"] == accuracy.max()
    assert summary["best_epoch"] == columns["epoch"][accuracy == accuracy.max()][0]
    assert summary["last_test_loss"] == columns["test_loss"][-1]
    assert summary["images_per_second"] == np.median(columns["images_per_second"])
    assert summary["seconds"] == pytest.approx(columns["seconds"].sum())


def test_the_summary_says_what_was_trained_and_how(finished):
    out, _, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert genotype_from_dict(summary["genotype"]) == parse_genotype(summary["text"]) == GENOTYPE
    assert from_dict(summary["config"], TrainConfig) == CONFIG
    assert json.loads((out / "config.json").read_text()) == {
        "genotype": GENOTYPE.to_text(),
        **summary["config"],
    }
    assert (summary["seed"], summary["norm"]) == (3, "running")
    assert summary["mesh"] == {"data": 1, "sample": 1}
    assert summary["device"].startswith(("cpu: ", "gpu: "))
    packages = {"python", "nasi-jax", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert summary["versions"].keys() >= packages
    assert runs.train.saved(out) == (GENOTYPE, CONFIG, 1)


def test_the_accuracy_is_that_of_the_network(finished):
    """On test images as `data` normalizes them, with the loss in numpy and in float64."""
    out, summary, _ = finished
    network = runs.train.trained(out)
    test = data.load("digits", split="test", image_size=8)
    inputs, labels = test.fetch(np.arange(test.num_examples))
    logits = np.asarray(jax.jit(network.network.apply)(network.variables, inputs), np.float64)
    hits = logits.argmax(axis=1) == np.asarray(labels)
    assert test.num_examples == 297
    assert summary["last_accuracy"] == 100 * hits.sum() / 297
    log_sum = np.log(np.exp(logits - logits.max(axis=1)[:, None]).sum(axis=1)) + logits.max(axis=1)
    losses = log_sum - logits[np.arange(297), np.asarray(labels)]
    # Sums of some hundred losses in float32.
    np.testing.assert_allclose(summary["last_test_loss"], losses.mean(), rtol=1e-5)


def test_what_was_trained_is_read_back(finished):
    out, summary, _ = finished
    network = runs.train.trained(out)
    assert (network.genotype, network.config) == (GENOTYPE, CONFIG)
    assert network.class_names == tuple("0123456789")
    train = data.load("digits", split="train", image_size=8)
    assert (network.images.num_classes, network.images.num_examples) == (10, 1500)
    assert network.images.scale == train.scale == 16
    np.testing.assert_array_equal(network.images.mean, train.mean)
    np.testing.assert_array_equal(network.images.std, train.std)
    params = kept(out)["state"]["params"]
    assert_same(network.variables["params"], params)
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    state = runs.train._Kept(**kept(out)).state
    variables = {name: state[name] for name in ("params", "batch_stats")}
    sizes = size_of(network.network, variables, 8)
    assert sizes["multiply_adds"] == summary["multiply_adds"]


def test_progress_is_told_of_every_step(finished):
    _, _, told = finished
    assert [(stage, steps, done) for stage, steps, done, _, _ in told] == [
        ("compiling", STEPS, 0),
        ("compiled", STEPS, 0),
        *[("training", STEPS, done) for done in range(1, STEPS + 1)],
    ]
    # The first step is under way when it is told of, so nothing is known of its time.
    assert [done for _, _, done, seconds, _ in told if not seconds] == [0, 0, 1]
    assert "images/s" not in told[2][-1]


def figures_of(told):
    """What was told in words at each step, by name and in numbers."""
    found = {}
    for stage, _, done, seconds, figures in told:
        if stage != "training":
            continue
        parts = [part.replace(" %", "").split() for part in figures.split("  ")]
        found[done] = {
            part[0]: part[1] if part[0] == "epoch" else float(part[1])
            for part in parts
            if part[1] != "images/s"
        }
        if seconds:
            assert parts[-1][1] == "images/s" and float(parts[-1][0]) > 0
    return found


def assert_figures(figures, columns, first):
    """From step `first` on they are means over the first epoch so far."""
    assert all("loss" not in figures[done] for done in range(1, first))
    # That of nearly equal probabilities.
    assert figures[first]["loss"] == pytest.approx(np.log(10), abs=0.2)
    assert figures[PER_EPOCH - 1]["loss"] == pytest.approx(columns["train_loss"][0], abs=0.05)
    assert figures[PER_EPOCH - 1]["accuracy"] == pytest.approx(columns["train_accuracy"][0], abs=4)
    assert "loss" not in figures[PER_EPOCH]
    assert figures[PER_EPOCH]["test"] == pytest.approx(columns["test_accuracy"][0], abs=0.005)


def test_figures_are_means_over_the_epoch(finished):
    """Of all steps but the last, which is under way."""
    assert_figures(figures_of(finished[2]), metrics(finished[0]), 2)


def test_figures_at_a_checkpoint_are_means_too(tmp_path, every_step_is_kept):
    told, config = [], dataclasses.replace(CONFIG, epochs=1)
    runs.train.train(GENOTYPE, config, tmp_path, on_progress=told.append)
    assert_figures(figures_of(told), metrics(tmp_path), 1)


def test_figures_name_the_epoch(finished):
    figures = figures_of(finished[2])
    for done, found in figures.items():
        assert found["epoch"] == f"{-(-done // PER_EPOCH)}/3"
        assert ("test" in found) == (done >= PER_EPOCH)


def test_random_labels_are_trained_on(finished, tmp_path):
    train(tmp_path, dataclasses.replace(CONFIG, epochs=1, labels="random"))
    assert metrics(tmp_path)["train_loss"][0] > metrics(finished[0])["train_loss"][0]


def test_an_epoch_may_be_one_step(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, batch_size=1000)
    assert [done for stage, done in train(tmp_path, config) if stage == "training"] == [1, 2]
    assert len(metrics(tmp_path)["epoch"]) == 2


def test_a_training_broken_again_and_again_ends_as_an_unbroken_one(
    finished, tmp_path, every_step_is_kept
):
    """One step before the end of an epoch, at its end and after the first step of the next."""
    first = 0
    for until in (10, 11, 12, None):
        told = train(tmp_path, until=until, resume=first > 0)
        last = until or STEPS
        assert told == [
            ("compiling", first),
            ("compiled", first),
            *[("training", done) for done in range(first + 1, last + 1)],
        ]
        assert checkpoints(tmp_path) == [str(last)]
        first = last
    assert_ended_alike(tmp_path, finished[0])


@pytest.mark.parametrize(("until", "last"), [(5, 0), (16, 11), (33, 33)])
def test_between_checkpoints_a_training_goes_back_to_the_last(finished, tmp_path, until, last):
    """At an epoch's end there is one."""
    train(tmp_path, until=until)
    assert checkpoints(tmp_path) == ([str(last)] if last else [])
    told = train(tmp_path, resume=True)
    assert [done for stage, done in told if stage == "training"] == list(range(last + 1, STEPS + 1))
    assert_ended_alike(tmp_path, finished[0])


def test_a_half_removed_checkpoint_is_not_used(finished, tmp_path):
    train(tmp_path, until=22)
    older = tmp_path / "checkpoint" / "11"
    shutil.copytree(tmp_path / "checkpoint" / "22", older)
    shutil.rmtree(older / "default" / "d")
    (older / "_CHECKPOINT_METADATA").unlink()
    assert train(tmp_path, resume=True)[1] == ("compiled", 22)
    assert checkpoints(tmp_path) == [str(STEPS)]
    assert_ended_alike(tmp_path, finished[0])


def test_another_genotype_is_not_resumed(copy):
    before = snapshot(copy)
    with pytest.raises(ValueError) as caught:
        train(copy, CONFIG, OTHER, resume=True)
    assert_one_line(caught, f"has genotype {GENOTYPE.to_text()} not {OTHER.to_text()}")
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[]", "an object of settings, got list"),
        ("{}", "got genotype None, seeds 1"),
        ('{"genotype": 3}', "got genotype 3, seeds 1"),
        ('{"genotype": "|none~0|"}', "|none~0|"),
        ('{"genotype": "GENOTYPE", "epoch": 1}', "unknown setting epoch; known: auxiliary_weight"),
        (
            '{"genotype": "GENOTYPE", "epochs": "many"}',
            "epochs must be an integer from 1 to 100000, got 'many'",
        ),
        ('{"genotype": "GENOTYPE", "seeds": "many"}', "seeds 'many'"),
    ],
)
def test_a_spoilt_configuration_is_not_read(copy, content, message):
    (copy / "config.json").write_text(content.replace("GENOTYPE", GENOTYPE.to_text()))
    for read in (runs.train.saved, runs.train.trained):
        with pytest.raises(ValueError) as caught:
            read(copy)
        assert "config.json is not the configuration of a training: " in str(caught.value)
        assert message in str(caught.value)


def test_a_training_does_not_go_on_with_other_images(tmp_path):
    """A file of the same name and of the same number of images."""
    digits = data.load("digits", split="train", image_size=8)
    images, labels = digits.images(np.arange(200))
    file = tmp_path / "images.npz"

    def save(scale):
        arrays = {
            f"{x}_{part}": each
            for part in ("train", "test")
            for x, each in (("x", scale * images), ("y", labels))
        }
        np.savez(file, **arrays)

    save(1)
    config = dataclasses.replace(CONFIG, epochs=1, data=str(file), batch_size=100)
    train(tmp_path / "out", config)
    before = {name: content for name, (content, _) in snapshot(tmp_path / "out").items()}
    save(2)
    with pytest.raises(ValueError, match="the images are not those that the training in"):
        runs.train.train(GENOTYPE, config, tmp_path / "out", resume=True)
    after = {name: content for name, (content, _) in snapshot(tmp_path / "out").items()}
    assert after == before


@pytest.mark.parametrize("content", [None, "", "3", "{}", '{"class_names": ["a"]}'])
def test_a_spoilt_description_of_the_data_is_not_read(copy, content):
    (copy / "data.json").unlink()
    if content is not None:
        (copy / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"cannot read .*data\.json: "):
        runs.train.trained(copy)


def test_what_holds_no_network_is_not_read(tmp_path):
    with pytest.raises(ValueError, match="missing holds no training"):
        runs.train.trained(tmp_path / "missing")
    assert os.listdir(tmp_path) == []
    train(tmp_path, until=1)
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        runs.train.trained(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def fails(self, step, **options):
        if step == 2 * PER_EPOCH:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", fails)
    with pytest.raises(OSError) as caught:
        train(tmp_path)
    assert str(caught.value) == (
        f"cannot write the checkpoint of step 22 into {tmp_path}/checkpoint, the one before is "
        "kept: [Errno 28] No space left on device"
    )
    assert checkpoints(tmp_path) == ["11"]


@pytest.mark.parametrize(
    ("at", "seconds", "last"), [(4, 1e9, 0), (14, 1e9, 11), (14, 0, 13), (22, 1e9, 11)]
)
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, monkeypatch, at, seconds, last):
    """The first step is 1."""
    monkeypatch.setattr(runs.train, "_SECONDS_BETWEEN_CHECKPOINTS", seconds)
    compiled = runs.train._Loop._compiled

    def spoilt(self, state):
        step, evaluate = compiled(self, state)

        def spoilt_step(key, state, *batch):
            done = int(state.step) + 1
            state, score = step(key, state, *batch)
            return state, score._replace(loss=score.loss * (np.nan if done == at else 1.0))

        return spoilt_step, evaluate

    monkeypatch.setattr(runs.train._Loop, "_compiled", spoilt)
    with pytest.raises(FloatingPointError) as caught:
        train(tmp_path)
    left = f"the checkpoint of step {last} is kept" if last else "there is no checkpoint yet"
    assert str(caught.value) == (
        f"the loss is nan at step {at} of 33; a lower learning_rate may help; {left}"
    )
    assert checkpoints(tmp_path) == ([str(last)] if last else [])
    assert not (tmp_path / "summary.json").exists()


def test_parameters_that_are_not_finite_are_not_kept(finished, tmp_path, monkeypatch):
    """From an image that is not; on some devices the loss is finite nevertheless."""
    batch = runs.train._Loop._batch

    def spoilt(self, step):
        images, labels = batch(self, step)
        return (images * np.nan if step == 13 else images), labels

    monkeypatch.setattr(runs.train._Loop, "_batch", spoilt)
    with pytest.raises(FloatingPointError, match=r" step (14|15|22) of 33.* of step 11 is kept"):
        train(tmp_path)
    assert checkpoints(tmp_path) == ["11"]
    assert len(metrics(tmp_path)["epoch"]) == 1
    monkeypatch.undo()
    train(tmp_path, resume=True)
    assert_ended_alike(tmp_path, finished[0])


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_a_huge_learning_rate_keeps_only_what_is_finite(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(runs.train, "_SECONDS_BETWEEN_CHECKPOINTS", seconds)
    with pytest.raises(FloatingPointError, match=r" step \d+ of 33; a lower learning_rate may"):
        train(tmp_path, dataclasses.replace(CONFIG, learning_rate=1e6))
    assert len(checkpoints(tmp_path)) == (seconds == 0)
    if seconds == 0:
        for leaf in jax.tree.leaves(runs.train.trained(tmp_path).variables):
            assert np.isfinite(leaf).all()


ONE_EPOCH = dataclasses.replace(CONFIG, epochs=1)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A training from two seeds: its directory, what was returned, and what was told."""
    out, told = tmp_path_factory.mktemp("seeds"), []
    summary = runs.train.train_seeds(GENOTYPE, ONE_EPOCH, out, 2, on_progress=told.append)
    return out, summary, told


def test_seeds_have_directories_of_their_own(seeds):
    out, returned, _ = seeds
    assert sorted(os.listdir(out)) == [".lock", "config.json", "seed-3", "seed-4", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(returned))
    each = [
        json.loads((out / f"seed-{seed}" / "summary.json").read_text())["last_accuracy"]
        for seed in (3, 4)
    ]
    mean = (each[0] + each[1]) / 2
    deviation = np.sqrt((each[0] - mean) ** 2 + (each[1] - mean) ** 2)  # over 2 - 1
    assert each[0] != each[1]
    for name in ("last_accuracy", "best_accuracy"):  # the same after one epoch
        assert summary[name]["values"] == each
        assert summary[name]["mean"] == pytest.approx(mean)
        assert summary[name]["standard_deviation"] == pytest.approx(deviation)
    assert [one["seed"] for one in summary["trainings"]] == [3, 4]
    assert genotype_from_dict(summary["genotype"]) == GENOTYPE and summary["seeds"] == 2
    assert runs.train.saved(out) == (GENOTYPE, ONE_EPOCH, 2)


def test_progress_names_the_seed(seeds):
    _, _, told = seeds
    stages = [(stage, figures.split("  ")[0]) for stage, *_, figures in told]
    assert stages == [
        (stage, f"seed {seed}")
        for seed in (3, 4)
        for stage in ("compiling", "compiled", *PER_EPOCH * ["training"])
    ]


def test_a_seed_is_trained_as_it_is_alone(seeds, tmp_path):
    train(tmp_path, dataclasses.replace(ONE_EPOCH, seed=4))
    assert_ended_alike(tmp_path, seeds[0] / "seed-4")


@pytest.mark.parametrize(
    ("seed", "seeds", "message"),
    [
        (3, 1, "seeds must be from 2 to 1000, got 1"),
        (3, 1001, "seeds must be from 2 to 1000, got 1001"),
        (2**32 - 1, 2, "seed \\+ seeds must be at most 4294967296, got 4294967295 \\+ 2"),
    ],
)
def test_numbers_of_seeds_out_of_range(tmp_path, seed, seeds, message):
    with pytest.raises(ValueError, match=message):
        runs.train.train_seeds(GENOTYPE, dataclasses.replace(CONFIG, seed=seed), tmp_path, seeds)
    assert os.listdir(tmp_path) == []


def test_seeds_do_not_replace_anything_unasked(seeds, copy, tmp_path):
    """Neither one training by several, nor several by one, nor one of several."""
    several = shutil.copytree(seeds[0], tmp_path / "several")
    one = tmp_path / "one"
    shutil.copytree(seeds[0] / "seed-4", one / "seed-4")
    before = [snapshot(path) for path in (copy, several, one)]
    for out in (copy, several, one):
        with pytest.raises(ValueError, match="holds a training already"):
            runs.train.train_seeds(GENOTYPE, CONFIG, out, 2)
    with pytest.raises(ValueError, match="holds a training already"):
        train(several, ONE_EPOCH)
    with pytest.raises(ValueError, match="has epochs 3 not 1, seeds None not 2"):
        runs.train.train_seeds(GENOTYPE, ONE_EPOCH, copy, 2, resume=True)
    with pytest.raises(ValueError, match="has seeds 2 not None"):
        train(several, ONE_EPOCH, resume=True)
    with pytest.raises(ValueError, match="has seeds 2 not 3"):
        runs.train.train_seeds(GENOTYPE, ONE_EPOCH, several, 3, resume=True)
    wrong = dataclasses.replace(ONE_EPOCH, batch_size=2000)
    with pytest.raises(ValueError, match="batch_size must be at most 1500"):
        runs.train.train_seeds(GENOTYPE, wrong, several, 2, overwrite=True)
    assert [lockless(snapshot(path)) for path in (copy, several, one)] == [
        lockless(found) for found in before
    ]
    with pytest.raises(ValueError, match=r"holds 2 trainings: name one, such as .*/seed-3"):
        runs.train.trained(several)


def lockless(found):
    return {path: content for path, content in found.items() if path.name != ".lock"}


DEVICES = """
    import dataclasses, json, sys
    from pathlib import Path

    import conftest
    import jax
    import test_train as test
    from nasi_jax import device_mesh, runs

    out = Path(sys.argv[1])
    for name, config in test.SHARED.items():
        summary = runs.train.train(test.GENOTYPE, config, out / name)
        assert summary["mesh"] == {"data": jax.local_device_count(), "sample": 1}
    before = test.snapshot(out)
    for train in (runs.train.train, lambda *a, **k: runs.train.train_seeds(*a, 2, **k)):
        try:
            train(
                test.GENOTYPE,
                dataclasses.replace(config, batch_size=125, norm_group=None, micro_batches=1),
                out / name,
                mesh=device_mesh(data=2),
                overwrite=True,
            )
        except ValueError as error:
            print(error)
    assert test.snapshot(out) == before
"""

# At a tenth of the usual learning rate: at the usual one a difference in the last digit grows to
# 1% in 33 steps.
SHARED = {
    "plain": dataclasses.replace(ONE_EPOCH, learning_rate=0.01),
    "groups": dataclasses.replace(ONE_EPOCH, learning_rate=0.01, norm_group=32, micro_batches=2),
}


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path):
    process = on_devices(2, DEVICES, tmp_path / "two", folders=[os.path.dirname(__file__)])
    assert process.returncode == 0, process.stderr
    refusal = "batch_size must be a multiple of the 2 devices along data, got 125"
    assert process.stdout.splitlines() == [refusal, refusal]
    for name, config in SHARED.items():
        train(tmp_path / "one" / name, config)
        one, two = metrics(tmp_path / "one" / name), metrics(tmp_path / "two" / name)
        assert one.keys() == two.keys()
        # Rounding, which 11 steps raised to 5e-6; statistics of each device's half give 2e-3.
        for column in ("train_loss", "test_loss"):
            np.testing.assert_allclose(two[column], one[column], rtol=1e-4)
        # One image that lies on the border of two classes.
        for column, images in (("train_accuracy", PER_EPOCH * 128), ("test_accuracy", 297)):
            np.testing.assert_allclose(two[column], one[column], rtol=0, atol=100.1 / images)
        # What two devices saved is read by one.
        trained, read = (runs.train.trained(tmp_path / each / name) for each in ("one", "two"))
        for leaf, expected in zip(
            jax.tree.leaves(read.variables), jax.tree.leaves(trained.variables), strict=True
        ):
            np.testing.assert_allclose(leaf, expected, rtol=1e-2, atol=1e-3)
