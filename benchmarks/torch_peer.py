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
of the NTK of the summed logits, by a backward pass for each example as in TE-NAS. The PyTorch
code, in `torch_networks.py` and here, is our own; that the networks have as many parameters as
ours is checked in every run.

Each case runs in a process of its own, which imports one of the two libraries; memory is the peak
of that process, the libraries included. Ours runs twice: the first process compiles, its peak has
a column of its own, the second takes the program from the cache and is timed. Seconds are medians
of the repeats after a run that is not timed. Prints a table and writes torch_peer.json.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import alone, peak_megabytes, timed

# No JAX and no PyTorch up here: each process imports one of them, so that memory is its own.

CASES = ("nasi_step", "forward_backward", "per_example", "trace", "condition_number")
QUANTITIES = {
    "forward_backward": "forward and backward",
    "per_example": "per_example_gradient",
    "trace": "ntk_trace",
    "condition_number": "condition_number",
}
"""What `estimators.py` calls the cases of the NAS-Bench-201 network."""

NUM_CLASSES = 10
CHANNELS = 3


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    cases: tuple[str, ...] = CASES
    """Which quantities: nasi_step, forward_backward, per_example, trace, condition_number."""
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


def in_torch(case: str, ops: tuple[str, ...], config: Config) -> dict[str, Any]:
    """A case in PyTorch, in the process that calls it.

    Args:
      case: one of `CASES`.
      ops: operations of the supernet, or of the network's edges.
      config: the settings.
    """
    import torch
    import torch_networks

    torch.manual_seed(config.seed)
    step = case == "nasi_step"
    size = config.batch_size if step else config.network_batch_size
    images = torch.randn(size, CHANNELS, config.image_size, config.image_size)
    labels = torch.randint(NUM_CLASSES, (size,))
    if step:
        network = torch_networks.DartsSupernet(
            NUM_CLASSES, ops, config.init_channels, config.num_cells
        )
        compute = torch_step(network, len(ops), images, labels)
    else:
        network = torch_networks.nasbench201_network(
            NUM_CLASSES, ops, config.init_channels, config.network_num_cells
        )
        with torch.no_grad():
            network(images)  # takes the statistics that are then fixed
        compute = torch_estimate(case, network.eval(), images, labels, config.chunk_size)
    return {
        "seconds": timed(compute, config.repeats),
        "peak_megabytes": peak_megabytes(),
        "parameters": torch_networks.num_parameters(network),
        "threads": torch.get_num_threads(),
    }


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


def here(case: str, config: Config, cache: str) -> dict[str, Any]:
    """A case of ours, in the process that calls it, with a compilation cache."""
    import estimators
    import search_step

    if case == "nasi_step":
        search = search_step.Config(search=_search(config), repeats=config.our_repeats)
        return search_step.measure(search, cache)
    search_step.use_cache(cache)
    settings = estimators.Config(
        batch_size=config.network_batch_size,
        init_channels=config.init_channels,
        num_cells=config.network_num_cells,
        image_size=config.image_size,
        repeats=config.our_repeats,
        seed=config.seed,
    )
    (row,) = estimators.measure(settings, (QUANTITIES[case],))
    return {
        "seconds": row["seconds"],
        "compile_seconds": row["compile_seconds"],
        "peak_megabytes": peak_megabytes(),
        "temporary_megabytes": row["megabytes"],
    }


def here_twice(case: str, config: Config) -> dict[str, Any]:
    """`here` with an empty cache (`cold`), then with the filled one, each time alone."""
    with tempfile.TemporaryDirectory() as cache:
        cold = alone(here, case, replace(config, our_repeats=1), cache)
        warm = alone(here, case, config, cache)
    names = ("compile_seconds", "peak_megabytes")
    return {**warm, "cold": {name: cold[name] for name in names}}


def describe(config: Config) -> dict[str, tuple[tuple[str, ...], int]]:
    """Of each of our networks, `darts` and `nasbench201`, the operations and the parameters."""
    import estimators
    import jax
    import jax.numpy as jnp

    from nasi_jax import parse_genotype, search_space
    from nasi_jax.cells import Nasbench201Genotype
    from nasi_jax.experiment import space_of

    images = jnp.zeros((1, config.image_size, config.image_size, CHANNELS))

    def variables(network: Any, *inputs: Any) -> Any:
        return jax.eval_shape(network.init, jax.random.key(0), images, *inputs)

    def count(variables: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    darts = space_of(_search(config))
    supernet = variables(darts.supernet(NUM_CLASSES), darts.init_alpha())
    nasbench201 = search_space(
        "nasbench201", init_channels=config.init_channels, num_cells=config.network_num_cells
    )
    genotype = parse_genotype(estimators.GENOTYPE)
    assert isinstance(genotype, Nasbench201Genotype)
    network = variables(nasbench201.network(genotype, NUM_CLASSES, norm="frozen"))
    return {
        # The supernet's scans have layers behind their last cells that nothing reads.
        "darts": (darts.ops, count(jax.eval_shape(darts.inherit, supernet))),
        "nasbench201": (genotype.ops, count(network)),
    }


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
    networks = alone(describe, config)
    rows = []
    for case in config.cases:
        ops, parameters = networks["darts" if case == "nasi_step" else "nasbench201"]
        theirs = alone(in_torch, case, ops, config)
        if theirs["parameters"] != parameters:
            raise ValueError(
                f"{case}: {theirs['parameters']} parameters in PyTorch, {parameters} of ours"
            )
        ours = here_twice(case, config)
        rows.append({"case": case, "parameters": parameters, "torch": theirs, "ours": ours})
    return rows


def main() -> None:
    """Runs the comparison."""
    config = tyro.cli(Config, description=__doc__)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: pip install 'nasi-jax[peer]'", file=sys.stderr)
        sys.exit(2)
    if config.smoke:
        config = Config(
            cases=config.cases,
            batch_size=2,
            init_channels=4,
            num_cells=3,
            network_batch_size=4,
            network_num_cells=1,
            image_size=8,
            chunk_size=2,
            repeats=2,
            our_repeats=2,
            out=config.out,
        )
    rows = compare(config)
    print(
        "| quantity | PyTorch, s | MB | ours, s | MB | MB to compile | time ratio | memory ratio |"
    )
    print("| --- " * 8 + "|")
    for row in rows:
        theirs, ours = row["torch"], row["ours"]
        their_seconds, our_seconds = np.median(theirs["seconds"]), np.median(ours["seconds"])
        their_peak, our_peak = theirs["peak_megabytes"], ours["peak_megabytes"]
        print(
            f"| {row['case']} | {their_seconds:.3g} | {their_peak:.0f} | {our_seconds:.3g} "
            f"| {our_peak:.0f} | {ours['cold']['peak_megabytes']:.0f} "
            f"| {our_seconds / their_seconds:.3g} | {our_peak / their_peak:.3g} |"
        )

    from importlib.metadata import version

    from nasi_jax import files
    from nasi_jax.directory import provenance

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
