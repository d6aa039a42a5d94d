"""Do the loss (4) and the bound (6) of Proposition 1 hold on a network of finite width?

Command:   python benchmarks/proposition1.py
Time:      40 seconds on two busy CPU cores
Expected:  the largest relative deviation from (4) falls about as width^-0.6, from 0.53 at width 64
           to 0.10 at width 1024; (6) is 512 times the loss or more at every step

A network of two hidden layers in NTK parameterization is trained on a few digits by gradient
descent on all of them, and each step's loss is compared with what the kernel of the first step
says. Prints how far apart they are at each width, and writes proposition1.json and
proposition1.png.

Assumptions, and what is done about them:
  - ||x|| <= 1: pixels are divided by the largest norm. Y is one-hot.
  - (4) has no f_0, so f_0 must be 0. The initial output is subtracted: f(x) = h(x; theta) -
    h(x; theta_0), which has the kernel of h. To train f on Y is to train h on Y + h(X; theta_0).
  - f_t in [0, 1]: not enforced, the range is printed. The linear part of (6) does not need it.
  - epsilon in (6) has an unknown constant c_0 and is left out. What is drawn and checked is
    m n^2 (1 - eta mean(lambda))^q alone, which without epsilon bounds the loss of f^lin; the
    loss of f may be above it in principle.
  - The convergence to f^lin (Lee et al., 2019) is proved for smooth activations: tanh, not ReLU.

That (6) holds says little. It lets each of the m n terms (u_i^T Y)^2 be m n, which is the most that
their sum can be, so it starts m n times too high or more; and it stays where it is after one step.
"""

from __future__ import annotations

import functools
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from measuring import write_record
from sklearn.datasets import load_digits

from nasi_jax import ntk
from nasi_jax.report.figures import save
from nasi_jax.types import ApplyFn, Params


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    widths: tuple[int, ...] = (64, 256, 1024)
    """Widths k of both hidden layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Nonlinearity."""
    num_inits: int = 3
    """Initializations of each width."""
    num_examples: int = 32
    """Digits m."""
    num_classes: int = 4
    """Classes n: the digits 0 to n - 1."""
    rate: float = 0.5
    """eta times the largest eigenvalue; below 1 in Proposition 1."""
    num_steps: int = 300
    """Steps of gradient descent."""
    seed: int = 0
    """Seed of the parameters."""
    out: Path = Path("runs/proposition1")
    """Where the record and the picture go."""
    smoke: bool = False
    """The smallest run that goes through all of it, for tests."""


class Comparison(NamedTuple):
    """Training as predicted and as it was, at the steps 0, 1, ...

    Attributes:
      predicted: `[T + 1]`, the loss by (4).
      actual: `[T + 1]`, the loss.
      bound: `[T + 1]`, the right side of (6) without epsilon.
      eigenvalues: `[m n]`, of the kernel, smallest first.
      outputs: `[T + 1, m, n]`, f_t.
    """

    predicted: np.ndarray
    actual: np.ndarray
    bound: np.ndarray
    eigenvalues: np.ndarray
    outputs: np.ndarray

    def deviation(self) -> float:
        """Largest deviation from (4) over the steps, relative to the predicted loss."""
        return float(np.max(np.abs(self.actual / self.predicted - 1)))


def digits(num_examples: int, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Inputs `[m, 64]` of norm at most 1, and one-hot targets `[m, n]`."""
    images, labels = load_digits(n_class=num_classes, return_X_y=True)
    images = images[:num_examples]
    inputs = images / np.linalg.norm(images, axis=1).max()
    return jnp.asarray(inputs), jnp.asarray(np.eye(num_classes)[labels[:num_examples]])


def init(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    """Independent standard normal weights of fully connected layers."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer_{index}": jax.random.normal(key, shape)
        for index, (key, shape) in enumerate(zip(keys, pairwise(sizes), strict=True))
    }


def network(activation: str) -> ApplyFn:
    """Fully connected layers W x / sqrt(fan-in), the NTK parameterization, without biases."""
    nonlinearity = getattr(jax.nn, activation)

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        first, *others = (params[name] / len(params[name]) ** 0.5 for name in sorted(params))
        outputs = inputs @ first
        for weights in others:
            outputs = nonlinearity(outputs) @ weights
        return outputs

    return apply


def linear_loss(
    eigenvalues: np.ndarray,
    eigenvectors: np.ndarray,
    targets: np.ndarray,
    eta: float,
    times: np.ndarray,
) -> np.ndarray:
    """The loss `[T]` of the linearized network at `times` `[T]`, which starts from f_0 = 0.

    L_t = m^-1 sum_i (1 - eta lambda_i)^(2t) (u_i^T Y)^2, equation (4).
    """
    squares = np.square(eigenvectors.T @ targets.ravel())
    return (1 - eta * eigenvalues) ** (2 * times[:, None]) @ squares / len(targets)


def loss_bound(
    mean_eigenvalue: float, num_examples: int, num_outputs: int, eta: float, times: np.ndarray
) -> np.ndarray:
    """m n^2 (1 - eta mean(lambda))^q, q = 2t below t = 0.5 and 1 from there: (6) less epsilon."""
    exponent = np.where(times < 0.5, 2 * times, 1)
    return num_examples * num_outputs**2 * (1 - eta * mean_eigenvalue) ** exponent


@functools.partial(jax.jit, static_argnames=("apply_fn", "num_steps"))
def descend(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    targets: jax.Array,
    learning_rate: float,
    num_steps: int,
) -> jax.Array:
    """Outputs `[num_steps + 1, m, n]` along gradient descent on m^-1 ||Y - f||^2."""

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        outputs = apply_fn(params, inputs)
        return jnp.sum(jnp.square(targets - outputs)) / len(inputs), outputs

    def step(params: Params, _: None) -> tuple[Params, jax.Array]:
        gradient, outputs = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), outputs

    return jax.lax.scan(step, params, length=num_steps + 1)[1]


_ntk = jax.jit(ntk, static_argnums=0, static_argnames=("coupled", "chunk_size"))


def compare(
    apply_fn: ApplyFn,
    params: Params,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    rate: float,
    num_steps: int,
) -> Comparison:
    """Trains f = h - h(theta_0), and says what (4) and (6) have to say about it.

    A step of s on L = m^-1 ||Y - f||^2 moves the parameters by -s J^T (2/m) (f - Y), and so a
    linear f by f - Y <- (I - (2 s / m) Theta) (f - Y). That is (4) with eta = 2 s / m, so
    s = m eta / 2. The paper has one letter for both: in (2) eta is s, the step on L; in (4), and
    so in eta < 1 / lambda_max and in (6), it is the step on ||Y - f||^2 / 2.

    Args:
      apply_fn: h, maps `(params, inputs[m, ...])` to outputs `[m, n]`, one example by itself.
      params: theta_0, float64.
      inputs: `[m, ...]`.
      targets: Y, `[m, n]` in [0, 1].
      rate: eta lambda_max.
      num_steps: T.
    """
    initial = apply_fn(params, inputs)
    # A row of the Jacobian takes 9 MB at width 1024: all 128 of them at once are too many.
    kernel = _ntk(apply_fn, params, inputs, coupled=False, chunk_size=8)
    eigenvalues, eigenvectors = np.linalg.eigh(kernel.reshape(targets.size, targets.size))
    eta = float(rate / eigenvalues[-1])
    num_examples, num_outputs = targets.shape
    learning_rate = num_examples * eta / 2
    trained = descend(apply_fn, params, inputs, targets + initial, learning_rate, num_steps)
    outputs = np.asarray(trained) - np.asarray(initial)
    times = np.arange(num_steps + 1)
    return Comparison(
        linear_loss(eigenvalues, eigenvectors, np.asarray(targets), eta, times),
        np.square(np.asarray(targets) - outputs).sum(axis=(1, 2)) / num_examples,
        loss_bound(eigenvalues.mean(), num_examples, num_outputs, eta, times),
        eigenvalues,
        outputs,
    )


def figures_of(comparison: Comparison) -> dict[str, Any]:
    """What is recorded of one run."""
    eigenvalues = comparison.eigenvalues
    return {
        "deviation": comparison.deviation(),
        "bound_over_loss": float(np.min(comparison.bound / comparison.actual)),
        "lambda_max": float(eigenvalues[-1]),
        "lambda_mean": float(eigenvalues.mean()),
        "lambda_min": float(eigenvalues[0]),
        "output_min": float(comparison.outputs.min()),
        "output_max": float(comparison.outputs.max()),
        "predicted": comparison.predicted.tolist(),
        "actual": comparison.actual.tolist(),
        "bound": comparison.bound.tolist(),
    }


def draw(results: dict[int, list[dict[str, Any]]]) -> Figure:
    """Losses of the first initialization, a panel a width."""
    figure = Figure(figsize=(3.6 * len(results), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(results), sharey=True))
    for axes, (width, (run, *_)) in zip(panels, results.items(), strict=True):
        axes.plot(run["bound"], "--", color="#8c8c8c", label="bound (6), without $\\epsilon$")
        axes.plot(run["predicted"], color="#333333", label="predicted (4)")
        axes.plot(run["actual"], "o", markersize=2.5, color="#3182bd", label="actual")
        # Half of the loss is gone within ten steps.
        axes.set_xscale("symlog", linthresh=1)
        axes.set(yscale="log", xlabel="step", xlim=(0, len(run["actual"])))
        axes.set_title(f"width {width}: deviation {run['deviation']:.2f}")
    panels[0].set_ylabel("training loss")
    panels[0].legend(frameon=False)
    return figure


def main() -> None:
    """Runs the study."""
    config = tyro.cli(Config, description=__doc__)
    if config.smoke:
        config = Config(
            widths=(8, 32), num_inits=2, num_examples=8, num_steps=20, out=config.out, smoke=True
        )
    begin = time.perf_counter()
    apply_fn = network(config.activation)
    results = {}
    deviations = []
    # Eigenvalues that are small beside the largest drown in the rounding of float32.
    with jax.enable_x64(True):
        inputs, targets = digits(config.num_examples, config.num_classes)
        for width in config.widths:
            sizes = (inputs.shape[1], width, width, config.num_classes)
            runs = results[width] = [
                figures_of(
                    compare(
                        apply_fn,
                        init(key, sizes),
                        inputs,
                        targets,
                        rate=config.rate,
                        num_steps=config.num_steps,
                    )
                )
                for key in jax.random.split(jax.random.key(config.seed), config.num_inits)
            ]
            each = {name: [run[name] for run in runs] for name in runs[0]}
            deviations.append(np.mean(each["deviation"]))
            print(
                f"width {width}: deviation {deviations[-1]:.3f} "
                f"[{min(each['deviation']):.3f}, {max(each['deviation']):.3f}], "
                f"bound {'held' if min(each['bound_over_loss']) >= 1 else 'BROKEN'} "
                f"(at least {min(each['bound_over_loss']):.0f} times the loss), "
                f"eigenvalues: largest {np.mean(each['lambda_max']):.3g}, "
                f"mean {np.mean(each['lambda_mean']):.3g}, "
                f"smallest {min(each['lambda_min']):.2g}; "
                f"outputs from {min(each['output_min']):.2f} to {max(each['output_max']):.2f}"
            )
    slope = float(np.polyfit(np.log(config.widths), np.log(deviations), 1)[0])
    print(f"The deviation goes as width^{slope:.2f}")
    record = {
        "config": {**asdict(config), "out": str(config.out)},
        "slope": slope,
        "runs": results,
        "seconds": time.perf_counter() - begin,
    }
    write_record(config.out, "proposition1", record)
    save(draw(results), config.out / "proposition1.png")


if __name__ == "__main__":
    main()
