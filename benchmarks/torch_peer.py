"""The same quantities in PyTorch and here, in one run on one machine.

Command:   pip install 'nasi-jax[peer]' && python benchmarks/torch_peer.py
Time:      about ten minutes on two CPU cores, most of it PyTorch's
Expected:  ratios (ours over PyTorch's) below 1, but for forward_backward; the goals are 0.1 of
           the time and 0.2 of the memory for the step, 0.35 of the time for the trace, 0.033 for
           the condition number

`nasi_step`: one step of NASI on the DARTS supernet, as `search_step.py` has it. In PyTorch x, the
squared norm of a gradient that has a graph of its own, is differentiated backward. The others are
of the NAS-Bench-201 network of `estimators.py`, frozen statistics: `forward_backward` of the mean
loss; `per_example`, the squared gradient norm of every example by `vmap(grad)`; `trace`, of the
NTK over all outputs, by a `vmap` over the outputs in one over the examples; `condition_number`,
of the NTK of the summed logits, by a backward pass for each example as in TE-NAS; `training_step`,
of the recipe nasbench201, in PyTorch by the module that `nasi export` writes, without augmentation;
`five_proxies`, grad_norm, synflow, jacov, naswot and zico of random cells under batch statistics,
whose networks PyTorch builds one after another, and ours scores as `nasi score` does.
The PyTorch code, in `torch_networks.py` and here, is our own; that the networks have as many
parameters as ours is checked in every run.

Each case runs in a process of its own, which imports one of the two libraries; memory is the peak
of that process, the libraries included. Ours runs twice: the first process compiles, its peak has
a column of its own, the second takes the program from the cache and is timed. Seconds are medians
of the repeats after a run that is not timed. Prints a table and writes torch_peer.json.

With `--device cuda` both compute on the first GPU (JAX's plugin must be there), memory is the peak
of what was allocated there, and `--precision tf32` lets both round the factors of products to
TF32, which JAX does unless told otherwise.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from measuring import alone, peak_megabytes, timed

# No JAX and no PyTorch up here: each process imports one of them, so that memory is its own.

NASBENCH201_CASES = (
    "forward_backward",
    "per_example",
    "trace",
    "condition_number",
    "training_step",
    "five_proxies",
)
CASES = ("nasi_step", *NASBENCH201_CASES)
PROXIES = ("grad_norm", "synflow", "jacov", "naswot", "zico")
"""What five_proxies scores by."""
QUANTITIES = {
    "forward_backward": "forward and backward",
    "per_example": "per_example_gradient",
    "trace": "ntk_trace",
    "condition_number": "condition_number",
}
"""What `estimators.py` calls those of the NAS-Bench-201 network."""

NUM_CLASSES = 10
CHANNELS = 3


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    cases: tuple[str, ...] = CASES
    """Which quantities: nasi_step, forward_backward, per_example, trace, condition_number,
    training_step, five_proxies."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where PyTorch computes, and where our memory is measured."""
    precision: Literal["highest", "tf32"] = "highest"
    """Of the products: float32, or factors rounded to TF32, which only a GPU has."""
    ours: bool = True
    """Whether to measure ours beside PyTorch."""
    batch_size: int = 16
    """Examples in the batch of nasi_step."""
    init_channels: int = 16
    """Channels of the first cells of both networks."""
    num_cells: int = 8
    """Cells of the DARTS supernet."""
    network_batch_size: int = 64
    """Examples in the batch of the other cases."""
    network_num_cells: int = 5
    """Cells a stage of the NAS-Bench-201 network."""
    num_archs: int = 16
    """Cells that five_proxies scores."""
    score_batch_size: int = 32
    """Examples in the batch of five_proxies."""
    train_batch_size: int = 256
    """Examples in the batch of training_step."""
    image_size: int = 32
    """Height and width of the images."""
    chunk_size: int = 16
    """Examples that PyTorch's vmap takes at a time."""
    repeats: int = 3
    """Timed runs of a case in PyTorch."""
    our_repeats: int = 5
    """Timed runs of a case of ours."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("runs/torch_peer")
    """Where the record goes."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


@dataclass(frozen=True)
class Ours:
    """What PyTorch has to know of a network of ours.

    Attributes:
      ops: operations of the supernet, or of the network's edges.
      parameters: entries of all parameters.
      module: source of the PyTorch module that `nasi export` writes, for training_step.
      cells: operations of each cell's edges, for five_proxies.
    """

    ops: tuple[str, ...]
    parameters: int
    module: str | None = None
    cells: tuple[tuple[str, ...], ...] = ()


def in_torch(case: str, ours: Ours, config: Config) -> dict[str, Any]:
    """A case in PyTorch, in the process that calls it.

    Args:
      case: one of `CASES`.
      ours: of the network.
      config: the settings.
    """
    import torch
    import torch_networks

    torch.manual_seed(config.seed)
    torch.set_default_device(config.device)
    on_gpu = config.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = on_gpu
    sizes = {
        "nasi_step": config.batch_size,
        "training_step": config.train_batch_size,
        "five_proxies": config.score_batch_size,
    }
    size = sizes.get(case, config.network_batch_size)
    images = torch.randn(size, CHANNELS, config.image_size, config.image_size)
    labels = torch.randint(NUM_CLASSES, (size,))
    if case == "nasi_step":
        network = torch_networks.DartsSupernet(
            NUM_CLASSES, ours.ops, config.init_channels, config.num_cells
        )
        compute = torch_step(network, len(ours.ops), images, labels)
    elif case == "training_step":
        assert ours.module is not None
        namespace: dict[str, Any] = {"__name__": "exported"}
        exec(ours.module, namespace)
        network = namespace["Network"]().train()
        compute = torch_training_step(network, images, labels)
    elif case == "five_proxies":

        def build(ops: tuple[str, ...]) -> Any:
            return torch_networks.nasbench201_network(
                NUM_CLASSES, ops, config.init_channels, config.network_num_cells
            ).train()

        network = torch.nn.ModuleList(build(ops) for ops in ours.cells)

        def compute() -> Any:
            return [torch_scores(build(ops), images, labels) for ops in ours.cells]

    else:
        network = torch_networks.nasbench201_network(
            NUM_CLASSES, ours.ops, config.init_channels, config.network_num_cells
        )
        with torch.no_grad():
            network(images)  # takes the statistics that are then fixed
        compute = torch_estimate(case, network.eval(), images, labels, config.chunk_size)

    def run() -> None:
        compute()
        if on_gpu:
            torch.cuda.synchronize()

    return {
        "seconds": timed(run, config.repeats),
        "peak_megabytes": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_megabytes(),
        "parameters": torch_networks.num_parameters(network),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def torch_training_step(network: Any, images: Any, labels: Any) -> Callable[[], Any]:
    """A step of stochastic gradient descent as in the recipe nasbench201."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def compute() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return compute


def torch_step(network: Any, num_ops: int, images: Any, labels: Any) -> Callable[[], Any]:
    """The gradient in alpha of ||grad_theta L||^2 at a random relaxed architecture."""
    import torch
    from torch.nn import functional

    # 14 edges in either kind of cell.
    alphas = [torch.zeros(14, num_ops, requires_grad=True) for _ in range(2)]
    params = list(network.parameters())

    def compute() -> Any:
        weights = [functional.gumbel_softmax(alpha) for alpha in alphas]
        loss = functional.cross_entropy(network(images, *weights), labels)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        squared = sum(gradient.square().sum() for gradient in gradients)
        return torch.autograd.grad(squared, alphas)

    return compute


def torch_estimate(
    case: str, network: Any, images: Any, labels: Any, chunk_size: int
) -> Callable[[], Any]:
    """The estimate of that name, of a network whose examples are independent."""
    import torch
    from torch import func
    from torch.nn import functional

    trainable = list(network.parameters())
    params = {name: value.detach() for name, value in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def logits_of(params: Any, image: Any) -> Any:
        return func.functional_call(network, (params, buffers), (image[None],))[0]

    def loss_of(params: Any, image: Any, label: Any) -> Any:
        return functional.cross_entropy(logits_of(params, image), label)

    def squared_norms(gradients: Any) -> Any:
        return sum(gradient.flatten(1).square().sum(1) for gradient in gradients.values())

    def trace_of(image: Any) -> Any:
        _, pull = func.vjp(lambda params: logits_of(params, image), params)
        (gradients,) = func.vmap(pull)(torch.eye(NUM_CLASSES))
        return squared_norms(gradients).sum()

    def forward_backward() -> Any:
        return torch.autograd.grad(functional.cross_entropy(network(images), labels), trainable)

    def per_example() -> Any:
        gradients = func.vmap(func.grad(loss_of), (None, 0, 0), chunk_size=chunk_size)
        return squared_norms(gradients(params, images, labels))

    def trace() -> Any:
        return func.vmap(trace_of, chunk_size=chunk_size)(images).sum()

    def condition_number() -> Any:
        rows = [
            torch.cat(
                [
                    gradient.flatten()
                    for gradient in torch.autograd.grad(total, trainable, retain_graph=True)
                ]
            )
            for total in network(images).sum(dim=1)
        ]
        jacobian = torch.stack(rows)
        eigenvalues = torch.linalg.eigvalsh(jacobian @ jacobian.T)
        return eigenvalues[-1] / eigenvalues[0]

    return {
        "forward_backward": forward_backward,
        "per_example": per_example,
        "trace": trace,
        "condition_number": condition_number,
    }[case]


def torch_scores(network: Any, images: Any, labels: Any) -> dict[str, float]:
    """`PROXIES` of a network, as their authors have them, layers being convolutional and dense."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torch_networks import without_statistics

    layers = [each.weight for each in network.modules() if isinstance(each, nn.Conv2d | nn.Linear)]

    def slopes(output: Any) -> Any:
        # Zero for layers of operations that lead nowhere.
        grad = functools.partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)
        return grad(output, layers, allow_unused=True)

    active: list[Any] = []
    hooks = [
        each.register_forward_hook(lambda _, __, output: active.append(output))
        for each in network.modules()
        if isinstance(each, nn.ReLU)
    ]
    images = images.detach().requires_grad_()
    logits = network(images)
    for hook in hooks:
        hook.remove()
    active = [each for each in active if each.requires_grad]
    of_images, *reached = torch.autograd.grad(
        logits.sum(), [images, *active], retain_graph=True, allow_unused=True
    )
    codes = [each > 0 for each, slope in zip(active, reached, strict=True) if slope is not None]
    code = torch.cat([each.flatten(1) for each in codes], 1).float()
    agree = code @ code.T + (1 - code) @ (1 - code).T
    correlations = torch.corrcoef(of_images.flatten(1))
    shifted = torch.linalg.eigvalsh(correlations.double()) + 1e-5
    gradients = slopes(functional.cross_entropy(logits, labels))
    halves = [
        slopes(functional.cross_entropy(network(part), of_part))
        for part, of_part in zip(images.detach().chunk(2), labels.chunk(2), strict=True)
    ]
    zico = torch.zeros(())
    for pair in zip(*halves, strict=True):
        both = torch.stack(pair)
        deviation = both.std(0, correction=0)
        ratios = both.abs().mean(0)[deviation > 0] / deviation[deviation > 0]
        if len(ratios):
            zico = zico + ratios.sum().log()
    with without_statistics(), torch.no_grad():
        for value in network.parameters():
            value.abs_()
        with torch.enable_grad():
            saliency = slopes(network(torch.ones_like(images[:1])).sum())
        synflow = sum((layer * each).sum() for layer, each in zip(layers, saliency, strict=True))
    return {
        "grad_norm": float(sum(each.norm() for each in gradients)),
        "synflow": float(torch.as_tensor(synflow).log()),
        "jacov": float(-(shifted.log() + 1 / shifted).sum()),
        "naswot": float(torch.linalg.slogdet(agree)[1]),
        "zico": float(zico),
    }


def here(case: str, config: Config, cache: str) -> dict[str, Any]:
    """A case of ours, in the process that calls it, with a compilation cache."""
    import estimators
    import jax
    import search_step

    search_step.use_cache(cache)
    if config.precision == "tf32":
        jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    elif config.device == "cuda":
        jax.config.update("jax_default_matmul_precision", "highest")
    if case == "nasi_step":
        search = search_step.Config(search=_search(config), repeats=config.our_repeats)
        measured = search_step.measure(search, cache)
    elif case == "training_step":
        measured = _training_step(config)
    elif case == "five_proxies":
        measured = _scores(config)
    else:
        settings = estimators.Config(
            batch_size=config.network_batch_size,
            init_channels=config.init_channels,
            num_cells=config.network_num_cells,
            image_size=config.image_size,
            repeats=config.our_repeats,
            seed=config.seed,
        )
        (row,) = estimators.measure(settings, (QUANTITIES[case],))
        measured = {name: row[name] for name in ("seconds", "compile_seconds")}
        measured["temporary_megabytes"] = row["megabytes"]
    statistics = jax.local_devices()[0].memory_stats() if config.device == "cuda" else None
    peak = statistics["peak_bytes_in_use"] / 1e6 if statistics else peak_megabytes()
    return {**measured, "peak_megabytes": peak}


def _training_step(config: Config) -> dict[str, Any]:
    """Our step of the recipe nasbench201, augmentation included."""
    import estimators
    import jax

    from nasi_jax import RECIPES, parse_genotype
    from nasi_jax.training import trainer

    recipe = replace(
        RECIPES["nasbench201"],
        batch_size=config.train_batch_size,
        init_channels=config.init_channels,
        num_cells=config.network_num_cells,
        image_size=config.image_size,
    )
    size, shape = config.train_batch_size, (config.image_size, config.image_size, CHANNELS)
    moments = np.full(CHANNELS, 128, np.float32), np.full(CHANNELS, 64, np.float32)
    images = trainer.Images(NUM_CLASSES, size, 255.0, *moments)
    algorithm = trainer.trainer(parse_genotype(estimators.GENOTYPE), recipe, images)
    key, rng = jax.random.key(config.seed), np.random.default_rng(config.seed)
    state = algorithm.init(key)
    batch = jax.device_put(
        (
            rng.integers(256, size=(size, *shape)).astype(np.uint8),
            rng.integers(NUM_CLASSES, size=size).astype(np.int32),
        )
    )
    begin = time.perf_counter()
    step = jax.jit(algorithm.step, donate_argnums=1).lower(key, state, *batch).compile()
    compile_seconds = time.perf_counter() - begin
    memory: Any = step.memory_analysis()

    def run() -> None:
        nonlocal state
        state, score = jax.block_until_ready(step(key, state, *batch))
        assert np.isfinite(score.loss)

    return {
        "seconds": timed(run, config.our_repeats),
        "compile_seconds": compile_seconds,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
    }


def _scores(config: Config) -> dict[str, Any]:
    """Our scores of as many cells, in one compiled supernet."""
    from nasi_jax import runs

    settings = _scoring(config)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.csv"
        found = [runs.score.score(settings, out, overwrite=True) for _ in range(config.our_repeats)]
    elapsed = time.perf_counter() - begin
    assert all(np.isfinite(values).all() for values in found[0].values.values())
    seconds = [sum(row.seconds for row in each.rows) for each in found]
    return {"seconds": seconds, "compile_seconds": elapsed - sum(seconds)}


def here_twice(case: str, config: Config) -> dict[str, Any]:
    """`here` with an empty cache (`cold`), then with the filled one, each time alone.

    On a GPU once: what compiling takes is no part of its memory.
    """
    with tempfile.TemporaryDirectory() as cache:
        names = ("compile_seconds", "peak_megabytes")
        if config.device == "cuda":
            cold = warm = alone(here, case, config, cache)
        else:
            cold = alone(here, case, replace(config, our_repeats=1), cache)
            warm = alone(here, case, config, cache)
    return {**warm, "cold": {name: cold[name] for name in names}}


def describe(case: str, config: Config) -> Ours:
    """Our network of a case."""
    import estimators
    import jax
    import jax.numpy as jnp

    from nasi_jax import export, parse_genotype, runs, search_space
    from nasi_jax.cells import Nasbench201Genotype
    from nasi_jax.runs.search import space_of
    from nasi_jax.types import NetworkSpec

    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, CHANNELS), jnp.float32)

    def variables(network: Any, *inputs: Any) -> Any:
        return jax.eval_shape(network.init, jax.random.key(0), images, *inputs)

    def count(variables: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    if case == "nasi_step":
        darts = space_of(_search(config))
        supernet = variables(darts.supernet(NUM_CLASSES), darts.init_alpha())
        # The supernet's scans have layers behind their last cells that nothing reads.
        return Ours(darts.ops, count(jax.eval_shape(darts.inherit, supernet)))
    sizes: dict[str, Any] = {
        "init_channels": config.init_channels,
        "num_cells": config.network_num_cells,
    }
    if case == "five_proxies":
        space, spec = space_of(_scoring(config)), NetworkSpec(norm="batch")
        drawn = runs.score.genotypes_of(_scoring(config))
        cells = [cell for cell in drawn if isinstance(cell, Nasbench201Genotype)]
        counts = [count(variables(space.network(cell, NUM_CLASSES, spec))) for cell in cells]
        return Ours((), sum(counts), cells=tuple(cell.ops for cell in cells))
    nasbench201 = search_space("nasbench201", **sizes)
    genotype = parse_genotype(estimators.GENOTYPE)
    assert isinstance(genotype, Nasbench201Genotype)
    network = variables(nasbench201.network(genotype, NUM_CLASSES, NetworkSpec(norm="frozen")))
    module = export.module_source(genotype, "torch", num_classes=NUM_CLASSES, **sizes)
    return Ours(genotype.ops, count(network), module)


def _scoring(config: Config) -> Any:
    from nasi_jax import ScoreConfig

    return ScoreConfig(
        space="nasbench201",
        data="gaussian",
        proxies=PROXIES,
        num_archs=config.num_archs,
        batch_size=config.score_batch_size,
        init_channels=config.init_channels,
        num_cells=config.network_num_cells,
        image_size=config.image_size,
        matmul_precision="high" if config.precision == "tf32" else "highest",
        seed=config.seed,
    )


def _search(config: Config) -> Any:
    from nasi_jax import SearchConfig

    return SearchConfig(
        space="darts",
        batch_size=config.batch_size,
        init_channels=config.init_channels,
        num_cells=config.num_cells,
        image_size=config.image_size,
        seed=config.seed,
    ).resolved()


def compare(config: Config) -> list[dict[str, Any]]:
    """A row for each case.

    Raises:
      ValueError: for an unknown case, or if a network of ours is not that of PyTorch.
    """
    unknown = [case for case in config.cases if case not in CASES]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    rows = []
    for case in config.cases:
        network = alone(describe, case, config)
        theirs = alone(in_torch, case, network, config)
        if theirs["parameters"] != network.parameters:
            raise ValueError(
                f"{case}: {theirs['parameters']} parameters in PyTorch, {network.parameters} "
                "of ours"
            )
        row = {"case": case, "parameters": network.parameters, "torch": theirs}
        rows.append({**row, "ours": here_twice(case, config)} if config.ours else row)
    return rows


def main() -> None:
    """Runs the comparison."""
    config = tyro.cli(Config, description=__doc__)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: pip install 'nasi-jax[peer]'", file=sys.stderr)
        sys.exit(2)
    if config.smoke:
        config = replace(
            config,
            batch_size=2,
            init_channels=4,
            num_cells=3,
            network_batch_size=4,
            network_num_cells=1,
            num_archs=3,
            score_batch_size=4,
            train_batch_size=4,
            image_size=8,
            chunk_size=2,
            repeats=2,
            our_repeats=2,
        )
    rows = compare(config)
    columns = ["quantity", "PyTorch, s", "MB"]
    if config.ours:
        columns += ["ours, s", "MB", "MB to compile", "time ratio", "memory ratio"]
    print(f"| {' | '.join(columns)} |")
    print("| --- " * len(columns) + "|")
    for row in rows:
        theirs = row["torch"]
        their_seconds, their_peak = np.median(theirs["seconds"]), theirs["peak_megabytes"]
        line = f"| {row['case']} | {their_seconds:.3g} | {their_peak:.0f} "
        if config.ours:
            ours = row["ours"]
            our_seconds, our_peak = np.median(ours["seconds"]), ours["peak_megabytes"]
            line += f"| {our_seconds:.3g} | {our_peak:.0f} "
            line += f"| {ours['cold']['peak_megabytes']:.0f} "
            line += f"| {our_seconds / their_seconds:.3g} | {our_peak / their_peak:.3g} "
        print(f"{line}|")

    from importlib.metadata import version

    from nasi_jax.storage import files
    from nasi_jax.storage.directory import provenance

    record: dict[str, Any] = {
        "config": {**asdict(config), "out": str(config.out)},
        "rows": rows,
        **provenance(),
    }
    record["versions"]["torch"] = version("torch")
    config.out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(config.out / "torch_peer.json", json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    main()
