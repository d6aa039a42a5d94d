"""Drawings of genotypes as graphs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from nasi_jax.report.graph_layout import (
    DARK,
    FONT,
    FONT_SIZE,
    Arrow,
    Box,
    Graph,
    Layout,
    layout_of,
    text_width,
)
from nasi_jax.types import CellGraph, Genotype

MIN_MARGIN = 2.0
"""Standard errors below which a choice is drawn as not yet settled."""

NOTE = f"dashed: decided by a margin below {MIN_MARGIN:g} standard errors"
"""What stands below such a drawing."""

_DROPPED = "#ececec"
_MID = "#8c8c8c"
_BOXES = {"input": "#b9dfb5", "node": "#bcdcf0", "output": "#f8e496"}
_ARROWS = {"op": DARK, "output": _MID, "unused": "#cfcfcf"}

# Lengths are inches, font sizes points.
_TITLE_SIZE = 12.0
_MARGIN = 0.2


def draw_genotype(
    genotype: Genotype,
    *,
    confidence: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draws the cells of a genotype from left to right, as the DARTS paper does.

    Args:
      genotype: of any family: of DARTS (the normal cell above the reduction cell; the boxes 0 to 3
        are the nodes 2 to 5), NAS-Bench-201 (edges with `none` are faint), NAS-Bench-101 and
        NAS-Bench-1Shot1 (ops in the boxes; what pruning drops is gray), or another.
      confidence: for names of choices, such as `normal 0->2`, `normal inputs of 2`, `0->1`,
        `op of 2` or `inputs of output`, the margin by which the choice is decided, in standard
        errors. What is below 2 (or not a number) is drawn dashed, what is missing is certain.
      title: a heading, on one line.

    Returns:
      A figure as large as the drawing.
    """
    unsure = unsure_of(confidence or {})
    cells = [graph_of(cell, unsure) for cell in genotype.graphs()]
    return _figure(cells, title, None if confidence is None else NOTE)


def unsure_of(confidence: Mapping[str, float]) -> set[str]:
    """The choices that are drawn dashed, of margins in standard errors; see `draw_genotype`."""
    return {name for name, margin in confidence.items() if not margin >= MIN_MARGIN}


def graph_of(cell: CellGraph, unsure: Set[str]) -> Graph:
    """The boxes and arrows of a cell, dashed where a choice is one of `unsure`."""
    boxes = [
        Box(node.text, _BOXES[node.role], dashed=node.choice in unsure)
        if node.used
        else Box(node.text, _DROPPED, _MID, node.choice in unsure)
        for node in cell.nodes
    ]
    arrows = [
        Arrow(edge.source, edge.target, edge.op, _ARROWS[edge.role], edge.choice in unsure)
        for edge in cell.edges
    ]
    return Graph(cell.title, boxes, arrows)


def _figure(cells: list[Graph], title: str | None, note: str | None) -> Figure:
    layouts = [layout_of(cell) for cell in cells]
    inner = max(
        *(layout.right[-1] for layout in layouts),
        text_width(title, _TITLE_SIZE) if title else 0,
        text_width(note) + 0.5 if note else 0,
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
        start = middle - text_width(note) / 2
        axes.plot([start - 0.25, start + 0.1], [bottom + 0.1] * 2, color=DARK, lw=1.1, ls="--")
        _write(axes, middle + 0.25, bottom + 0.1, note)
        bottom += 0.2 + _MARGIN
    figure.set_size_inches(inner + 2 * _MARGIN, bottom)
    axes.set(xlim=(0, inner + 2 * _MARGIN), ylim=(bottom, 0))
    return figure


def _draw(axes: Axes, cell: Graph, layout: Layout, x: float, y: float) -> None:
    """Draws a cell whose upper left corner is at (x, y)."""
    for index, box in enumerate(cell.boxes):
        width, height = layout.width[index], layout.height[index]
        center, middle = layout.x[index] + x, layout.y[index] + y
        axes.add_patch(
            FancyBboxPatch(
                (center - width / 2, middle - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=box.color,
                edgecolor=box.border,
                linestyle="--" if box.dashed else "-",
                zorder=2,
            )
        )
        _write(axes, center, middle, box.text, color=box.border)
    for arrow, route, points in zip(cell.arrows, layout.routes, layout.curves, strict=True):
        bends = [Curve.LINETO, *[Curve.CURVE4] * 3] * (len(route) - 1)
        axes.add_patch(
            FancyArrowPatch(
                path=Curve(np.add(points, (x, y)), [Curve.MOVETO, *bends, Curve.LINETO]),
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
            place = layout.x[route[-2]] + x, layout.y[route[-2]] + y
            _write(axes, *place, arrow.label, bbox=patch)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    look: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "color": DARK,
        "size": FONT_SIZE,
    } | style
    axes.text(x, y, text, family=[FONT], parse_math=False, **look)
