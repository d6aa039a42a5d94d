"""Charts of a page, as specifications of Vega-Lite: plain dictionaries, in any page's colors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nasi_jax.report.cells import MIN_MARGIN

Spec = dict[str, Any]

_COLORS = ("#4a90d9", "#e08a3c", "#4caf7d", "#b57edc", "#d9606e", "#9a8f5a")
"""Of lines and points, all of which are seen on white and on black."""

_PADDING = {"left": 5, "top": 5, "bottom": 5, "right": 45}
"""Room for the last of the slanted names above a heat map."""

_CONFIG = {
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": "currentColor", "orient": "top", "title": None, "labelLimit": 0},
    "range": {"category": list(_COLORS)},
}

CELL = "cell"
"""The field of a row that has the index of its architecture among the drawings of a page."""


def lines(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    x: tuple[str, str],
    y_title: str,
    points: Sequence[str] = (),
) -> Spec:
    """Series over steps or epochs, the vertical axis logarithmic where all values are above 0.

    Args:
      rows: what each step has, by field; None where there is no value.
      names: the names of the series, by their fields.
      x: the field of the horizontal axis, of whole numbers, and its title.
      y_title: the title of the vertical axis.
      points: those of the series that are drawn as points.
    """
    field, title = x
    data = [
        {
            "x": row[field],
            "y": row[name],
            "series": label,
            "form": "point" if name in points else "line",
            **({CELL: row[CELL]} if row.get(CELL) is not None else {}),
        }
        for row in rows
        for name, label in names.items()
        if row.get(name) is not None
    ]
    encoding = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": title,
            **_whole(row["x"] for row in data),
        },
        "y": _axis("y", y_title, [row["y"] for row in data]),
        "color": {"field": "series", "type": "nominal", "sort": list(names.values())},
        "tooltip": [
            {"field": "x", "type": "quantitative", "title": title},
            {"field": "y", "type": "quantitative", "title": y_title, "format": ".5~g"},
            {"field": "series", "type": "nominal", "title": "series"},
        ],
    }
    layers = [
        {"mark": "line", "transform": [{"filter": "datum.form == 'line'"}]},
        {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.8}},
    ]
    return _spec(data, {"layer": layers, "encoding": encoding, "height": 220})


def scatter(rows: Sequence[Mapping[str, Any]], x_title: str, y_title: str) -> Spec:
    """A point for each architecture: `x`, `y`, and `CELL` for what is under the pointer."""
    data = [dict(row) for row in rows if row["x"] is not None and row["y"] is not None]
    titles = {"x": x_title, "y": y_title}
    axes = {
        field: _axis(field, title, [row[field] for row in data]) for field, title in titles.items()
    }
    tooltip = [
        {"field": field, "type": "quantitative", "title": title, "format": ".5~g"}
        for field, title in titles.items()
    ]
    mark = {"type": "circle", "size": 45, "opacity": 0.7, "color": _COLORS[0]}
    return _spec(data, {"mark": mark, "encoding": {**axes, "tooltip": tooltip}, "height": 240})


def heat_map(values: Mapping[str, Mapping[str, float]]) -> Spec:
    """Numbers by row and column, with a frame around the largest of each row."""
    data: list[dict[str, Any]] = [
        {"row": row, "column": column, "value": value, "largest": value == max(columns.values())}
        for row, columns in values.items()
        for column, value in columns.items()
    ]
    most = max(abs(row["value"]) for row in data)
    digits = ".2f" if most >= 0.1 else ".3f" if most >= 0.01 else ".0e"
    columns = list(dict.fromkeys(row["column"] for row in data))
    scale = {"domain": [-most, 0, most], "range": ["#6fa8dc", "#f2f2f2", "#eda35f"]}
    encoding = {
        "x": {
            "field": "column",
            "type": "nominal",
            "sort": columns,
            "title": None,
            "axis": {"orient": "top", "labelAngle": -35, "grid": False, "domain": False},
        },
        "y": {"field": "row", "type": "nominal", "sort": list(values), "title": None},
        "tooltip": [
            {"field": "row", "type": "nominal"},
            {"field": "column", "type": "nominal", "title": "option"},
            {"field": "value", "type": "quantitative", "title": "alpha", "format": ".5~g"},
        ],
    }
    layers = [
        {
            "mark": {"type": "rect", "strokeWidth": 2},
            "encoding": {
                "color": {"field": "value", "type": "quantitative", "scale": scale, "legend": None},
                "stroke": {
                    "condition": {"test": "datum.largest", "value": "#333333"},
                    "value": None,
                },
            },
        },
        {
            "mark": {"type": "text", "color": "#222222", "fontSize": 10},
            "encoding": {"text": {"field": "value", "type": "quantitative", "format": digits}},
        },
    ]
    return _spec(
        data,
        {"layer": layers, "encoding": encoding, "height": 26 * len(values), "padding": _PADDING},
    )


def margins(choices: Sequence[Mapping[str, Any]]) -> Spec:
    """The margin of each choice in standard errors, beside the line below which it is noise."""
    data = [
        {
            "choice": each["name"],
            "margin": each["margin_in_standard_errors"],
            "winner": each["winner"],
            "runner up": each["runner_up"],
        }
        for each in choices
        if each["margin_in_standard_errors"] is not None
    ]
    encoding = {
        "y": {"field": "choice", "type": "nominal", "sort": None, "title": None},
        "x": {
            "field": "margin",
            "type": "quantitative",
            "title": "margin in standard errors",
            "scale": {"domainMin": 0},
        },
        "tooltip": [
            {"field": "choice", "type": "nominal"},
            {"field": "winner", "type": "nominal"},
            {"field": "runner up", "type": "nominal"},
            {
                "field": "margin",
                "type": "quantitative",
                "title": "standard errors",
                "format": ".3~g",
            },
        ],
    }
    bar = {
        "mark": {"type": "bar", "height": 12},
        "encoding": {
            **encoding,
            "color": {
                "condition": {"test": f"datum.margin >= {MIN_MARGIN:g}", "value": _COLORS[0]},
                "value": "#9db8d1",
            },
        },
    }
    rule = {
        "mark": {"type": "rule", "strokeDash": [4, 3], "color": "currentColor"},
        "encoding": {"x": {"datum": MIN_MARGIN, "type": "quantitative"}},
    }
    return _spec(data, {"layer": [bar, rule], "height": 24 * len(data)})


def _spec(data: Sequence[Mapping[str, Any]], content: Spec) -> Spec:
    return {
        "data": {"values": list(data)},
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        **content,
    }


def _axis(field: str, title: str, values: Sequence[float]) -> Spec:
    """Of a quantity: logarithmic where all values are above 0 and span more than a factor of 20."""
    wide = bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    scale = {"type": "log"} if wide else {"zero": False}
    axis = {"labelOverlap": True, "format": ".3~g" if wide else ".4~g", "tickCount": 5}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _whole(values: Any) -> Spec:
    """The scale and the axis of whole numbers."""
    found = list(values)
    span = max(found, default=0) - min(found, default=0)
    axis = {"tickMinStep": 1, "format": "d", "tickCount": math.ceil(min(span, 8))}
    return {"scale": {"zero": False}, "axis": axis}
