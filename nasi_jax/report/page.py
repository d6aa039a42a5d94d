"""A report as one HTML page that needs no network: text, tables, drawn cells and charts."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from nasi_jax.report.svg import svg_of
from nasi_jax.types import Genotype

MOST_DRAWN = 500
"""How many architectures a page draws under the pointer; of the others it has the text form."""


class Cells:
    """The architectures of a page, each of them drawn once."""

    def __init__(self) -> None:
        """Begins with none."""
        self.entries: list[dict[str, str]] = []
        self._index: dict[str, int] = {}
        self._drawn = 0

    def index(self, text: str, genotype: Genotype | None) -> int:
        """The place of an architecture, which is drawn if there is a genotype to its text."""
        if text not in self._index:
            drawn = genotype is not None and self._drawn < MOST_DRAWN
            self._drawn += drawn
            self._index[text] = len(self.entries)
            svg = svg_of(genotype) if drawn and genotype is not None else ""
            self.entries.append({"text": text, "svg": svg})
        return self._index[text]

    @property
    def note(self) -> str:
        """What the page says of those that are not drawn; empty where all are."""
        rest = sum(not entry["svg"] for entry in self.entries)
        if not rest:
            return ""
        return f"Of {len(self.entries)} architectures {self._drawn} are drawn under the pointer."


class Chart(NamedTuple):
    """A chart: its heading, what it shows in a sentence, and its specification of Vega-Lite."""

    title: str
    description: str
    spec: Mapping[str, Any]


class Table(NamedTuple):
    """A table: its heading, the names of its columns, and its rows, whose first entry is a name."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Run(NamedTuple):
    """What a page has of a run.

    Attributes:
      name: what tells it from the others, such as its directory.
      kind: which command it is of.
      text: the text form of its architecture, if it has one.
      drawing: its cells as SVG.
      note: what has to be known of the drawing.
      charts: its charts.
      tables: its tables.
      facts: what is set side by side, by group and name; the first group is shown at the top, and
        the others are folded away.
    """

    name: str
    kind: str
    text: str | None
    drawing: str
    note: str
    charts: Sequence[Chart]
    tables: Sequence[Table]
    facts: Mapping[str, Mapping[str, str]]


def page(runs: Sequence[Run], cells: Cells) -> str:
    """The HTML text of a page: all runs side by side, each with its charts.

    It is whole: styles, data and the script of Vega-Lite are in it, and its policy forbids the
    browser to load anything. Whatever came from files is escaped.

    Args:
      runs: the runs, at least one.
      cells: the architectures that the rows of charts refer to.

    Raises:
      ValueError: if the package that has the script is not installed.
    """
    groups = list(dict.fromkeys(group for run in runs for group in run.facts))
    first, *others = (_facts(group, runs) for group in groups)
    charts = [chart for run in runs for chart in run.charts]
    articles, number = [], 0
    for run in runs:
        articles.append(_article(run, number))
        number += len(run.charts)
    title = escape(f"nasi report: {', '.join(run.name for run in runs)}")
    data = _json({"charts": [chart.spec for chart in charts], "cells": cells.entries})
    note = f'<p class="note">{cells.note}</p>' if cells.note else ""
    folded = "".join(
        f"<details><summary>{escape(group)}</summary>{table}</details>"
        for group, table in zip(groups[1:], others, strict=True)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{_file("page.css")}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<section aria-label="{escape(groups[0])}">{first}</section>
<div class="runs">{"".join(articles)}</div>
{note}{folded}
</main>
<div id="pointer" role="status" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>{_library()}</script>
<script>{_file("page.js")}</script>
</body>
</html>
"""


def _article(run: Run, number: int) -> str:
    """A run; its charts are numbered from `number`."""
    parts = [f"<h2>{escape(run.name)} <small>({escape(run.kind)})</small></h2>"]
    if run.text is not None:
        parts.append(f"<code>{escape(run.text)}</code>")
        parts.append(
            f'<figure class="cells"><div class="scroll">{run.drawing}</div>'
            f"<figcaption>{escape(run.note)}</figcaption></figure>"
        )
    parts.append('<div class="charts">')
    for index, chart in enumerate(run.charts, number):
        parts.append(
            f'<section><h3>{escape(chart.title)}</h3><figure><div id="chart-{index}" class="chart" '
            f'role="img" aria-label="{escape(chart.title)}"></div>'
            f"<figcaption>{escape(chart.description)}</figcaption></figure></section>"
        )
    parts.append("</div>")
    parts += [f"<h3>{escape(table.title)}</h3>{_table(table)}" for table in run.tables]
    return f"<article>{''.join(parts)}</article>"


def _facts(group: str, runs: Sequence[Run]) -> str:
    """A column for each run; rows in which they differ are marked."""
    found = [run.facts.get(group, {}) for run in runs]
    names = dict.fromkeys(name for facts in found for name in facts)
    rows = [[name, *(facts.get(name, "") for facts in found)] for name in names]
    table = Table(group, ["", *(run.name for run in runs)], rows)
    return f'<div class="facts">{_table(table, mark=True)}</div>'


def _table(table: Table, *, mark: bool = False) -> str:
    """A table that scrolls by itself, with rows marked that have different values, if asked for."""
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = []
    for name, *values in table.rows:
        differs = ' class="differs"' if mark and len({*values} - {""}) > 1 else ""
        entries = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr{differs}><th scope="row">{escape(name)}</th>{entries}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _json(content: Any) -> str:
    """JSON within a script element, which no text in it can end."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (importlib.resources.files("nasi_jax.report") / name).read_text()


def _library() -> str:
    """The script of Vega-Lite, Vega and Vega-Embed."""
    try:
        import vl_convert
    except ImportError as error:
        raise ValueError(
            "a report takes the script of Vega-Lite: pip install 'nasi-jax[report]'"
        ) from error
    return str(vl_convert.javascript_bundle())
