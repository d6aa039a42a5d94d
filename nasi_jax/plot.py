"""Drawings of genotypes and of a search's history, made without a display.

A cell is drawn as a layered graph (Gansner et al., 1993, "A technique for drawing directed
graphs", the method of graphviz's dot, which DARTS draws with): an arrow's label takes a place in
a column of its own, and every arrow bends between the columns only, so that no arrow or label
can run into a box or another label.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Set
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from scipy.optimize import linprog

from nasi_jax import files
from nasi_jax.cells.genotype import (
    AnyGenotype,
    DartsGenotype,
    Nasbench101Genotype,
    Nasbench201Genotype,
)
from nasi_jax.types import Edge

_MIN_MARGIN = 2.0
"""Standard errors below which a choice is drawn as not yet settled."""

_INPUT = "#b9dfb5"
_NODE = "#bcdcf0"
_OUTPUT = "#f8e496"
_DROPPED = "#ececec"
_DARK = "#333333"
_MID = "#8c8c8c"
_FAINT = "#cfcfcf"

# Lengths are inches, font sizes points.
_FONT = "sans-serif"
_FONT_SIZE = 9.0
_TITLE_SIZE = 12.0
_MARGIN = 0.2
_BOX_HEIGHT = 0.36
_LABEL_HEIGHT = 0.2
_PORT_GAP = 0.11
_ROW_GAP = 0.12
_COLUMN_GAP = 0.35
_HEAD = 0.1

_STARTS = 20
_SWEEPS = 8


class _Box(NamedTuple):
    text: str
    color: str
    border: str = _DARK
    dashed: bool = False


class _Arrow(NamedTuple):
    source: int
    target: int
    label: str = ""
    color: str = _DARK
    dashed: bool = False


class _Cell(NamedTuple):
    """A graph whose arrows lead from a lower to a higher box; the last box is the output."""

    title: str
    boxes: list[_Box]
    arrows: list[_Arrow]


class _Layout(NamedTuple):
    """Places in inches, y downward from 0; the first items are the boxes.

    Attributes:
      routes: for each arrow the items that it runs through, from box to box; the one before
        the last bears the label.
      columns: for each rank its items from top to bottom.
      ports: `[arrows, 2]`, how far below the middles of its boxes each arrow starts and ends.
      width: `[items]`.
      height: `[items]`.
      y: `[items]`, the middle of each item.
      left: `[ranks]`, where each column begins.
      right: `[ranks]`, where it ends.
    """

    routes: list[list[int]]
    columns: list[list[int]]
    ports: np.ndarray
    width: np.ndarray
    height: np.ndarray
    y: np.ndarray
    left: np.ndarray
    right: np.ndarray


def draw_genotype(
    genotype: AnyGenotype,
    *,
    confidence: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws the cells of a genotype from left to right, as the DARTS paper does.

    Args:
      genotype: of DARTS (the normal cell above the reduction cell; the boxes 0 to 3 are the
        nodes 2 to 5), NAS-Bench-201 (edges with `none` are faint), or NAS-Bench-101 and
        NAS-Bench-1Shot1 (ops in the boxes; what pruning drops is grey).
      confidence: for names of choices, such as `normal 0->2`, `normal inputs of 2`, `0->1`,
        `op of 2` or `inputs of output`, the margin by which the choice is decided, in standard
        errors. What is below 2 (or not a number) is drawn dashed, what is missing is certain.
      title: a heading, on one line.

    Returns:
      A figure as large as the drawing.
    """
    unsure = {name for name, margin in (confidence or {}).items() if not margin >= _MIN_MARGIN}
    if isinstance(genotype, DartsGenotype):
        edges = {"normal": genotype.normal, "reduce": genotype.reduce}
        cells = [_darts_cell(cell, edges[cell], unsure) for cell in edges]
        decided = "op (arrow) or inputs (box)"
    elif isinstance(genotype, Nasbench201Genotype):
        cells = [_nasbench201_cell(genotype, unsure)]
        decided = "op"
    else:
        cells = [_nasbench101_cell(genotype, unsure)]
        decided = "op (box) or inputs (arrows)"
    note = f"dashed: {decided} decided by a margin below {_MIN_MARGIN:g} standard errors"
    return _figure(cells, title, None if confidence is None else note)


def draw_history(history: Mapping[str, np.ndarray], *, title: str | None = None) -> Figure:
    """Draws how the trace, its constraint and the gradient ran during a search.

    Values that are not finite are left out, and the legend says how many.

    Args:
      history: arrays `[T]`: `x`, the trace estimate of each step (a squared gradient norm),
        `nu`, the constraint on it, and `gradient_norm`, of alpha's gradient before it is
        normalised by its running maximum.
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


def draw_curves(metrics: Mapping[str, np.ndarray], *, title: str | None = None) -> Figure:
    """Draws how the loss and the accuracy of a network ran while it was trained.

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
    """Scores of architectures against a true score, a panel each.

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


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a file; the same figure gives the same bytes.

    Args:
      figure: what is drawn.
      kind: `svg` (text stays text) or `png` (200 dots per inch).

    Raises:
      ValueError: for another kind.
    """
    if kind not in ("svg", "png"):
        raise ValueError(f"a figure is saved as .svg or .png, not {kind!r}")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nasi_jax", "svg.fonttype": "none"}):
        figure.savefig(content, format=kind, dpi=200, metadata=metadata)
    return content.getvalue()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure, all of it or nothing.

    Args:
      figure: what is written.
      path: ends in `.svg` or `.png`; see `render`.

    Raises:
      ValueError: for another suffix.
    """
    path = Path(path)
    files.write_bytes(path, render(figure, path.suffix.lower().removeprefix(".")))


def _plot(axes: Axes, values: np.ndarray, label: str, form: str, **style: Any) -> None:
    """Plots one series over the steps; the legend counts what is not finite."""
    left_out = int(np.isnan(values).sum())
    suffix = f" ({left_out} not finite)" if left_out else ""
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, form, label=label + suffix, linewidth=1, **style)


def _darts_cell(name: str, edges: tuple[Edge, ...], unsure: Set[str]) -> _Cell:
    boxes = [_Box("c_{k-2}", _INPUT), _Box("c_{k-1}", _INPUT)]
    arrows = []
    for node in range(2, 2 + len(edges) // 2):
        dashed = f"{name} inputs of {node}" in unsure
        boxes.append(_Box(str(node - 2), _NODE, dashed=dashed))
        for op, source in edges[2 * node - 4 : 2 * node - 2]:
            dashed = f"{name} {source}->{node}" in unsure
            arrows.append(_Arrow(source, node, op, dashed=dashed))
    output = len(boxes)
    title = "reduction" if name == "reduce" else name
    arrows += [_Arrow(node, output, color=_MID) for node in range(2, output)]
    return _Cell(f"{title} cell", [*boxes, _Box("c_{k}", _OUTPUT)], arrows)


def _nasbench201_cell(genotype: Nasbench201Genotype, unsure: Set[str]) -> _Cell:
    boxes = [_Box(str(node), color) for node, color in enumerate([_INPUT, _NODE, _NODE, _OUTPUT])]
    edges = [(source, target) for target in range(4) for source in range(target)]
    arrows = []
    for (source, target), op in zip(edges, genotype.ops, strict=True):
        label, color = ("", _FAINT) if op == "none" else (op, _DARK)
        arrows.append(_Arrow(source, target, label, color, f"{source}->{target}" in unsure))
    return _Cell("", boxes, arrows)


def _nasbench101_cell(genotype: Nasbench101Genotype, unsure: Set[str]) -> _Cell:
    size = len(genotype.ops)
    matrix = np.array(genotype.matrix)
    # Not prune(), which renumbers the vertices, and which refuses a cell without a path.
    reaches = np.linalg.matrix_power(np.eye(size, dtype=int) + matrix, size) > 0
    used = reaches[0] & reaches[:, -1]
    colors = [_INPUT, *[_NODE] * (size - 2), _OUTPUT]
    boxes = []
    arrows = []
    for vertex, op in enumerate(genotype.ops):
        color, border = (colors[vertex], _DARK) if used[vertex] else (_DROPPED, _MID)
        boxes.append(_Box(op, color, border, f"op of {vertex}" in unsure))
        name = "output" if vertex == size - 1 else str(vertex)
        for source in genotype.parents(vertex):
            color = _DARK if used[source] and used[vertex] else _FAINT
            dashed = f"inputs of {name}" in unsure
            arrows.append(_Arrow(source, vertex, color=color, dashed=dashed))
    return _Cell("", boxes, arrows)


def _text_width(text: str, size: float = _FONT_SIZE) -> float:
    font = FontProperties(family=[_FONT])
    # The control points span no less than the outlines, at a tenth of the time.
    return float(np.ptp(TextPath((0, 0), text, size=size, prop=font).vertices[:, 0])) / 72


def _layers(cell: _Cell) -> list[int]:
    """Each box's column: one after the last that it reads; the output comes after all."""
    layers = [0] * len(cell.boxes)
    for arrow in sorted(cell.arrows, key=lambda arrow: arrow.target):
        layers[arrow.target] = max(layers[arrow.target], layers[arrow.source] + 1)
    layers[-1] = max(layers[:-1]) + 1
    return layers


def _layout(cell: _Cell) -> _Layout:
    num_boxes = len(cell.boxes)
    layers = _layers(cell)
    # Boxes have the even places, the labels of the arrows into them the odd ones before.
    labelled = {2 * layers[arrow.target] - 1 for arrow in cell.arrows if arrow.label}
    rank_of = {place: r for r, place in enumerate(sorted({2 * x for x in layers} | labelled))}
    ranks = [rank_of[2 * layer] for layer in layers]
    degree = np.zeros((num_boxes, 2), int)
    for arrow in cell.arrows:
        degree[arrow.source, 0] += 1
        degree[arrow.target, 1] += 1
    widths = [max(0.4, _text_width(box.text) + 0.2) for box in cell.boxes]
    heights = [max(_BOX_HEIGHT, _PORT_GAP * (most - 1) + 0.2) for most in degree.max(1)]
    routes = []
    for arrow in cell.arrows:
        between = range(ranks[arrow.source] + 1, ranks[arrow.target])
        passed = list(range(len(ranks), len(ranks) + len(between)))
        routes.append([arrow.source, *passed, arrow.target])
        ranks += between
        widths += [0.0] * len(between)
        heights += [0.0] * len(between)
        if arrow.label:
            widths[-1], heights[-1] = _text_width(arrow.label) + 0.1, _LABEL_HEIGHT

    width, height = np.array(widths), np.array(heights)
    columns = _order(np.array(ranks), routes)
    ports = _ports(columns, routes)
    y = _rows(columns, routes, ports, height)
    y -= (y - height / 2).min()
    column_width = np.array([width[column].max() for column in columns])
    left = np.zeros(len(columns))
    for rank in range(1, len(columns)):
        # Room in proportion to the rise keeps the bends gentle.
        rises = [
            abs(y[u] - y[v]) for route in routes for u, v in pairwise(route) if ranks[v] == rank
        ]
        gap = _COLUMN_GAP + 0.15 * max(rises, default=0.0)
        left[rank] = left[rank - 1] + column_width[rank - 1] + gap
    return _Layout(routes, columns, ports, width, height, y, left, left + column_width)


def _order(ranks: np.ndarray, routes: list[list[int]]) -> list[list[int]]:
    """The items of each rank, ordered so that few arrows cross.

    Items move to the mean place of their neighbours in the column before, then in the one
    after, to and fro (Sugiyama et al., 1981), from several starts; the best order wins.
    """
    links = np.array([pair for route in routes for pair in pairwise(route)], int).reshape(-1, 2)
    neighbours = np.zeros((len(ranks), len(ranks)))
    neighbours[links[:, 0], links[:, 1]] = 1
    into = [links[ranks[links[:, 1]] == rank] for rank in range(ranks.max() + 1)]
    members = [np.flatnonzero(ranks == rank) for rank in range(ranks.max() + 1)]
    before = [neighbours[:, column].T for column in members]
    after = [neighbours[column] for column in members]
    rng = np.random.default_rng(0)

    def crossings(place: np.ndarray) -> int:
        total = 0
        for pairs in into:
            start, end = place[pairs.T]
            total += int((np.subtract.outer(start, start) * np.subtract.outer(end, end) < 0).sum())
        return total

    best, fewest = np.zeros(len(ranks)), np.inf
    for start in range(_STARTS):
        place = np.zeros(len(ranks))
        for column in members:
            place[column] = rng.permutation(len(column)) if start else np.arange(len(column))
        for sweep in range(_SWEEPS):
            order = range(1, len(members)) if sweep % 2 == 0 else range(len(members) - 2, -1, -1)
            for rank in order:
                column = members[rank]
                weights = (before if sweep % 2 == 0 else after)[rank]
                degree = weights.sum(1)
                mean = np.where(degree > 0, weights @ place / np.maximum(degree, 1), place[column])
                place[column[np.lexsort((place[column], mean))]] = np.arange(len(column))
            count = crossings(place)
            if count < fewest:
                best, fewest = place.copy(), count
    columns = [list(column[np.argsort(best[column])]) for column in members]
    if columns[0][0] > columns[0][-1]:
        # The mirror image is as good, and the inputs are read from top to bottom.
        columns = [column[::-1] for column in columns]
    return columns


def _ports(columns: list[list[int]], routes: list[list[int]]) -> np.ndarray:
    """The ends of arrows side by side, in the order of where they lead, so as not to cross."""
    place = {item: index for column in columns for index, item in enumerate(column)}
    ports = np.zeros((len(routes), 2))
    for end, neighbour in ((0, 1), (-1, -2)):
        for box in {route[end] for route in routes}:
            here = [i for i, route in enumerate(routes) if route[end] == box]
            here.sort(key=lambda i: place[routes[i][neighbour]])
            ports[here, end] = _PORT_GAP * (np.arange(len(here)) - (len(here) - 1) / 2)
    return ports


def _rows(
    columns: list[list[int]], routes: list[list[int]], ports: np.ndarray, height: np.ndarray
) -> np.ndarray:
    """Places `[items]` that keep the order and the gaps, with the arrows as level as possible.

    The sum of the arrows' absolute rises is least: a linear program, whose solutions have many
    arrows exactly level. A bend within a long arrow is worse than one at a box.
    """
    unit = np.eye(len(height))
    separations, gaps = [], []
    for column in columns:
        for upper, lower in pairwise(column):
            separations.append(unit[lower] - unit[upper])
            gaps.append((height[upper] + height[lower]) / 2 + _ROW_GAP)
    # The faint pull to 0 keeps together what no arrow holds.
    rises, offsets, weights = list(unit), [0.0] * len(unit), [0.01] * len(unit)
    for route, (start, end) in zip(routes, ports, strict=True):
        for step, (u, v) in enumerate(pairwise(route)):
            first, last = step == 0, step == len(route) - 2
            rises.append(unit[v] - unit[u])
            offsets.append(end * last - start * first)
            weights.append((8, 2, 1)[first + last])
    # The unknowns are the places, then a bound on the size of each rise.
    rise, bound = np.array(rises), np.eye(len(rises))
    separation = np.reshape(separations, (-1, len(unit)))
    solution = linprog(
        np.concatenate([np.zeros(len(unit)), weights]),
        A_ub=np.block(
            [
                [-separation, np.zeros((len(separation), len(bound)))],
                [rise, -bound],
                [-rise, -bound],
            ]
        ),
        b_ub=np.concatenate([np.negative(gaps), np.negative(offsets), offsets]),
        bounds=(None, None),
    )
    # Rounded, because the last bits of a solution may differ between machines.
    return np.round(solution.x[: len(unit)], 3)


def _figure(cells: list[_Cell], title: str | None, note: str | None) -> Figure:
    layouts = [_layout(cell) for cell in cells]
    inner = max(
        *(layout.right[-1] for layout in layouts),
        _text_width(title, _TITLE_SIZE) if title else 0,
        _text_width(note) + 0.5 if note else 0,
    )
    figure = Figure(facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    middle = _MARGIN + inner / 2
    bottom = _MARGIN
    if title:
        _write(axes, middle, bottom + 0.1, title, size=_TITLE_SIZE)
        bottom += 0.4
    for cell, layout in zip(cells, layouts, strict=True):
        if cell.title:
            _write(axes, _MARGIN, bottom + 0.1, cell.title, ha="left", weight="bold")
            bottom += 0.3
        _draw(axes, cell, layout, middle - layout.right[-1] / 2, bottom)
        bottom += (layout.y + layout.height / 2).max() + _MARGIN
    if note:
        start = middle - _text_width(note) / 2
        axes.plot([start - 0.25, start + 0.1], [bottom + 0.1] * 2, color=_DARK, lw=1.1, ls="--")
        _write(axes, middle + 0.25, bottom + 0.1, note)
        bottom += 0.2 + _MARGIN
    figure.set_size_inches(inner + 2 * _MARGIN, bottom)
    axes.set(xlim=(0, inner + 2 * _MARGIN), ylim=(bottom, 0))
    return figure


def _draw(axes: Axes, cell: _Cell, layout: _Layout, x: float, y: float) -> None:
    """Draws a cell whose upper left corner is at (x, y)."""
    rank_of = {item: rank for rank, column in enumerate(layout.columns) for item in column}
    left, right, rows = layout.left + x, layout.right + x, layout.y + y
    middle = (left + right) / 2
    for index, box in enumerate(cell.boxes):
        width, height = layout.width[index], layout.height[index]
        center = middle[rank_of[index]]
        axes.add_patch(
            FancyBboxPatch(
                (center - width / 2, rows[index] - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=box.color,
                edgecolor=box.border,
                linestyle="--" if box.dashed else "-",
                zorder=2,
            )
        )
        _write(axes, center, rows[index], box.text, color=box.border)
    for arrow, route, ports in zip(cell.arrows, layout.routes, layout.ports, strict=True):
        levels = rows[route]
        levels[[0, -1]] += ports
        ranks = [rank_of[item] for item in route]
        tail = middle[ranks[0]] + layout.width[arrow.source] / 2
        head = middle[ranks[-1]] - layout.width[arrow.target] / 2
        points, codes = [(tail, levels[0])], [Curve.MOVETO]
        for (r, level), (s, next_level) in pairwise(zip(ranks, levels, strict=True)):
            # The last bit is straight, for the arrowhead to be level.
            begin, stop = right[r], left[s] - (_HEAD if s == ranks[-1] else 0)
            bend = (begin + stop) / 2
            points += [(begin, level), (bend, level), (bend, next_level), (stop, next_level)]
            codes += [Curve.LINETO, *[Curve.CURVE4] * 3]
        axes.add_patch(
            FancyArrowPatch(
                path=Curve([*points, (head, levels[-1])], [*codes, Curve.LINETO]),
                arrowstyle="-|>",
                mutation_scale=9,
                color=arrow.color,
                linestyle="--" if arrow.dashed else "-",
                linewidth=1.1,
                zorder=1,
            )
        )
        if arrow.label:
            patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            _write(axes, middle[ranks[-2]], levels[-2], arrow.label, bbox=patch)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    look: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "color": _DARK,
        "size": _FONT_SIZE,
    } | style
    axes.text(x, y, text, family=[_FONT], parse_math=False, **look)
