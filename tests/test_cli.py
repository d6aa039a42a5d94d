"""The command `nasi` as a user meets it: what it prints, what it refuses, how it ends."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import tiny

from nasi_jax import cli, runs
from nasi_jax.cells import SEARCH_SPACES, genotype_to_dict, parse_genotype
from nasi_jax.cli import main
from nasi_jax.storage import files

NASBENCH201 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"
TEXTS = {
    "nasbench201": NASBENCH201,
    **{
        name: SEARCH_SPACES[name].sample(jax.random.key(0)).to_text()
        for name in ("darts", "nasbench1shot1-1")
    },
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


NASI = (sys.executable, "-c", "from nasi_jax import cli; cli.main()")


def nasi(*arguments, **options):
    """Runs the command in a process of its own."""
    return subprocess.run(
        [*NASI, *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished search: its directory, and the process that ran it."""
    out = tmp_path_factory.mktemp("finished") / "search"
    process = nasi(*tiny.FLAGS, "--out", out)
    assert process.returncode == 0, process.stderr
    return out, process


@pytest.fixture
def result(finished):
    return finished[0] / "result.json"


@pytest.fixture
def refused(capsys):
    """Maps arguments to the message that the command ends with."""

    def refused(*arguments, status=2):
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert caught.value.code == status
        assert out == ""
        assert err.startswith("nasi: error: ") and err.endswith("\n") and err.count("\n") == 1
        return err.removeprefix("nasi: error: ").removesuffix("\n")

    return refused


@pytest.fixture
def shown(capsys):
    """Maps arguments of `nasi show` to what it prints."""

    def shown(*arguments):
        main(["show", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return shown


def test_a_search_prints_the_genotype_first(finished, result):
    _, process = finished
    first, *rest = process.stdout.splitlines()
    assert first == json.loads(result.read_text())["text"]
    assert parse_genotype(first).to_text() == first
    assert rest[0].startswith("nasbench201, nasi-ada, none norm, seed 2: searched ")
    assert rest[1].split(" choices ")[0].endswith(" of 6")
    assert rest[2] == f"wrote {finished[0]}/result.json, cells.svg, history.png"


def test_a_search_that_is_not_watched_says_how_far_it_is(finished):
    first, compiled, second, third = finished[1].stderr.splitlines()
    assert first == (
        "compiling the search step of nasbench201, init_channels 2, num_cells 1, batch_size 4"
    )
    assert compiled.startswith("compiled in ")
    assert second.startswith("searching  1/3  0:00:0") and " left  x " in second
    assert third.startswith("drawing  3/3  0:00:00 left  x ") and "  nu " in third


def test_the_first_line_of_a_search_can_be_shown(finished, shown):
    first = finished[1].stdout.splitlines()[0]
    assert shown(first) == first + "\n"


def test_resuming_takes_the_settings_of_the_search(finished, tmp_path, capsys):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    before = (out / "result.json").read_bytes()
    main(["search", "--out", str(out), "--resume"])
    assert capsys.readouterr().out.splitlines()[:-1] == finished[1].stdout.splitlines()[:-1]
    assert (out / "result.json").read_bytes() == before
    main(["search", "--resume", f"--out={out}", "--steps", "3"])
    assert (out / "result.json").read_bytes() == before


def test_resuming_with_another_setting_is_refused(finished, refused):
    message = refused("search", "--seed", 5, "--resume", "--out", finished[0], "--until-sure")
    assert message == "the search to resume has seed 2 not 5, until_sure False not True"


def test_a_search_until_it_is_sure_says_what_is_not(monkeypatch, tmp_path, capsys):
    """Which choices would take how many more steps, and of which theta_0 the claim is."""

    def search(config, out, **options):
        assert config.until_sure
        choice = {"margin_in_standard_errors": 1.0, "winner": "a", "runner_up": "b"}
        more = {"first": (True, 0), "second": (False, 70), "third": (False, None)}
        choices = [
            {**choice, "name": name, "sure": sure, "steps_to_sure": steps}
            for name, (sure, steps) in more.items()
        ]
        result = {
            "place": 1,
            "text": "cell",
            "space": "toy",
            "config": {"variant": "nasi-ada"},
            "seed": 0,
        }
        result |= {"norm": "batch", "device": "cpu", "seconds": {"search": 1.0, "compile": 1.0}}
        return {**result, "choices": choices, "steps": 30, "sure_of": "this theta_0"}

    monkeypatch.setattr(runs.search, "search", search)
    main(["search", "--until-sure", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == [
        "1 of 3 choices are sure after 30 steps, for this theta_0",
        "  second: a or b, about 70 more steps",
        "  third: a or b, not at this rate",
    ]


def test_resuming_nothing_is_a_search(tmp_path, monkeypatch):
    seen = []

    def search(config, out, **options):
        seen.append((config, out, options["resume"]))
        raise ValueError

    monkeypatch.setattr(runs.search, "search", search)
    with pytest.raises(SystemExit):
        main([*tiny.FLAGS, "--resume", "--out", str(tmp_path)])
    assert seen == [(tiny.CONFIG.resolved(), tmp_path, True)]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"steps": "many"}', '{"step": 3}', '{"steps": 3}']
)
def test_a_spoilt_configuration_is_not_resumed(tmp_path, refused, content):
    (tmp_path / "config.json").write_text(content)
    message = refused("search", "--resume", "--out", tmp_path)
    assert message.startswith(f"{tmp_path}/config.json is not the configuration of a search: ")


def test_a_search_is_not_replaced_unasked(finished, refused):
    message = refused(*tiny.FLAGS, "--out", finished[0])
    assert message == (
        f"the directory {finished[0]} holds a search already (config.json): continue it with "
        "--resume, replace it with --overwrite, or name another directory"
    )
    message = refused(*tiny.FLAGS, "--out", finished[0], "--resume", "--overwrite")
    assert message == "--resume and --overwrite exclude each other"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--space nasbench", "unknown space 'nasbench'; known: darts, nasbench201, "),
        ("--ops conv", "unknown op 'conv' in nasbench201; known: none, skip_connect, "),
        ("--ops", "ops must differ, and one must be other than none; got"),
        ("--ops none", "ops must differ, and one must be other than none; got none"),
        ("--space darts --num-cells 2", "num_cells of darts must be at least 3, got 2"),
        ("--num-cells 0", "num_cells of nasbench201 must be at least 1, got 0"),
        ("--init-channels -1", "init_channels of nasbench201 must be at least 1, got -1"),
        ("--data nowhere.npz", "there is no file or folder nowhere.npz; digits and gaussian"),
        ("--data digits.npy", "digits and gaussian need no download; a path may lead to an"),
        ("--batch-size 1798", "batch_size must be from 1 to 1797, the examples of digits, got"),
        ("--steps 0", "steps must be an integer from 1 to 2147483647, got 0"),
        ("--penalty -1", "penalty must be a number from 0.0 to 1e+30, got -1.0"),
        ("--penalty nan", "penalty must be a number from 0.0 to 1e+30, got nan"),
        ("--temperature 0", "temperature must be a number from 1e-30 to 1e+30, got 0.0"),
        (
            "--constraint-quantile 50",
            "constraint_quantile must be a number from 0.0 to 1.0, got 50.0",
        ),
        ("--seed 4294967296", "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ("--image-size 10", "image_size must be at least 8 and a multiple of 4, because "),
    ],
)
def test_wrong_settings_are_refused(tmp_path, refused, flags, message):
    assert message in refused("search", *flags.split(), "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == []


IMAGES = np.zeros((6, 8, 8, 3), np.float32)
LABELS = np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": IMAGES * np.nan, "y_train": LABELS}, "must be finite in float32, got NaN"),
        ({"images": IMAGES, "y_train": LABELS}, "keys x_train and y_train, got ['images', "),
        ({"x_train": IMAGES[0, 0], "y_train": LABELS}, "x_train must be [N, H, W], "),
        ({"x_train": IMAGES, "y_train": LABELS[:5]}, "got 6 images and 5 labels"),
        ({"x_train": IMAGES, "y_train": LABELS * 0.5}, "y_train must be integers, got float64"),
        (
            {"x_train": np.array([IMAGES, None], dtype=object), "y_train": LABELS},
            "as plain arrays, without pickled objects",
        ),
    ],
)
def test_spoilt_images_are_refused(tmp_path, refused, arrays, message):
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    assert message in refused("search", "--data", path, "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == ["images.npz"]


def test_a_file_is_no_output_directory(result, refused):
    message = refused(*tiny.FLAGS, "--out", result)
    assert message == f"cannot use {result} as a directory: File exists"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["search", "show"]),
        ("serch", ["serch", "search", "show"]),
        ("search --step 3", ["Unrecognized", "--step", "--steps"]),
        ("search --steps abc", ["--steps", "INT", "'abc'"]),
        ("search --steps 1.5", ["--steps", "INT", "'1.5'"]),
        ("search --penalty x", ["--penalty", "FLOAT", "'x'"]),
        ("search --resume yes", ["Unrecognized", "yes"]),
        ("search --variant nasi", ["variant", "'nasi'", "nasi-fix", "nasi-ada"]),
        ("search --labels none", ["--labels", "'none'", "'true'", "'random'"]),
        ("search --norm layer", ["--norm", "'layer'", "'batch'", "'frozen'", "'none'"]),
        ("search --init normal", ["--init", "'normal'", "'he_normal'", "'pytorch'"]),
        ("search --loss hinge", ["--loss", "'hinge'", "'cross_entropy'", "'mse'"]),
        ("search --derivative both", ["--derivative", "'both'", "'forward'", "'reverse'"]),
        ("search --constraint-rule mean", ["--constraint-rule", "'mean'", "'fixed'", "'adaptive'"]),
        ("select --method best", ["--method", "'best'", "'random'", "'evolution'"]),
        ("score --norm layer", ["--norm", "'layer'", "'batch'", "'frozen'", "'none'"]),
        ("train x --recipe slow", ["--recipe", "'slow'", "'quick'", "'darts-cifar10'"]),
        ("train x --schedule step", ["--schedule", "'step'", "'cosine'", "'linear'"]),
        ("show", ["genotype"]),
        ("show x --format gif", ["gif", "--format", "text", "json", "svg", "png"]),
    ],
)
def test_a_wrong_command_line_is_refused(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and "Traceback" not in err
    for word in words:
        assert word.lower() in err.lower()


@pytest.mark.parametrize("command", [[], ["search"], ["select"], ["show"]])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: nasi", *command])) and err == ""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: 8 of 9\nbytes.\n"), "INTERNAL: 8 of 9 bytes."),
        (MemoryError("Unable to allocate 8 EiB"), "Unable to allocate 8 EiB"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device", "x"), "[Errno 28] No space left on device: 'x'"),
        (FloatingPointError("at step 1 the trace is nan"), "at step 1 the trace is nan"),
    ],
)
def test_a_run_that_fails_ends_with_status_1(refused, monkeypatch, failure, message):
    def search(*_, **__):
        raise failure

    monkeypatch.setattr(runs.search, "search", search)
    assert refused(*tiny.FLAGS, status=1) == message


TOO_LARGE = {
    "Out of memory while trying to allocate 17179869184 bytes.": "16,384 MiB",
    "Out of memory\nallocating 1073741824 bytes.\n": "1,024 MiB",
    "Failed to allocate request for 2.00GiB (2147483648B) on device ordinal 0": "2.00 GiB",
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 28.5G of 15.48G "
    "hbm. Exceeded hbm capacity by 13.0G.": "28.5 G",
}


@pytest.mark.parametrize("text", TOO_LARGE)
def test_too_little_memory_names_the_size_and_what_to_lower(refused, monkeypatch, text):
    def search(*_, **__):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")

    monkeypatch.setattr(runs.search, "search", search)
    assert refused(*tiny.FLAGS, status=1) == (
        f"out of the device's memory, where {TOO_LARGE[text]} were asked for: lower --batch-size "
        "or --samples-per-step, or raise --micro-batches with --norm frozen or none"
    )


LESS_OF_A_CALL = "lower --batch-size or --archs-per-call"


@pytest.mark.parametrize(
    ("module", "function", "arguments", "advice"),
    [
        (runs.select, "select", ["select"], LESS_OF_A_CALL),
        (runs.score, "score", ["score"], LESS_OF_A_CALL),
        (runs.compare, "compare", ["compare"], LESS_OF_A_CALL),
        (runs.rank, "rank", ["rank", "--table", "t", "--column", "c"], LESS_OF_A_CALL),
        (
            runs.train,
            "train",
            ["train", NASBENCH201],
            "lower --batch-size, raise --micro-batches, or set --remat",
        ),
        (runs.train, "trained", ["predict", "run", "x.png"], "name fewer images at a time"),
    ],
)
def test_every_command_says_what_to_lower(
    refused, monkeypatch, module, function, arguments, advice
):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.")

    monkeypatch.setattr(module, function, fail)
    assert refused(*arguments, status=1) == f"out of the device's memory: {advice}"


def test_shared_memory_is_not_what_a_setting_lowers(refused, monkeypatch):
    text = "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 9, available: 8"

    def search(*_, **__):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(runs.search, "search", search)
    assert refused(*tiny.FLAGS, status=1) == text


def test_a_full_disk_is_one_line(refused, monkeypatch, tmp_path):
    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert "No space left on device" in refused(*tiny.FLAGS, "--out", tmp_path, status=1)


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def search(*_, **__):
        raise KeyError("mistake")

    monkeypatch.setattr(runs.search, "search", search)
    with pytest.raises(KeyError):
        main(tiny.FLAGS)


# Processes of a shell's background job ignore SIGINT, and so would their own.
INTERRUPTED = """
    import signal, time

    from nasi_jax import cli, data, runs

    signal.signal(signal.SIGINT, signal.default_int_handler)
    batch = data.Dataset.batch

    def late(self, key, step, batch_size):
        time.sleep(60 * (step == 1))
        return batch(self, key, step, batch_size)

    data.Dataset.batch = late
    runs.search._SECONDS_BETWEEN_CHECKPOINTS = 0
    cli.main()
"""


def test_an_interrupted_search_can_go_on(finished, tmp_path, capsys):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), *tiny.FLAGS, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith("searching  1/3"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err == ("nasi: error: stopped; the same command with --resume goes on where it was\n")
    assert not (tmp_path / "result.json").exists()
    assert os.listdir(tmp_path / "checkpoint") == ["1"]
    main(["search", "--resume", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[0] == finished[1].stdout.splitlines()[0]


def test_a_damaged_checkpoint_is_not_used(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    (out / "result.json").unlink()
    for path in (out / "checkpoint" / "3" / "default" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    process = nasi("search", "--resume", "--out", out)
    assert process.returncode == 2
    messages = [line for line in process.stderr.splitlines() if line.startswith("nasi: error: ")]
    (message,) = messages
    assert "cannot read the checkpoint" in message
    assert not (out / "result.json").exists()


@pytest.mark.parametrize("name", TEXTS)
def test_show_goes_round(shown, tmp_path, name):
    text = TEXTS[name]
    assert shown(text) == text + "\n"
    as_json = shown(text, "--format", "json")
    assert json.loads(as_json) == genotype_to_dict(parse_genotype(text))
    assert shown(as_json) == text + "\n"
    for content in (text, text + "\n", as_json):
        (tmp_path / "genotype").write_text(content)
        assert shown(tmp_path / "genotype") == text + "\n"
        assert shown(tmp_path / "genotype", "--format", "json") == as_json


@pytest.mark.parametrize("name", TEXTS)
def test_show_draws(shown, tmp_path, name):
    svg = shown(TEXTS[name], "--format", "svg")
    assert svg.startswith("<?xml") and svg.rstrip().endswith("</svg>")
    for form, start in (("svg", svg.encode()), ("png", b"\x89PNG")):
        path = tmp_path / f"cell.{form}"
        assert shown(TEXTS[name], "--format", form, "--out", path) == ""
        assert path.read_bytes().startswith(start)


def test_show_reads_the_result_of_a_search(shown, result):
    written = json.loads(result.read_text())
    assert shown(result) == written["text"] + "\n"
    assert json.loads(shown(result, "--format", "json")) == written["genotype"]


def test_show_writes_files_and_replaces_them_when_told(shown, refused, tmp_path):
    path = tmp_path / "cell.txt"
    path.write_text("mine")
    message = refused("show", NASBENCH201, "--out", path)
    assert message == f"{path} is there already: replace it with --overwrite"
    assert path.read_text() == "mine"
    assert shown(NASBENCH201, "--out", path, "--overwrite") == ""
    assert path.read_text() == NASBENCH201 + "\n"
    assert os.listdir(tmp_path) == ["cell.txt"]


def test_show_refuses_what_cannot_be_written(refused, tmp_path):
    for path, reason in (("missing/cell", "No such file or directory"), (".", "Is a directory")):
        out = (tmp_path / path).resolve()
        message = refused("show", NASBENCH201, "--out", out, "--overwrite")
        assert message == f"cannot write {out}: {reason}"
    message = refused("show", NASBENCH201, "--format", "png")
    assert message == "a png needs a file: name one with --out"


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "a\0b", "nowhere.json", "no/such/file", "n" * 5000, "|" * 100_000],
        *["|none~0|", NASBENCH201.replace("none~1", "none~2"), NASBENCH201 + "|"],
        *[NASBENCH201.replace("avg_pool_3x3", "avg_pool"), NASBENCH201.replace("+", "")],
        *["Genotype(", "Genotype()", "Genotype(normal=[], normal_concat=[], reduce=[])"],
        *[TEXTS["darts"][:-1], TEXTS["darts"].replace("normal=", "normal=open('x') or ")],
        *["ModelSpec()", "ModelSpec(matrix=1, ops=2)", TEXTS["nasbench1shot1-1"] + ")"],
        *["{}", "{", '{"format": "nasbench"}', '{"format": "darts", "normal": 1, "reduce": 2}'],
        *['{"format": "nasbench201", "ops": ["none"]}', "{" * 100_000],
    ],
)
def test_show_refuses_what_is_no_genotype(refused, text):
    message = refused("show", text)
    assert message.endswith("; and there is no such file")
    assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a genotype: ''"),
        (b"\x89PNG\r\n\x1a\n\0\0", "codec can't decode byte 0x89"),
        (b"\0\0", "not a genotype: "),
        (b"[" * 100_000, "a genotype has at most 10000 characters, this has 100000"),
        (b"[1, 2]", "object whose 'format' is one of: darts, nasbench201, nasbench101"),
        (b'{"genotype": null}', "object whose 'format' is one of: darts"),
        (b'{"genotype": {"format": "x"}}', "unknown genotype format 'x'; known: darts"),
    ],
)
def test_show_refuses_a_file_without_a_genotype(refused, tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    assert message in refused("show", tmp_path / "file")


def test_show_refuses_a_directory(refused, tmp_path):
    message = refused("show", tmp_path)
    assert message == (
        f"cannot read a genotype from {tmp_path}: [Errno 21] Is a directory: '{tmp_path}'"
    )


def test_show_reads_a_pipe():
    process = nasi("show", "/dev/stdin", input=NASBENCH201 + "\n")
    assert (process.returncode, process.stdout, process.stderr) == (0, NASBENCH201 + "\n", "")


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*NASI, "show", NASBENCH201, "--format", "svg"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")


POPULATION = [*tiny.TOY, *shlex.split("--num-archs 4 --proxies grad_norm")]


def test_the_list_of_commands_is_one_screen(capsys):
    """A line or two for each, where the help of a command says all of it."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and printed.count("\n") < 40
    for name, kind in cli._COMMANDS.items():
        assert f"• {name} " in printed
        with pytest.raises(SystemExit):
            main([name, "--help"])
        help_of_it = " ".join(capsys.readouterr().out.split())
        assert " ".join(kind.__doc__.split()) in help_of_it


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(capsys, shell):
    with pytest.raises(SystemExit) as stopped:
        main(["--tyro-print-completion", shell])
    script = capsys.readouterr().out
    assert not stopped.value.code and "nasi" in script and "select" in script


def test_score(tmp_path, capsys):
    out = tmp_path / "new" / "scores.csv"
    main(["score", *POPULATION, "--out", str(out)])
    captured = capsys.readouterr()
    *best, summary, wrote = captured.out.splitlines()
    assert [line.split(":")[0] for line in best] == [
        "best num_params",
        "best flops",
        "best grad_norm",
    ]
    assert summary.startswith(
        "4 architectures of toy:Chains, none norm, seed 2: compiled 1 program in "
    )
    assert wrote == f"wrote {out} and scores.json"
    compiling, compiled, scoring = captured.err.splitlines()[:3]
    assert compiling == (
        "compiling the scores of toy:Chains, init_channels 2, num_cells 1, batch_size 4"
    )
    assert compiled.startswith("compiled in ") and scoring.startswith("scoring  1/4  0:00:0")
    assert len(out.read_text().splitlines()) == 5


def test_score_of_two_seeds_has_a_standard_error(tmp_path, capsys):
    """Of two numbers it is half of their difference."""
    out = tmp_path / "scores.csv"
    main(["score", *POPULATION, "--seeds", "2", "--out", str(out)])
    of_proxy = capsys.readouterr().out.splitlines()[2]
    found, genotype = of_proxy.removeprefix("best grad_norm: ").split("  ")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    first, second = (float(row["grad_norm"]) for row in rows if row["genotype"] == genotype)
    assert found == f"{(first + second) / 2:.6g} ± {abs(first - second) / 2:.2g}"


def test_select(tmp_path, capsys):
    flags = shlex.split(
        "--proxies grad_norm flops --budget 3 --population 2 --tournament 1 --max-params 1e6"
    )
    main(["select", *tiny.TOY, *flags, "--out", str(tmp_path)])
    captured = capsys.readouterr()
    first, summary, network, wrote = captured.out.splitlines()
    result = json.loads((tmp_path / "result.json").read_text())
    assert first == result["text"] and result["num_scored"] == 3
    assert summary.startswith(
        f"chains, evolution by grad_norm, flops, seed 2: network {result['number']} of 3, scored "
    )
    # Two convolutions are most parameters and FLOPs, so the network has all that there are.
    work = (27 * 4 + 2 * 9 * 4 * 4) * 32**2 + 4 * 10
    assert network == (
        f"its network for cifar10 has 0.00 M parameters and {work / 1e6:.0f} M multiply-adds"
    )
    assert result["network"]["multiply_adds"] == work
    assert wrote == f"wrote {tmp_path}/result.json, scores.csv, cells.svg, history.png"
    compiling, compiled, selecting = captured.err.splitlines()[:3]
    assert compiling.startswith("compiling the scores of toy:Chains, ")
    assert compiled.startswith("compiled in ") and selecting.startswith("selecting  1/3  0:00:0")
    main(["show", str(tmp_path / "result.json"), "--space", "toy:Chains"])
    assert capsys.readouterr().out == first + "\n"


def test_compare(tmp_path, capsys):
    main(["compare", *POPULATION, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    for text in ("correlation with", "kendall", "batch_gradient", "grad_norm", "none norm"):
        assert text in out
    assert "compiled 1 program in" in out
    assert {"compare.csv", "compare.json", "compare.png"} < set(os.listdir(tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("score --proxies accuracy", "unknown proxy 'accuracy'; known: batch_gradient, "),
        ("score --proxies syn_flow", "for one of your own; did you mean synflow?"),
        ("score --ops skip_conect", "avg_pool_3x3; did you mean skip_connect?"),
        ("score --num-archs 0", "num_archs must be an integer from 1 to 2147483647, got 0"),
        ("score --genotypes nowhere", "cannot read genotypes from nowhere: "),
        ("score --resume --overwrite", "--resume and --overwrite exclude each other"),
        ("score --mesh 8", "a mesh must be data=N, sample=N, or data=N,sample=N, got '8'"),
        (
            "select --mesh sample=1000",
            "at most 1, the devices (cpu 0), got data=1,sample=1000",
        ),
        ("score --space nasbench", "unknown space 'nasbench'; known: darts, "),
        ("select --proxies accuracy", "unknown proxy 'accuracy'; known: batch_gradient, "),
        ("select --budget 0", "budget must be an integer from 1 to 2147483647, got 0"),
        ("select --tournament 65", "tournament must be at most population, 64, got 65"),
        ("select --resume --overwrite", "--resume and --overwrite exclude each other"),
        ("compare --proxies accuracy", "unknown proxy 'accuracy'; known: batch_gradient, "),
        ("compare --data nowhere.npz", "there is no file or folder nowhere.npz; digits"),
    ],
)
def test_wrong_populations_are_refused(tmp_path, refused, flags, message):
    verb, *rest = flags.split()
    assert message in refused(verb, *rest, "--out", tmp_path / "out" / "scores.csv")
