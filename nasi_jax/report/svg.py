"""Drawings of genotypes as SVG text within a page, in the colors of the page."""

from __future__ import annotations

from collections.abc import Set
from html import escape

from nasi_jax.report.cells import graph_of
from nasi_jax.report.graph_layout import FONT_SIZE, Arrow, layout_of
from nasi_jax.types import CellGraph, Genotype

_POINTS = 72
"""Points per inch: lengths of a layout are inches, those of the drawing points."""

_MARGIN = 4.0
_FAINT = {"op": 1.0, "output": 0.55, "unused": 0.25}
"""How opaque arrows are, by their role."""


def svg_of(genotype: Genotype, unsure: Set[str] = frozenset()) -> str:
    """Draws the cells of a genotype as SVG elements, one below the other.

    Arrows and labels have the color of the text around them, and labels stand on `--ground`, a
    property that the page defines, so that a drawing is legible in a light and in a dark page.

    Args:
      genotype: of any family; see `nasi_jax.report.cells.draw_genotype`.
      unsure: the names of the choices that are drawn dashed.
    """
    return "".join(_cell(cell, unsure) for cell in genotype.graphs())


def _cell(cell: CellGraph, unsure: Set[str]) -> str:
    graph = graph_of(cell, unsure)
    layout = layout_of(graph)
    x, y, width, height = (
        _POINTS * values for values in (layout.x, layout.y, layout.width, layout.height)
    )
    parts = []
    for index, box in enumerate(graph.boxes):
        color = f'fill="{box.border}"'
        parts.append(
            f'<rect x="{x[index] - width[index] / 2:.1f}" y="{y[index] - height[index] / 2:.1f}" '
            f'width="{width[index]:.1f}" height="{height[index]:.1f}" rx="6" fill="{box.color}" '
            f'stroke="{box.border}"{_dashes(box.dashed)}/>'
            + _text(x[index], y[index], box.text, color)
        )
    edges = zip(cell.edges, graph.arrows, layout.routes, layout.curves, strict=True)
    for edge, arrow, route, points in edges:
        parts.append(f'<g opacity="{_FAINT[edge.role]:g}">{_line(arrow, points)}</g>')
        if arrow.label:
            opacity = f'class="op" opacity="{max(_FAINT[edge.role], 0.6):g}"'
            parts.append(_text(x[route[-2]], y[route[-2]], arrow.label, opacity))
    right, bottom = _POINTS * layout.right[-1], (y + height / 2).max()
    view = (-_MARGIN, -_MARGIN, right + 2 * _MARGIN, bottom + 2 * _MARGIN)
    name = escape(cell.title or "cell")
    heading = f"<p>{name}</p>" if cell.title else ""
    return (
        f'{heading}<svg role="img" aria-label="{name}" width="{view[2]:.0f}pt" '
        f'viewBox="{" ".join(f"{each:.0f}" for each in view)}" font-size="{FONT_SIZE:g}" '
        f'text-anchor="middle" fill="none">{"".join(parts)}</svg>'
    )


def _line(arrow: Arrow, points: list[tuple[float, float]]) -> str:
    scaled = [f"{_POINTS * x:.1f},{_POINTS * y:.1f}" for x, y in points]
    commands = "L", "C", "", ""
    path = "".join(
        f"{commands[index % 4]}{' ' if index % 4 > 1 else ''}{point}"
        for index, point in enumerate(scaled[1:])
    )
    tip = scaled[-1]
    return (
        f'<path d="M{scaled[0]}{path}" stroke="currentColor"{_dashes(arrow.dashed)}/>'
        f'<path d="M{tip}l-7,-3v6z" fill="currentColor"/>'
    )


def _dashes(dashed: bool) -> str:
    return ' stroke-dasharray="4 2.5"' if dashed else ""


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y + FONT_SIZE / 3:.1f}" {attributes}>{escape(text)}</text>'
