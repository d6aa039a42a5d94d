import ast
import functools
import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import measuring
import numpy as np
import pytest
import safetensors.numpy

from nasi_jax import export
from nasi_jax.cells import (
    DartsGenotype,
    Nasbench101Genotype,
    Nasbench201,
    Nasbench201Genotype,
    evaluation_network,
    parse_genotype,
)
from nasi_jax.cells.darts import DARTS_OPS
from nasi_jax.cells.nasbench101 import NASBENCH101_OPS
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS
from nasi_jax.types import NetworkSpec

ROOT = Path(__file__).parents[2]
NUM_CLASSES = 3

# quark0/darts, cnn/genotypes.py.
DARTS_V2 = parse_genotype(measuring.DARTS_V2)
# Every operation in either cell, in the second one with stride 2, and one without.
DARTS_ALL = DartsGenotype(
    normal=tuple(zip([*DARTS_OPS[1:], "dil_conv_3x3"], (0, 1, 0, 2, 1, 3, 2, 4), strict=True)),
    reduce=tuple(zip([*DARTS_OPS[:0:-1], "sep_conv_3x3"], (0, 1, 0, 1, 0, 1, 1, 4), strict=True)),
)
NASBENCH201_ALL = Nasbench201Genotype((*NASBENCH201_OPS[::-1], "nor_conv_1x1"))
NASBENCH201_NO_NODE_2 = Nasbench201Genotype(
    ("nor_conv_3x3", "none", "none", "avg_pool_3x3", "skip_connect", "nor_conv_1x1")
)
NASBENCH201_NONE = Nasbench201Genotype(("none",) * 6)
# All operations. Vertex 4 is of no use; 2, 3 and 5 share the output's channels, and 1 is read by a
# wider and a narrower one.
NASBENCH101_ALL = Nasbench101Genotype(
    matrix=(
        (0, 1, 1, 1, 1, 0, 1),
        (0, 0, 1, 0, 0, 1, 0),
        (0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 0, 0, 0),
    ),
    ops=("input", *NASBENCH101_OPS, "maxpool3x3", "conv1x1-bn-relu", "output"),
)
NASBENCH101_LEAST = Nasbench101Genotype(((0, 1), (0, 0)), ("input", "output"))

GENOTYPES = [DARTS_ALL, NASBENCH201_ALL, NASBENCH101_ALL]
SIZES = {
    DartsGenotype: {"init_channels": 5, "num_cells": 4},
    Nasbench201Genotype: {"init_channels": 3, "num_cells": 2},
    Nasbench101Genotype: {},
}
CASES = {
    "darts": (DARTS_ALL, "cifar"),
    "darts-imagenet": (DARTS_ALL, "imagenet"),
    "nasbench201": (NASBENCH201_ALL, "cifar"),
    "nasbench201-no-node-2": (NASBENCH201_NO_NODE_2, "cifar"),
    "nasbench201-none": (NASBENCH201_NONE, "cifar"),
    "nasbench101": (NASBENCH101_ALL, "cifar"),
    "nasbench101-least": (NASBENCH101_LEAST, "cifar"),
}


pytestmark = pytest.mark.usefixtures("unoptimized")


def our_network(genotype, stem="cifar", *, norm="running", num_classes=NUM_CLASSES, **settings):
    options = {} if stem == "cifar" else {"stem": stem}
    return evaluation_network(
        genotype,
        num_classes,
        NetworkSpec(norm=norm),
        **(SIZES[type(genotype)] | settings | options),
    )


def some_images(size, seed=0):
    images = np.random.default_rng(seed).normal(size=(3, size, size, 3))
    return jnp.asarray(images, jnp.float32)


def random_variables(network, images):
    """No scale is 1, no shift and mean 0, and no two variances are equal."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        normal = rng.normal(size=leaf.shape)
        name = path[-1].key
        if name == "kernel":
            normal *= math.sqrt(2 / math.prod(leaf.shape[-4:-1]))
        elif name == "variance":
            normal = np.exp(normal / 2)
        else:
            normal = (name == "scale") + normal / 4
        return jnp.asarray(normal, jnp.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    kept = {collection: shapes[collection] for collection in ("params", "batch_stats")}
    return jax.tree_util.tree_map_with_path(values, kept)


@functools.cache
def reference(case):
    """Images, our variables, and our logits: after training, and under the batch's statistics."""
    genotype, stem = CASES[case]
    network = our_network(genotype, stem)
    images = some_images({"imagenet": 64, "cifar": 8}[stem])
    variables = random_variables(network, images)
    logits = jax.jit(network.apply)(variables, images)
    training = jax.jit(functools.partial(network.apply, mutable=["batch_stats"]))
    of_batch, statistics = training(variables, images)
    return images, variables, np.asarray(logits), np.asarray(of_batch), statistics


def import_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def source_of(genotype, framework, stem="cifar"):
    sizes = SIZES[type(genotype)]
    return export.module_source(genotype, framework, num_classes=NUM_CLASSES, stem=stem, **sizes)


def export_case(case, framework, folder):
    """The exported module, and the file of its parameters."""
    genotype, stem = CASES[case]
    _, variables, *_ = reference(case)
    module, weights = folder / "my_network.py", folder / "my_network.safetensors"
    module.write_text(source_of(genotype, framework, stem))
    safetensors.numpy.save_file(export.parameters(variables, framework), weights)
    return import_file(module), weights


def assert_close(actual, desired, tolerance):
    """To a share of the largest entry."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    scale = np.abs(desired).max()
    assert actual.shape == desired.shape and actual.dtype == desired.dtype == np.float32
    assert 1e-3 < scale < 1e6
    np.testing.assert_allclose(actual / scale, desired / scale, rtol=0, atol=tolerance)


def count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


# Networks


@pytest.mark.parametrize("case", CASES)
def test_flax_module_is_our_network(case, tmp_path):
    images, _, logits, of_batch, statistics = reference(case)
    module, weights = export_case(case, "flax", tmp_path)
    network, variables = module.load(weights)
    assert_close(jax.jit(network.apply)(variables, images), logits, 1e-5)
    training = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    outputs, updates = training(variables, images)
    assert_close(outputs, of_batch, 1e-4)
    assert np.abs(logits - of_batch).max() > 1e-2

    # The running mean: nine parts of what was loaded, one part of the batch's.
    batch = export.parameters({"params": reference(case)[1]["params"], **statistics}, "flax")
    loaded = safetensors.numpy.load_file(weights)
    for path, value in jax.tree_util.tree_leaves_with_path(updates):
        name = ".".join(key.key for key in path)
        expected = 0.9 * loaded[name] + 0.1 * batch[name]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_flax_module_has_the_variables_that_are_exported(case, tmp_path):
    images, *_ = reference(case)
    module, weights = export_case(case, "flax", tmp_path)
    shapes = jax.eval_shape(module.Network().init, jax.random.key(0), images)
    _, variables = module.load(weights)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)


@pytest.mark.parametrize("case", CASES)
def test_torch_module_is_our_network(case, tmp_path):
    torch = pytest.importorskip("torch")
    images, _, logits, of_batch, _ = reference(case)
    module, weights = export_case(case, "torch", tmp_path)
    network = module.load(weights)
    assert not network.training
    images = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        assert_close(network(images), logits, 1e-4)
        assert_close(network.train()(images), of_batch, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("framework", export.FRAMEWORKS)
@pytest.mark.parametrize("genotype", [DARTS_V2, NASBENCH201_ALL], ids=["darts", "nasbench201"])
def test_networks_of_full_size(genotype, framework, tmp_path):
    if framework == "torch":
        torch = pytest.importorskip("torch")
    size = {DartsGenotype: (36, 20), Nasbench201Genotype: (16, 5)}[type(genotype)]
    network = our_network(
        genotype, num_classes=10, **dict(zip(("init_channels", "num_cells"), size, strict=True))
    )
    images = some_images(32)
    variables = random_variables(network, images)
    # In 20 cells the outputs would grow to 1e10 under statistics that are not the network's own.
    training = jax.jit(functools.partial(network.apply, mutable=["batch_stats"]))
    variables |= training(variables, images[::-1] + 1)[1]
    (tmp_path / "full.py").write_text(export.module_source(genotype, framework))
    weights = tmp_path / "full.safetensors"
    safetensors.numpy.save_file(export.parameters(variables, framework), weights)
    module = import_file(tmp_path / "full.py")
    if framework == "torch":
        inputs = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
        logits = module.load(weights)(inputs).detach()
    else:
        exported, theirs = module.load(weights)
        logits = jax.jit(exported.apply)(theirs, images)
    assert_close(logits, jax.jit(network.apply)(variables, images), 1e-4)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ({"num_classes": 10}, 3_349_342),
        # "4.7M" in the paper's table for ImageNet.
        (
            {"num_classes": 1000, "init_channels": 48, "num_cells": 14, "stem": "imagenet"},
            4_718_752,
        ),
    ],
    ids=["cifar", "imagenet"],
)
def test_parameters_of_darts_v2(size, parameters, tmp_path):
    (tmp_path / "flax_v2.py").write_text(export.module_source(DARTS_V2, "flax", **size))
    network = import_file(tmp_path / "flax_v2.py").Network()
    shapes = jax.eval_shape(network.init, jax.random.key(0), some_images(64))
    assert count(shapes["params"]) == parameters
    torch = pytest.importorskip("torch")
    (tmp_path / "torch_v2.py").write_text(export.module_source(DARTS_V2, "torch", **size))
    module = import_file(tmp_path / "torch_v2.py")
    with torch.device("meta"):
        assert sum(each.numel() for each in module.Network().parameters()) == parameters


def test_every_operation_is_covered():
    assert {op for op, _ in DARTS_ALL.normal} == set(DARTS_OPS[1:])
    assert {op for op, source in DARTS_ALL.reduce if source < 2} == set(DARTS_OPS[1:])
    assert set(NASBENCH201_ALL.ops) == set(NASBENCH201_OPS)
    assert set(NASBENCH101_ALL.prune().ops[1:-1]) == set(NASBENCH101_OPS)
    assert len(NASBENCH101_ALL.prune().ops) == len(NASBENCH101_ALL.ops) - 1


# Parameters


@pytest.mark.parametrize("framework", export.FRAMEWORKS)
def test_the_auxiliary_head_is_left_out(framework):
    images = some_images(32)
    with_head = random_variables(our_network(DARTS_ALL, auxiliary=True), images)
    without = random_variables(our_network(DARTS_ALL), images)
    assert "auxiliary_head" in with_head["params"] and "auxiliary_head" in with_head["batch_stats"]
    assert set(export.parameters(with_head, framework)) == set(
        export.parameters(without, framework)
    )


def test_names_of_parameters():
    _, variables, *_ = reference("nasbench201")
    kernel = variables["params"]["stage_1"]["edge_0_2"]["nor_conv_3x3"]["conv"]["kernel"]
    variance = variables["batch_stats"]["stem_norm"]["variance"]
    flax = export.parameters(variables, "flax")
    torch = export.parameters(variables, "torch")
    name = "cell_1_1.edge_0_2.nor_conv_3x3.conv"
    np.testing.assert_array_equal(flax[f"params.{name}.kernel"], kernel[1])
    np.testing.assert_array_equal(torch[f"{name}.weight"], kernel[1].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(flax["batch_stats.stem_norm.var"], variance.ravel())
    np.testing.assert_array_equal(torch["stem_norm.running_var"], variance.ravel())
    assert torch["stem_norm.num_batches_tracked"].shape == ()


def test_parameters_are_float32():
    _, variables, *_ = reference("nasbench201-none")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    for value in export.parameters(half, "flax").values():
        assert value.dtype == np.float32


def test_parameters_that_are_not_of_an_evaluation_network():
    images, variables, *_ = reference("nasbench201")
    with pytest.raises(ValueError, match=r"norm='running'.* params and batch_stats; got params"):
        export.parameters({"params": variables["params"]}, "flax")
    with pytest.raises(ValueError, match="got none"):
        export.parameters({}, "torch")
    space, spec = Nasbench201(**SIZES[Nasbench201Genotype]), NetworkSpec(norm="running")
    network = space.network(NASBENCH201_ALL, NUM_CLASSES, spec, form="search")
    searched = random_variables(network, images)
    with pytest.raises(ValueError, match=r"form 'evaluation'; [a-z_]+ has no scale"):
        export.parameters(searched, "flax")
    with pytest.raises(ValueError, match="framework must be one of: flax, torch; got 'keras'"):
        export.parameters(variables, "keras")


# Files


ALL_SOURCES = [
    *itertools.product(GENOTYPES, export.FRAMEWORKS, ["cifar"]),
    *itertools.product([DARTS_ALL], export.FRAMEWORKS, ["imagenet"]),
    *itertools.product([NASBENCH201_NONE, NASBENCH101_LEAST], export.FRAMEWORKS, ["cifar"]),
]


def imported_packages(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module.split(".")[0]


def test_modules_import_nothing_else():
    allowed = {"flax": {"flax", "jax", "numpy", "safetensors"}, "torch": {"torch", "safetensors"}}
    for genotype, framework, stem in ALL_SOURCES:
        packages = set(imported_packages(source_of(genotype, framework, stem)))
        assert framework in packages
        assert packages <= allowed[framework] | sys.stdlib_module_names


def test_modules_are_formatted(tmp_path):
    for index, arguments in enumerate(ALL_SOURCES):
        (tmp_path / f"module_{index}.py").write_text(source_of(*arguments))
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", ROOT / "pyproject.toml", "--no-cache", tmp_path]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run([*ruff, *command, *config], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


RUN_ALONE = """
import sys

for package in {blocked}:
    sys.modules[package] = None
import numpy as np
import my_network

images = np.load("images.npy")
if {torch}:
    import torch

    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits = my_network.load("my_network.safetensors")(images).detach().numpy()
else:
    network, variables = my_network.load("my_network.safetensors")
    logits = network.apply(variables, images)
np.save("logits.npy", logits)
"""


@pytest.mark.parametrize("framework", export.FRAMEWORKS)
def test_module_runs_without_us(framework, tmp_path):
    blocked = ["nasi_jax"]
    if framework == "torch":
        pytest.importorskip("torch")
        blocked += ["jax", "flax"]
    images, _, logits, *_ = reference("nasbench201")
    export_case("nasbench201", framework, tmp_path)
    np.save(tmp_path / "images.npy", images)
    code = RUN_ALONE.format(blocked=blocked, torch=framework == "torch")
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_close(np.load(tmp_path / "logits.npy"), logits, 1e-4)


def test_module_without_parameters_needs_no_safetensors():
    for genotype, framework in itertools.product(GENOTYPES, export.FRAMEWORKS):
        top = ast.parse(source_of(genotype, framework)).body
        imports = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
        packages = imported_packages(ast.unparse(ast.Module(imports, [])))
        assert "safetensors" not in packages


@pytest.mark.parametrize("genotype", GENOTYPES, ids=["darts", "nasbench201", "nasbench101"])
def test_docstring_says_what_was_exported(genotype):
    network = our_network(genotype)
    parameters = count(jax.eval_shape(network.init, jax.random.key(0), some_images(8))["params"])
    for framework in export.FRAMEWORKS:
        docstring = ast.get_docstring(ast.parse(source_of(genotype, framework)))
        description, _, text = docstring.partition("from the genotype\n")
        assert f"with {parameters:,} parameters" in description
        assert 'load("parameters.safetensors")' in description
        pruned = genotype.prune() if isinstance(genotype, Nasbench101Genotype) else genotype
        assert parse_genotype(text) == pruned


@pytest.mark.parametrize(
    ("genotype", "sizes"),
    [(DARTS_V2, (36, 20)), (NASBENCH201_ALL, (16, 5)), (NASBENCH101_ALL, (128, 3))],
    ids=["darts", "nasbench201", "nasbench101"],
)
@pytest.mark.parametrize("framework", export.FRAMEWORKS)
def test_default_sizes(genotype, sizes, framework):
    source = export.module_source(genotype, framework, num_classes=7)
    for name, value in zip(("NUM_CLASSES", "INIT_CHANNELS", "NUM_CELLS"), (7, *sizes), strict=True):
        assert f"\n{name} = {value}\n" in source


@pytest.mark.parametrize(
    ("genotype", "settings", "message"),
    [
        (DARTS_ALL, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (DARTS_ALL, {"num_cells": 2}, "num_cells of darts must be at least 3, got 2"),
        (NASBENCH201_ALL, {"init_channels": 0}, "init_channels of nasbench201 .* at least 1"),
        (DARTS_ALL, {"stem": "mnist"}, "stem must be one of: cifar, imagenet; got 'mnist'"),
        (DARTS_ALL, {"stem": "imagenet", "init_channels": 1}, "at least 2 with .*imagenet.*got 1"),
        (
            NASBENCH201_ALL,
            {"stem": "imagenet"},
            "nasbench201 have no options, got stem",
        ),
        (NASBENCH101_ALL, {"init_channels": 64}, "init_channels=128 and num_cells=3; got .*=64"),
        (NASBENCH101_ALL, {"framework": "keras"}, "one of: flax, torch; got 'keras'"),
        (
            Nasbench101Genotype(((0, 0), (0, 0)), ("input", "output")),
            {},
            "no path leads from the cell's input",
        ),
    ],
)
def test_networks_that_do_not_exist(genotype, settings, message):
    with pytest.raises(ValueError, match=message):
        export.module_source(genotype, **({"framework": "flax"} | settings))


# Text


@pytest.mark.parametrize("genotype", [*GENOTYPES, DARTS_V2, NASBENCH101_LEAST])
def test_text_is_read_back(genotype):
    own = genotype.family
    assert parse_genotype(export.text(genotype, "json")) == genotype
    assert json.loads(export.text(genotype, "json"))["format"] == own
    pruned = genotype.prune() if own == "nasbench101" else genotype
    assert parse_genotype(export.text(genotype, own)) == pruned
    assert export.text(genotype, "text") == export.text(genotype, own)
    for form in {*export.FORMS, "yaml"} - {own, "json", "text"}:
        with pytest.raises(ValueError, match=f"in the forms: {own}, json, text; got form '{form}'"):
            export.text(genotype, form)


def test_text_of_nasbench201():
    assert export.text(NASBENCH201_ALL, "nasbench201") == (
        "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    )
