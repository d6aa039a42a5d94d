"""Export of genotypes: as text, and as stand-alone modules for flax and PyTorch.

    source = module_source(genotype, "flax", num_classes=10)
    weights = safetensors.numpy.save(parameters(variables, "flax"))

The first written to `my_network.py`, the second to `my_network.safetensors`, elsewhere, and without
this package:

    network, variables = my_network.load("my_network.safetensors")
"""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from nasi_jax.cells import SEARCH_SPACES, evaluation_network, genotype_to_dict
from nasi_jax.cells.genotype import evaluation_sizes
from nasi_jax.types import Genotype, NetworkSpec, Stem

Framework = Literal["flax", "torch"]
"""What a module is written for."""
FRAMEWORKS: tuple[str, ...] = get_args(Framework)

FORMS = (*dict.fromkeys(each.genotype.family for each in SEARCH_SPACES.values()), "json", "text")
"""The text forms of genotypes: the one of a family, JSON, and `text` for the own form of any."""

__all__ = ["FORMS", "FRAMEWORKS", "Framework", "module_source", "parameters", "text"]


def text(genotype: Genotype, form: str) -> str:
    """The genotype in one of `FORMS`, as `parse_genotype` reads it.

    Args:
      genotype: of any family.
      form: the name of its family, or `text`, which is the same for all; or `json`. In the text
        form of NAS-Bench-101, the benchmark's, a cell is pruned; in JSON it is as it stands.

    Returns:
      One line of text.

    Raises:
      ValueError: if the genotype has no such form.
    """
    if form == "json":
        return json.dumps(genotype_to_dict(genotype))
    if form not in (genotype.family, "text"):
        raise ValueError(
            f"a {genotype.family} genotype can be written in the forms: {genotype.family}, json, "
            f"text; got form {form!r}"
        )
    return genotype.evaluated().to_text()


def module_source(
    genotype: Genotype,
    framework: Framework,
    *,
    num_classes: int = 10,
    init_channels: int | None = None,
    num_cells: int | None = None,
    stem: Stem = "cifar",
    inputs: str = "",
) -> str:
    """Source of a stand-alone Python module that defines the genotype's network.

    The network is `evaluation_network(genotype, num_classes)` under running statistics. The module
    has a class `Network` and a function `load`, which reads what `parameters` returns from a
    safetensors file; its docstring says how to use them.

    Args:
      genotype: of one of our families; a NAS-Bench-101 cell is pruned.
      framework: `flax` or `torch`.
      num_classes: number of logits.
      init_channels: as in the search space; by default what was trained on CIFAR-10, which is
        36 for DARTS and 16 for NAS-Bench-201. Those of NAS-Bench-101 are 128 always.
      num_cells: as in the search space; by default 20 in all for DARTS, 5 a stage for
        NAS-Bench-201. Those of NAS-Bench-101 are 3 a stage always.
      stem: `imagenet` is for DARTS alone.
      inputs: a sentence on what images it takes, for its docstring.

    Returns:
      The text of a Python file.

    Raises:
      ValueError: for a size or a stem that there is no such network of, or another family.
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework must be one of: {', '.join(FRAMEWORKS)}; got {framework!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    genotype = genotype.evaluated()
    template = resources.files("nasi_jax.export.templates") / f"{genotype.family}_{framework}.py"
    if not template.is_file():
        raise ValueError(
            f"there is no {framework} module for a {genotype.family} genotype, which can be "
            "written as json or text"
        )
    stems: dict[str, Any] = {} if stem == "cifar" else {"stem": stem}
    sizes = evaluation_sizes(genotype, init_channels=init_channels, num_cells=num_cells)
    network = evaluation_network(genotype, num_classes, NetworkSpec(), **sizes, **stems)
    constants: dict[str, Any] = {
        name.upper(): value
        for name, value in ({"num_classes": num_classes} | sizes | vars(genotype)).items()
    }
    if "stem" in genotype.options:
        constants["STEM"] = stem
    description = (
        f"Exported by nasi_jax, with {_num_parameters(network):,} parameters, from the genotype\n\n"
        f"{_wrapped(genotype.to_text())}"
    )
    if inputs:
        description += f"\n\n{textwrap.fill(inputs, 100)}"
    return _filled_in(template.read_text(encoding="utf-8"), description, constants)


def parameters(variables: Mapping[str, Any], framework: Framework) -> dict[str, np.ndarray]:
    """Renames the variables of our network as those of the exported module, in float32.

    To save them: `safetensors.numpy.save_file(parameters(variables, framework), path)`.

    Args:
      variables: `params` and `batch_stats` of an `evaluation_network` in norm mode `running`. An
        auxiliary head in them is left out, as it is in the module.
      framework: that of the module. For `flax` a name is the path in the variables, joined by
        dots; for `torch` it is that in the module's `state_dict`.

    Returns:
      Arrays by their names in the exported module.

    Raises:
      ValueError: if `variables` has no statistics, or scale and shift are missing from a layer.
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework must be one of: {', '.join(FRAMEWORKS)}; got {framework!r}")
    for collection in ("params", "batch_stats"):
        if collection not in variables:
            raise ValueError(
                "variables must be those of a network with norm='running', with the collections "
                f"params and batch_stats; got {', '.join(variables) or 'none'}"
            )
    leaves = {
        (collection, *path): leaf
        for collection in ("params", "batch_stats")
        for layers, stacked in flatten_dict(variables[collection]).items()
        for path, leaf in _unrolled(layers, np.asarray(stacked, np.float32))
        if path[0] != "auxiliary_head"
    }
    for collection, *path, _ in leaves:
        if collection == "batch_stats" and ("params", *path, "scale") not in leaves:
            raise ValueError(
                "variables must be those of a network of the form 'evaluation'; "
                f"{'/'.join(path)} has no scale"
            )
    named = _flax_names if framework == "flax" else _torch_names
    return {key: leaf for path, value in leaves.items() for key, leaf in named(path, value)}


def _num_parameters(network: nn.Module) -> int:
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def _wrapped(genotype: str) -> str:
    """Wraps a genotype's text for a docstring, at edges, operations or rows of the matrix."""
    glued = re.sub(r", (?=\d)", ",\0", genotype)
    lines = textwrap.wrap(glued, 96, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines).replace("\0", " "), "    ")


def _filled_in(template: str, description: str, constants: Mapping[str, Any]) -> str:
    """Fills in the constants of a template, and a description at the end of its docstring."""
    lines = template.splitlines()
    docstring, *statements = ast.parse(template).body
    assignments = {
        statement.targets[0].id: statement
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    # From the end, so that what is still to be replaced has not moved.
    for name in sorted(constants, key=lambda name: -assignments[name].lineno):
        lines[assignments[name].lineno - 1 : assignments[name].end_lineno] = [
            f"{name} = {_literal(constants[name])}"
        ]
    lines.insert((docstring.end_lineno or 0) - 1, f"\n{description}")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """Formats a value as ruff does, a line for each entry of a tuple."""
    if isinstance(value, tuple):
        return "\n".join(["(", *(f"    {_inline(entry)}," for entry in value), ")"])
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_inline, value))})"
    return json.dumps(value)


_Path = tuple[str, ...]


def _unrolled(path: _Path, leaf: np.ndarray) -> Iterator[tuple[_Path, np.ndarray]]:
    """Unstacks the leaves of the cells of a stage."""
    layer, *rest = path
    if not layer.startswith("stage_"):
        yield path, leaf
        return
    for index, part in enumerate(leaf):
        yield (f"{layer.replace('stage', 'cell', 1)}_{index}", *rest), part


def _flax_names(path: _Path, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    collection, *layers, leaf = path
    if collection == "batch_stats":
        value, leaf = value.reshape(-1), {"variance": "var"}.get(leaf, leaf)
    yield ".".join((collection, *layers, leaf)), value


def _torch_names(path: _Path, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    _, *layers, leaf = path
    names = {
        "kernel": "weight",
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "variance": "running_var",
    }
    if leaf == "kernel":
        value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
    elif leaf in ("mean", "variance"):
        value = value.reshape(-1)
    yield ".".join((*layers, names[leaf])), np.ascontiguousarray(value)
    if leaf == "mean":
        yield ".".join((*layers, "num_batches_tracked")), np.array(0, np.int64)
