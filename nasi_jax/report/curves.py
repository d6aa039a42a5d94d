"""Figures of a search, of a training, and of scores against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw_history(history: Mapping[str, np.ndarray], *, title: str | None = None) -> Figure:
    """Plots x, nu and the gradient norm over the steps of a search.

    Values that are not finite are left out, and the legend says how many.

    Args:
      history: arrays `[T]`: `x`, the trace estimate of each step (a squared gradient norm),
        `nu`, the constraint on it, and `gradient_norm`, of alpha's gradient before it is
        normalized by its running maximum.
      title: a heading.

    Returns:
      A figure of two axes: `x`, its running mean and `nu`, logarithmic if all are positive; and
      the gradient norm with its running maximum.

    Raises:
      ValueError: if an array is missing, or they are not of one shape `[T]`.
    """
    names = ("x", "nu", "gradient_norm")
    missing = [name for name in names if name not in history]
    if missing:
        raise ValueError(f"history takes {', '.join(names)}; missing: {', '.join(missing)}")
    series = [np.asarray(history[name], float) for name in names]
    shapes = {values.shape for values in series}
    if len(shapes) != 1 or series[0].ndim != 1:
        raise ValueError(f"the arrays of history have one shape [T], not {sorted(shapes)}")
    x, nu, norm = (np.where(np.isfinite(values), values, np.nan) for values in series)
    known = np.isfinite(x)
    count = np.cumsum(known)
    mean = np.where(count > 0, np.cumsum(np.where(known, x, 0)) / np.maximum(count, 1), np.nan)

    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    # Lines have markers, so that a value between two that are not finite is seen.
    _plot(upper, x, "trace estimate $x$", ".", color="#9ebcda", markersize=5)
    _plot(upper, mean, "running mean of $x$", ".-", color="#08519c", markersize=2)
    _plot(upper, nu, r"constraint $\nu$", ".-", color="#d95f0e", markersize=2)
    shown = np.concatenate([x[known], nu[np.isfinite(nu)]])
    if shown.size and (shown > 0).all():
        upper.set_yscale("log")
    upper.set_ylabel("trace estimate $x$\n(squared gradient norm)")
    _plot(lower, norm, "gradient norm", ".-", color="#74a892", markersize=2)
    _plot(lower, np.fmax.accumulate(norm), "running maximum", ".-", color="#1b5e43", markersize=2)
    lower.set_ylabel("norm of the gradient\nin the architecture " + r"$\alpha$")
    lower.set_xlabel("search step $t$")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small"
        )
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def draw_fitness(fitness: np.ndarray, *, title: str | None = None) -> Figure:
    """Plots the fitness `[N]` of the networks of a selection in order, and the best so far."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    _plot(axes, fitness, "network", ".", color="#9ebcda", markersize=4)
    _plot(axes, np.maximum.accumulate(fitness), "best so far", "-", color="#08519c")
    axes.set(xlabel="networks scored", ylabel="sum of log ranks\namong all of them")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def draw_curves(metrics: Mapping[str, np.ndarray], *, title: str | None = None) -> Figure:
    """Plots loss and accuracy over the epochs of a training.

    Args:
      metrics: arrays `[epochs]`: `epoch`, and `loss` and `accuracy` (in percent) with `train_` and
        with `test_` before it.
      title: a heading.

    Returns:
      A figure of two axes.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, unit in zip(panels, ("loss", "accuracy"), ("", " in %"), strict=True):
        for part, color in (("train", "#9ebcda"), ("test", "#08519c")):
            values = metrics[f"{part}_{name}"]
            axes.plot(metrics["epoch"], values, ".-", label=part, color=color, markersize=4)
        axes.set(xlabel="epoch", ylabel=name + unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def draw_scatter(
    truth: tuple[str, np.ndarray], scores: dict[str, np.ndarray], titles: dict[str, str]
) -> Figure:
    """Scatter plots of scores against a reference score, a panel each.

    Args:
      truth: the name and the values `[N]` on the horizontal axes; logarithmic where all are
        positive and span more than a factor of 100.
      scores: names and values `[N]` of the vertical axes; logarithmic where all are positive.
      titles: what stands above the panels.
    """
    columns = min(4, len(scores))
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    panels = np.ravel(np.asarray(figure.subplots(rows, columns, squeeze=False)))
    for axes, (name, values) in zip(panels, scores.items(), strict=False):
        size, alpha = (4, 0.7) if len(values) <= 100 else (2, 0.3)
        axes.plot(truth[1], values, "o", markersize=size, color="#08519c", alpha=alpha)
        axes.set(xlabel=truth[0], ylabel=name, title=titles[name])
        wide = np.min(truth[1]) > 0 and np.max(truth[1]) > 100 * np.min(truth[1])
        axes.set_xscale("log" if wide else "linear")
        axes.set_yscale("log" if np.all(values > 0) else "linear")
    for axes in panels[len(scores) :]:
        axes.remove()
    return figure


def _plot(axes: Axes, values: np.ndarray, label: str, form: str, **style: Any) -> None:
    """Plots one series over the steps; the legend counts what is not finite."""
    left_out = int(np.isnan(values).sum())
    suffix = f" ({left_out} not finite)" if left_out else ""
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, form, label=label + suffix, linewidth=1, **style)
