"""What the package runs on: versions that are too old, plugins and devices that are missing."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
import tiny
from helpers import python_path

import nasi_jax
from nasi_jax import cli, runs
from nasi_jax.devices import environment

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
CELL = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
COMMAND = (sys.executable, "-m", "nasi_jax")


def run(*command, **settings):
    """Runs a command in a process of its own, where no variable says what JAX is to compute on."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**kept, **settings}
    )


def path_with(tmp_path, name, source):
    """PYTHONPATH with a module of that name before all others."""
    (tmp_path / f"{name}.py").write_text(source)
    return python_path(tmp_path)


def test_the_floors_are_those_of_the_package():
    (floor,) = [name for name in PYPROJECT["project"]["dependencies"] if name.startswith("jax>=")]
    assert floor == f"jax>={'.'.join(map(str, environment.JAX))}"
    assert PYPROJECT["project"]["requires-python"] == f">={'.'.join(map(str, environment.PYTHON))}"
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in PYPROJECT["project"]["classifiers"]


def test_this_python_and_this_jax_will_do():
    environment.require_versions()


def test_an_old_python_is_named():
    with pytest.raises(ImportError, match=r"^nasi-jax needs Python 3.11 or newer, this is 3.10$"):
        environment.require_versions((3, 10))


OLD = "__version__ = '0.4.38'\n__version_info__ = (0, 4, 38)\n"
TOO_OLD = "nasi-jax needs jax 0.10.2 or newer, this is 0.4.38: pip install --upgrade jax"
UNFIT = "raise RuntimeError('jaxlib version 1 is newer than\\nand incompatible with jax 0')"
BROKEN = (
    "nasi-jax needs JAX, which cannot be imported: jaxlib version 1 is newer than and "
    "incompatible with jax 0"
)


@pytest.mark.parametrize(("source", "message"), [(OLD, TOO_OLD), (UNFIT, BROKEN)])
def test_a_jax_that_will_not_do_is_one_line_of_the_command(tmp_path, source, message):
    path = path_with(tmp_path, "jax", source)
    for arguments in (["--version"], ["search"]):
        process = run(*COMMAND, *arguments, PYTHONPATH=path)
        assert (process.returncode, process.stdout) == (2, "")
        assert process.stderr == f"nasi: error: {message}\n"
    script = tmp_path / "nasi"  # as pip writes it
    script.write_text("from nasi_jax.cli import main\nmain()\n")
    process = run(sys.executable, script, PYTHONPATH=path)
    assert (process.returncode, process.stderr) == (2, f"nasi: error: {message}\n")


def test_a_jax_that_will_not_do_is_an_import_error_elsewhere(tmp_path):
    process = run(
        sys.executable, "-c", "import nasi_jax", PYTHONPATH=path_with(tmp_path, "jax", OLD)
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == f"ImportError: {TOO_OLD}"


@pytest.mark.parametrize(
    ("platform", "arguments"),
    [
        ("cuda", ["search"]),
        ("tpu", ["search"]),
        ("nonsense", ["export", CELL, "--format", "flax"]),
    ],
)
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform, arguments):
    if platform == jax.default_backend():
        pytest.skip("it is there")
    process = run(*COMMAND, *arguments, "--out", tmp_path / "out", JAX_PLATFORMS=platform)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"nasi: error: JAX cannot compute on {platform}: ")
    assert process.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_what_computes_nothing_needs_no_device():
    process = run(*COMMAND, "show", CELL, JAX_PLATFORMS="nonsense")
    assert (process.returncode, process.stdout, process.stderr) == (0, CELL + "\n", "")


def versions_of(**versions):
    def version(name):
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    return version


@pytest.mark.parametrize("plugin", ["0.11.2", "0.11.2.dev5"])
def test_a_plugin_of_the_release_of_jaxlib_fits(plugin):
    version = versions_of(jaxlib="0.11.2", jax_cuda13_plugin=plugin)
    environment._require_fitting_plugins(version)
    environment._require_fitting_plugins(versions_of(jaxlib="0.11.2"))


def test_a_plugin_of_another_release_is_named():
    version = versions_of(jaxlib="0.12.0.1", jax_cuda12_plugin="0.12.0")
    message = (
        "jax-cuda12-plugin 0.12.0 does not fit jaxlib 0.12.0.1: pip install --upgrade "
        "'jax[cuda12]', or uninstall it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        environment._require_fitting_plugins(version)


PLUGIN = """
def initialize():
    raise RuntimeError("Unable to load\\ncuDNN. Is it installed?")
"""


def test_a_plugin_that_fails_is_one_line(tmp_path):
    """A warning where JAX goes on with the CPU, and an error where it was told not to."""
    plugins = tmp_path / "jax_plugins" / "broken"
    plugins.mkdir(parents=True)
    (plugins / "__init__.py").write_text(PLUGIN)
    path = python_path(tmp_path)
    reason = ": Unable to load cuDNN. Is it installed?\n"
    process = run(*COMMAND, "search", "--steps", "0", PYTHONPATH=path)
    assert process.returncode == 2 and process.stderr.startswith("nasi: error: steps must be")
    process = run(*COMMAND, "score", "--genotypes", "nowhere", PYTHONPATH=path)
    warning, error = process.stderr.splitlines(keepends=True)
    assert warning.startswith("nasi: warning: ") and warning.endswith(reason)
    assert error.startswith("nasi: error: cannot read genotypes from nowhere")
    process = run(*COMMAND, "score", PYTHONPATH=path, JAX_PLATFORMS="cuda")
    assert process.returncode == 2
    assert process.stderr.startswith("nasi: error: JAX cannot compute on cuda: ")
    assert process.stderr.endswith(reason) and process.stderr.count("\n") == 1


SIGNS = {
    "proc/driver/nvidia/version": "this machine has an NVIDIA GPU",
    "dev/nvidia0": "this machine has an NVIDIA GPU",
    "dev/accel0": "this machine has a TPU",
    "dev/vfio/0": "this machine has a TPU",
}
EXTRAS = {"an NVIDIA GPU": "cuda13", "a TPU": "tpu"}


@pytest.fixture
def machine(tmp_path):
    """Maps names of files to the root of a machine that has them."""

    def machine(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return machine


@pytest.fixture
def any_platform():
    """While no variable says what JAX is to compute on."""
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("sign", SIGNS)
def test_an_accelerator_that_is_idle_is_named(machine, any_platform, sign):
    line = environment.idle_accelerator("cpu", machine(sign))
    assert line.startswith(SIGNS[sign])
    extra = re.search(r"pip install 'nasi-jax\[(\w+)\]'$", line)[1]
    assert extra in PYPROJECT["project"]["optional-dependencies"]
    assert SIGNS[sign].endswith({extra: name for name, extra in EXTRAS.items()}[extra])


def test_there_is_nothing_to_say_of_others(machine, any_platform):
    assert environment.idle_accelerator("cpu", machine("dev/null", "dev/vfio/vfio")) is None
    root = machine("dev/nvidia0")
    assert environment.idle_accelerator("gpu", root) is None
    jax.config.update("jax_platforms", "cpu")  # the user's choice
    assert environment.idle_accelerator("cpu", root) is None


def test_the_command_says_so_in_one_line(monkeypatch, capsys):
    def search(*_, **__):
        raise ValueError("stop")

    monkeypatch.setattr(runs.search, "search", search)
    monkeypatch.setattr(environment, "idle_accelerator", lambda platform: f"idle beside {platform}")
    with pytest.raises(SystemExit):
        cli.main(tiny.FLAGS)
    platform = jax.devices()[0].platform
    assert capsys.readouterr().err == f"nasi: note: idle beside {platform}\nnasi: error: stop\n"


def test_version_is_one_line():
    lines = [run(*COMMAND, "--version").stdout]
    script = "from nasi_jax.cli import main; main()"
    lines.append(run(sys.executable, "-c", script, "--version").stdout)
    assert lines[0] == lines[1] and lines[0].count("\n") == 1
    for name in ("nasi-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        assert f"{name} {importlib.metadata.version(name)}" in lines[0]
    assert f"python {sys.version.split()[0]}" in lines[0]
    assert re.search(rf"; devices: \d+ x {jax.devices()[0].platform}: ", lines[0])
    assert nasi_jax.__version__ == importlib.metadata.version("nasi-jax")


def test_version_without_a_device():
    process = run(*COMMAND, "--version", JAX_PLATFORMS="nonsense")
    assert (process.returncode, process.stderr) == (0, "")
    assert "; devices: none, JAX cannot compute on nonsense: " in process.stdout
