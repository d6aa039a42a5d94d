"""`nasi train`, `nasi export` and `nasi predict` as a user meets them."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from helpers import assert_same, python_path, snapshot
from PIL import Image

from nasi_jax import cli, data, runs
from nasi_jax.cells import SEARCH_SPACES, genotype_to_dict, parse_genotype
from nasi_jax.cli import main
from nasi_jax.storage import files
from nasi_jax.training.recipes import RECIPES

TEXT = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
GENOTYPE = parse_genotype(TEXT)
DARTS = SEARCH_SPACES["darts"].sample(jax.random.key(0))
SMALL = shlex.split(
    "--recipe quick --epochs 2 --batch-size 128 --crop none --init-channels 2 --num-cells 1 "
    "--image-size 8 --seed 3"
)
CONFIG = dataclasses.replace(
    RECIPES["quick"],
    epochs=2,
    batch_size=128,
    crop="none",
    init_channels=2,
    num_cells=1,
    image_size=8,
    seed=3,
)
TRAIN = ["train", TEXT, *SMALL]
STEPS = 22


pytestmark = pytest.mark.usefixtures("quick_compilation")


def nasi(*arguments, script="", **options):
    """Runs the command in a process of its own, after the lines of a script."""
    program = f"{textwrap.dedent(script)}\nfrom nasi_jax import cli\ncli.main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path()},
        **options,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished training: its directory, and the process that ran it."""
    out = tmp_path_factory.mktemp("finished") / "train"
    process = nasi(*TRAIN, "--out", out)
    assert process.returncode == 0, process.stderr
    return out, process


@pytest.fixture
def failed(capsys):
    """Maps arguments to the lines on stderr, the last of which is the error."""

    def failed(*arguments, status):
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert caught.value.code == status
        assert out == "" and "Traceback" not in err
        *progress, error = err.splitlines()
        assert error.startswith("nasi: error: ")
        assert not any("error" in line for line in progress)
        return [*progress, error.removeprefix("nasi: error: ")]

    return failed


@pytest.fixture
def refused(failed):
    """Maps arguments to the one line that the command ends with."""

    def refused(*arguments):
        (message,) = failed(*arguments, status=2)
        return message

    return refused


def assert_ended_alike(out, other):
    assert_same(runs.train.trained(out).variables, runs.train.trained(other).variables)
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (out, other))
    timed = {"images_per_second", "seconds"}
    assert {**ours, **dict.fromkeys(timed)} == {**theirs, **dict.fromkeys(timed)}


def test_a_training_prints_the_genotype_and_the_accuracy(finished):
    out, process = finished
    summary = json.loads((out / "summary.json").read_text())
    genotype, trained, wrote = process.stdout.splitlines()
    assert genotype == TEXT == summary["text"]
    assert trained == (
        f"seed 3: test accuracy {summary['last_accuracy']:.2f} % after 2 epochs "
        f"(best {summary['best_accuracy']:.2f} % after {summary['best_epoch']}), "
        f"{summary['parameters']:,} parameters, {summary['multiply_adds'] / 1e6:.1f} M "
        f"multiply-adds, {summary['seconds']:.0f} s on {summary['device']}"
    )
    assert wrote == f"wrote {out}/summary.json, metrics.csv, curves.png, checkpoint"
    assert sorted(os.listdir(out)) == sorted([".lock", *runs.train.FILES])
    assert runs.train.saved(out) == (GENOTYPE, CONFIG, 1)


def test_a_training_that_is_not_watched_says_how_far_it_is(finished):
    first, compiled, second, *_ = finished[1].stderr.splitlines()
    assert first == (
        "compiling a training step, recipe quick, init_channels 2, num_cells 1, batch 128"
    )
    assert re.fullmatch(r"compiled in \d+\.\d s(, from the cache)?", compiled)
    assert second == "training  1/22  epoch 1/2"


def test_progress_tells_of_loss_accuracy_speed_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_SECONDS_BETWEEN_LINES", -1)
    main([*TRAIN, "--out", str(tmp_path)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    assert len(lines) == STEPS
    assert lines[0] == "training  1/22  epoch 1/2"
    left = r"training  {}/22  \d:\d\d:\d\d left  epoch {}/2  "
    figures = r"loss \d\.\d{3}  accuracy \d+\.\d %  "
    assert re.fullmatch(left.format(5, 1) + figures + r"\d+ images/s", lines[4])
    assert re.fullmatch(left.format(11, 1) + r"test \d+\.\d\d %  \d+ images/s", lines[10])
    assert re.fullmatch(left.format(15, 2) + figures + r"test .* images/s", lines[14])
    assert "22/22  0:00:00 left" in lines[-1]


@pytest.fixture
def seen(monkeypatch):
    """What `nasi train` would train, without doing so."""
    calls = []

    def train(genotype, config, out, *seeds, **options):
        del options["on_progress"]
        calls.append((genotype, config, out, *seeds, options))
        raise ValueError("seen")

    monkeypatch.setattr(runs.train, "train", train)
    monkeypatch.setattr(runs.train, "train_seeds", train)

    def seen(*arguments):
        with pytest.raises(SystemExit):
            main(["train", *map(str, arguments)])
        return calls.pop()

    return seen


NEITHER = {"resume": False, "overwrite": False, "mesh": None}


def test_a_genotype_may_be_text_json_or_the_result_of_a_search(seen, tmp_path):
    as_json = json.dumps(genotype_to_dict(GENOTYPE))
    result, out = tmp_path / "result.json", tmp_path / "out"
    content = {"text": TEXT, "genotype": genotype_to_dict(GENOTYPE), "alpha": {}}
    result.write_text(json.dumps(content, indent=2))
    for genotype in (TEXT, as_json, result):
        assert seen(genotype, *SMALL, "--out", out) == (GENOTYPE, CONFIG, out, NEITHER)
        # Settings may come first too.
        assert seen(*SMALL, "--out", out, genotype) == (GENOTYPE, CONFIG, out, NEITHER)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_gives_what_is_not_given(seen, recipe):
    genotype = DARTS.to_text()
    assert cli._train_default(["train", "--recipe", recipe]).config == RECIPES[recipe]
    assert seen(genotype, "--recipe", recipe)[1] == RECIPES[recipe]
    changed = dataclasses.replace(RECIPES[recipe], epochs=7, cutout=8, flip=False)
    flags = ["--epochs", 7, f"--recipe={recipe}", "--cutout", 8, "--no-flip"]
    assert seen(genotype, *flags)[1] == changed


def test_help_shows_the_values_of_the_recipe(capsys):
    defaults = {}
    for recipe in ("quick", "darts-cifar10"):
        with pytest.raises(SystemExit) as caught:
            main(["train", "--recipe", recipe, "--help"])
        assert caught.value.code == 0
        words = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().out).split())
        defaults[recipe] = re.search(r"--epochs INT .*?\(default: (\d+)\)", words)[1]
    assert defaults == {"quick": str(RECIPES["quick"].epochs), "darts-cifar10": "600"}


def test_several_seeds(seen, tmp_path):
    found = seen(TEXT, *SMALL, "--seeds", 5, "--out", tmp_path, "--overwrite")
    assert found == (
        GENOTYPE,
        CONFIG,
        tmp_path,
        5,
        {"resume": False, "overwrite": True, "mesh": None},
    )


def test_seeds_are_reported_and_resumed_without_naming_them(tmp_path, capsys, monkeypatch):
    flags = ["--epochs", "1", "--seeds", "2", "--out", str(tmp_path)]
    main([*TRAIN, *flags])
    out, err = capsys.readouterr()
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["last_accuracy"]
    lines = out.splitlines()
    assert lines[0] == TEXT
    for line, seed, accuracy in zip(lines[1:3], (3, 4), found["values"], strict=True):
        assert line.startswith(f"seed {seed}: test accuracy {accuracy:.2f} % after 1 epochs ")
    assert lines[3:] == [
        f"2 seeds: test accuracy {found['mean']:.2f} % ± {found['standard_deviation']:.2f} "
        "(standard deviation)",
        f"wrote {tmp_path}/summary.json",
    ]
    assert sum(line.startswith("compiled in ") for line in err.splitlines()) == 2
    assert "training  1/11  seed 3  epoch 1/1" in err.splitlines()
    shutil.rmtree(tmp_path / "seed-4")
    (tmp_path / "summary.json").unlink()
    main(["train", "--resume", "--out", str(tmp_path)])
    resumed = capsys.readouterr().out.splitlines()
    assert [resumed[0], *resumed[3:]] == [lines[0], *lines[3:]]
    assert json.loads((tmp_path / "summary.json").read_text())["last_accuracy"] == found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data digits.npy", "digits and gaussian need no download; a path may lead to an"),
        ("--data nowhere.npz", "there is no file or folder nowhere.npz; digits and gaussian"),
        (
            "--batch-size 2000",
            "batch_size must be at most 1500, the examples to train on, got 2000",
        ),
        (
            "--auxiliary-weight 0.4",
            "no auxiliary_weight, got auxiliary_weight 0.4: use",
        ),
        ("--recipe darts-cifar10", "got auxiliary_weight 0.4, drop_path 0.2: use the recipe"),
        ("--stem imagenet", "networks of nasbench201 have no stem, got stem imagenet: use"),
        ("--seeds 0", "seeds must be from 1 to 1000, got 0"),
        ("--seeds -1", "seeds must be from 1 to 1000, got -1"),
        ("--seeds 1001", "seeds must be from 2 to 1000, got 1001"),
        ("--epochs 0", "epochs must be an integer from 1 to 100000, got 0"),
        ("--learning-rate nan", "learning_rate must be a number from 0.0 to 1000000.0, got nan"),
        ("--epochs 5 --warmup-epochs 5", "warmup_epochs must be below epochs, 5, got 5"),
        ("--norm-group 7", "batch_size must be a multiple of norm_group, 7, got 64"),
        ("--micro-batches 2", "micro_batches must leave whole groups of 64 examples that share "),
        ("--image-size 10", "image_size must be at least 8 and a multiple of 4, "),
        ("--num-cells 0", "num_cells of nasbench201 must be at least 1, got 0"),
        ("--resume --overwrite", "--resume and --overwrite exclude each other"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, refused, flags, message):
    assert message in refused("train", TEXT, *flags.split(), "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_genotype_must_be_named(tmp_path, refused):
    message = refused("train", "--out", tmp_path / "out")
    assert message == "name a genotype to train, or a file that holds one"
    assert refused("train", "|none~0|").endswith("; and there is no such file")
    message = refused("train", "--resume", "--out", tmp_path / "out")
    assert message == f"no training to resume: cannot read {tmp_path}/out/config.json"
    assert os.listdir(tmp_path) == []


def test_resuming_nothing_is_a_training(seen, tmp_path):
    found = seen(TEXT, *SMALL, "--resume", "--out", tmp_path)
    assert found == (GENOTYPE, CONFIG, tmp_path, {"resume": True, "overwrite": False, "mesh": None})


def test_a_training_is_not_replaced_unasked(finished, refused):
    before = snapshot(finished[0])
    assert refused(*TRAIN, "--out", finished[0]) == (
        f"the directory {finished[0]} holds a training already (config.json): continue it with "
        "--resume, replace it with --overwrite, or name another directory"
    )
    assert refused("train", "--resume", "--out", finished[0], "--seed", 5) == (
        "the training to resume has seed 3 not 5"
    )
    other = TEXT.replace("none~1", "skip_connect~1")
    assert refused("train", other, "--resume", "--out", finished[0]) == (
        f"the training to resume has genotype {TEXT} not {other}"
    )
    assert refused("train", "--resume", "--out", finished[0], "--seeds", 2) == (
        "the training to resume has seeds None not 2"
    )
    assert snapshot(finished[0]) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": "many"}', '{"steps": 3}'])
def test_a_spoilt_configuration_is_not_resumed(tmp_path, refused, content):
    (tmp_path / "config.json").write_text(content)
    for arguments in ([], [TEXT, *SMALL]):
        message = refused("train", *arguments, "--resume", "--out", tmp_path)
        expected = f"{tmp_path}/config.json is not the configuration of a training: "
        assert message.startswith(expected)


# Processes of a shell's background job ignore SIGINT, and so would their own.
INTERRUPTED = """
    import os, signal
    from nasi_jax import runs

    signal.signal(signal.SIGINT, signal.default_int_handler)
    runs.train._SECONDS_BETWEEN_CHECKPOINTS = 0
    report = runs.train._Loop._report

    def interrupted(self, done, *rest):
        report(self, done, *rest)
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    runs.train._Loop._report = interrupted
"""


def test_an_interrupted_training_can_go_on(finished, tmp_path, capsys):
    process = nasi(*TRAIN, "--out", tmp_path, script=INTERRUPTED)
    assert process.returncode == 130
    message = "nasi: error: stopped; the same command with --resume goes on where it was"
    assert process.stderr.splitlines()[-1] == message
    assert "Traceback" not in process.stderr
    main([*TRAIN, "--out", str(tmp_path), "--resume"])
    assert "training  4/22  " in capsys.readouterr().err
    assert_ended_alike(tmp_path, finished[0])


# Files of more than a thousand bytes cannot be written once there is a checkpoint.
FULL = """
    import resource
    from nasi_jax import runs

    save = runs.train._Loop._save

    def full(self, *arguments):
        save(self, *arguments)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))

    runs.train._Loop._save = full
"""


def test_a_full_disk_keeps_the_last_checkpoint(finished, tmp_path):
    process = nasi(*TRAIN, "--out", tmp_path, script=FULL)
    assert process.returncode == 1
    assert process.stdout == "" and "Traceback" not in process.stderr
    *progress, error = process.stderr.splitlines()
    assert error.startswith(
        f"nasi: error: cannot write the checkpoint of step 22 into {tmp_path}/checkpoint, the one "
        "before is kept: "
    )
    assert "File too large" in error
    assert not any("rror" in line for line in progress)
    assert not (tmp_path / "summary.json").exists()
    assert runs.train.trained(tmp_path).config == CONFIG
    main(["train", "--resume", "--out", str(tmp_path)])
    assert os.listdir(tmp_path / "checkpoint") == ["22"]
    assert_ended_alike(tmp_path, finished[0])


@pytest.mark.parametrize("name", ["metrics.csv", "curves.png", "summary.json"])
def test_a_file_that_cannot_be_written_is_one_line(finished, tmp_path, failed, monkeypatch, name):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    (out / "summary.json").unlink()
    write = files.write_bytes

    def full(path, content):
        if os.path.basename(path) == name:
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", full)
    *_, message = failed("train", "--resume", "--out", out, status=1)
    assert message == f"[Errno 28] No space left on device: '{out}/{name}'"
    assert not (out / "summary.json").exists()


def test_a_huge_learning_rate_is_one_line(tmp_path, failed):
    *_, message = failed(*TRAIN, "--learning-rate", 1e6, "--out", tmp_path, status=1)
    assert re.fullmatch(
        r"(the loss is (nan|inf) at|a parameter is not finite after) step \d+ of 22; a lower "
        r"learning_rate may help; there is no checkpoint yet",
        message,
    )
    assert not (tmp_path / "summary.json").exists()


def test_a_damaged_checkpoint_is_not_used(finished, tmp_path, failed):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    metadata = out / "checkpoint" / "22" / "default" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:100])
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    for command in (
        ["train", "--resume", "--out", out],
        ["predict", out, image],
        ["export", "--checkpoint", out, "--format", "flax", "--out", tmp_path / "network.py"],
    ):
        *_, message = failed(*command, status=2)
        assert message.startswith(f"cannot read the checkpoint {out}/checkpoint/22: ")
    assert sorted(os.listdir(tmp_path)) == ["copy", "image.png"]


def test_damaged_parameters_are_not_used(finished, tmp_path):
    """In a process of its own, because orbax's threads would complain in this one."""
    out = shutil.copytree(finished[0], tmp_path / "copy")
    for path in (out / "checkpoint" / "22" / "default" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    process = nasi("export", "--checkpoint", out, "--format", "flax", "--out", tmp_path / "net.py")
    assert process.returncode == 2
    (message,) = process.stderr.splitlines()
    assert message.startswith(f"nasi: error: cannot read the checkpoint {out}/checkpoint/22: ")
    assert os.listdir(tmp_path) == ["copy"]


@pytest.fixture
def printed(capsys):
    """Maps arguments to what is printed, with nothing on stderr."""

    def printed(*arguments):
        main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


@pytest.mark.parametrize("genotype", [GENOTYPE, DARTS])
def test_export_writes_text_and_json(printed, tmp_path, genotype):
    own = "darts" if genotype is DARTS else "nasbench201"
    path = tmp_path / "genotype"
    for flags, content in (
        (["--format", own], genotype.to_text()),
        (["--format", "json"], json.dumps(genotype_to_dict(genotype))),
        ([], json.dumps(genotype_to_dict(genotype))),
    ):
        assert printed("export", genotype.to_text(), *flags) == content + "\n"
        assert printed("export", genotype.to_text(), *flags, "--out", path, "--overwrite") == ""
        assert path.read_text() == content + "\n"
        assert parse_genotype(path.read_text()) == genotype
    assert os.listdir(tmp_path) == ["genotype"]


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_export_writes_modules(printed, tmp_path, framework):
    path = tmp_path / "network.py"
    sizes = ["--num-classes", "100", "--init-channels", "4", "--num-cells", "2"]
    source = printed("export", TEXT, "--format", framework, *sizes)
    assert "NUM_CLASSES = 100\nINIT_CHANNELS = 4\nNUM_CELLS = 2\n" in source
    assert printed("export", TEXT, "--format", framework, *sizes, "--out", path) == ""
    assert path.read_text() == source
    source = printed("export", DARTS.to_text(), "--format", framework, "--stem", "imagenet")
    assert 'STEM = "imagenet"' in source and "INIT_CHANNELS = 36" in source


@pytest.fixture(scope="module")
def inputs():
    """Test images, normalized."""
    return data.load("digits", split="test", image_size=8).fetch(np.arange(50)).inputs


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export_trained(printed, checkpoint, framework, folder):
    """The module and the file of parameters that are exported, after a look at what is printed."""
    path, weights = folder / f"{framework}_network.py", folder / f"{framework}_network.safetensors"
    flags = ["--checkpoint", checkpoint, "--format", framework, "--out", path]
    wrote, said = printed("export", *flags).splitlines()
    assert wrote == f"wrote {path} and {weights.name}"
    train = data.load("digits", split="train", image_size=8)
    mean, std = train.mean[0] / 16, train.std[0] / 16
    assert said == f"Images are on [0, 1], less ({mean:.4f}), divided by ({std:.4f})."
    assert said in path.read_text()
    assert "nasi_jax" not in re.sub('""".*?"""', "", path.read_text(), flags=re.DOTALL)
    assert sorted(os.listdir(folder)) == [path.name, weights.name]
    return imported(path), weights


def logits_of(checkpoint, inputs):
    trained = runs.train.trained(checkpoint)
    return np.asarray(jax.jit(trained.network.apply)(trained.variables, inputs))


def test_the_exported_flax_module_is_the_trained_network(finished, printed, tmp_path, inputs):
    module, weights = export_trained(printed, finished[0], "flax", tmp_path)
    network, variables = module.load(weights)
    found = np.asarray(jax.jit(network.apply)(variables, inputs))
    expected = logits_of(finished[0], inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


def test_the_exported_torch_module_is_the_trained_network(finished, printed, tmp_path, inputs):
    torch = pytest.importorskip("torch")
    module, weights = export_trained(printed, finished[0], "torch", tmp_path)
    images = torch.from_numpy(np.asarray(inputs).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = module.load(weights)(images).numpy()
    expected = logits_of(finished[0], inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("there", ["network.py", "network.safetensors"])
def test_export_replaces_neither_file_unasked(finished, refused, printed, tmp_path, there):
    """And writes neither, if one is there."""
    (tmp_path / there).write_text("mine")
    flags = ["--checkpoint", finished[0], "--format", "flax", "--out", tmp_path / "network.py"]
    message = refused("export", *flags)
    assert message == f"{tmp_path / there} is there already: replace it with --overwrite"
    assert os.listdir(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "mine"
    printed("export", *flags, "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["network.py", "network.safetensors"]
    assert (tmp_path / there).read_bytes() != b"mine"


def test_export_replaces_no_text_unasked(refused, printed, tmp_path):
    path = tmp_path / "genotype"
    path.write_text("mine")
    message = refused("export", TEXT, "--out", path)
    assert message == f"{path} is there already: replace it with --overwrite"
    assert path.read_text() == "mine"


def test_export_refuses_what_it_cannot_write(finished, refused, tmp_path):
    before = snapshot(finished[0])
    trained = ["--checkpoint", finished[0]]
    into = ["--out", tmp_path / "network.py"]
    with_file = "parameters are exported with --format flax or torch, and --out"
    theirs = "the genotype and its sizes are those of the checkpoint"
    for arguments, message in (
        ([], "name a genotype, or a file that holds one, or a --checkpoint"),
        ([TEXT, "--format", "darts"], "can be written in the forms: nasbench201, json, text; got"),
        ([TEXT, "--num-cells", 2], "only flax and torch have num_cells"),
        ([TEXT, "--format", "nasbench201", "--stem", "cifar"], "only flax and torch have stem"),
        ([TEXT, "--format", "flax", "--stem", "imagenet"], "have no options, got stem imagenet"),
        ([TEXT, "--format", "flax", "--num-cells", 0], "num_cells of nasbench201 must be at least"),
        ([TEXT, "--format", "flax", "--num-classes", 0], "num_classes must be at least 1, got 0"),
        ([*trained, *into], with_file),
        ([*trained, "--format", "json", *into], with_file),
        ([*trained, "--format", "flax"], with_file),
        ([TEXT, *trained, "--format", "flax", *into], theirs),
        ([*trained, "--format", "flax", "--num-cells", 1, *into], theirs),
        (["--checkpoint", tmp_path, "--format", "flax", *into], f"{tmp_path} holds no training"),
        (
            [*trained, "--format", "flax", "--out", tmp_path / "network.safetensors"],
            "--out names the Python file, beside which goes network.safetensors",
        ),
        (
            [*trained, "--format", "flax", "--out", tmp_path / "missing" / "network.py"],
            "No such file or directory",
        ),
    ):
        assert message in refused("export", *arguments)
    assert os.listdir(tmp_path) == []
    assert snapshot(finished[0]) == before


@pytest.fixture
def images(tmp_path):
    """Test images as files, and what they hold, on [0, 1]."""
    raw, _ = data.load("digits", split="test", image_size=8).images(np.arange(5))
    pixels = np.rint(raw[..., 0] * (255 / 16)).astype(np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, np.repeat(pixels[..., None], 3, axis=3) / 255


def test_predict_prints_a_line_for_each_image(finished, printed, images):
    paths, content = images
    trained = runs.train.trained(finished[0])
    mean, std = (part.reshape(1, 1, 1, -1) / 16 for part in trained.images[-2:])
    logits = logits_of(finished[0], np.asarray((content - mean) / std, np.float32))
    exponentials = np.exp(np.float64(logits))
    expected = exponentials / exponentials.sum(axis=1)[:, None]
    for top in (1, 3):
        lines = printed("predict", finished[0], *paths, "--top", top).splitlines()
        for line, path, row in zip(lines, paths, expected, strict=True):
            name, *columns = line.split("\t")
            best = np.argsort(-row)[:top]
            assert name == str(path)
            assert columns[::2] == [str(index) for index in best]
            probabilities = np.array(columns[1::2], float)
            np.testing.assert_allclose(probabilities, row[best], atol=6e-5)
    assert len(printed("predict", finished[0], paths[0]).split("\t")) == 3


def test_predict_refuses_what_it_cannot_classify(finished, refused, images, tmp_path):
    paths, _ = images
    (tmp_path / "text").write_text("mine")
    before = snapshot(finished[0])
    for arguments, message in (
        ([finished[0], tmp_path / "missing"], "missing as an image: "),
        ([finished[0], paths[0], tmp_path / "text"], "text as an image: Pillow knows no such form"),
        ([finished[0], tmp_path], "as an image: "),
        ([finished[0], paths[0], "--top", 0], "top must be from 1 to 10, the classes, got 0"),
        ([finished[0], paths[0], "--top", 11], "top must be from 1 to 10, the classes, got 11"),
        ([tmp_path, paths[0]], f"{tmp_path} holds no training"),
        ([tmp_path / "missing", paths[0]], "missing holds no training"),
        ([paths[0], paths[0]], "holds no training"),
        ([finished[0]], "name at least one image file"),
    ):
        assert message in refused("predict", *arguments)
    assert snapshot(finished[0]) == before


def test_curves_are_drawn_of_what_was_measured(finished, tmp_path, monkeypatch):
    drawn = []
    draw = runs.train.draw_curves

    def watched(columns, **options):
        drawn.append(columns)
        return draw(columns, **options)

    monkeypatch.setattr(runs.train, "draw_curves", watched)
    out = shutil.copytree(finished[0], tmp_path / "copy")
    main(["train", "--resume", "--out", str(out)])
    (columns,) = drawn
    assert tuple(columns) == runs.train.COLUMNS
    summary = json.loads((out / "summary.json").read_text())
    assert columns["test_accuracy"][-1] == summary["last_accuracy"]
