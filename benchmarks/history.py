"""What the benchmarks remember, over commits: a table, a picture, and what has become worse.

Command:   python benchmarks/history.py
Time:      seconds
Expected:  no line that says `worse`; with `--check` exit status 1 if there is one

Reads `benchmarks/records.jsonl`, to which `search_step.py`, `proxy_costs.py`, `estimators.py` and
`plan.py` append their figures with `--record`. Compared is what has the same script, arguments,
metric, machine and card. A figure is worse if it is the latest of at least `--least` and more than
`--percent` above the median of those before it. Draws a panel for each script, arguments and
metric, with a line for each machine and card.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from measuring import RECORDS

from nasi_jax.report.figures import save


@dataclass(frozen=True)
class Config:
    """Settings of the history."""

    records: Path = RECORDS
    """The file of records."""
    percent: float = 30.0
    """How far above the median of the earlier ones a figure may be."""
    least: int = 4
    """How many records there must be, from 2, to say that one is worse."""
    check: bool = False
    """Exit status 1 if a figure is worse."""
    out: Path = Path("runs/history/history.png")
    """Where the picture goes."""


class Panel(NamedTuple):
    """What is measured."""

    script: str
    arguments: str
    metric: str
    unit: str


Records = dict[Panel, dict[tuple[str, str], list[dict[str, Any]]]]
"""By what is measured, and on which machine and card, in the order in which they were made."""


def read(path: Path) -> Records:
    """Reads the records."""
    found: Records = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        panel = Panel(*(record[name] for name in Panel._fields))
        where = (record["machine"], record["card"] or "no card")
        found.setdefault(panel, {}).setdefault(where, []).append(record)
    return found


def change(records: list[dict[str, Any]]) -> float:
    """Percent that the latest is above the median of the earlier ones; NaN if there are none."""
    *earlier, latest = [record["value"] for record in records]
    return 100 * (latest / float(np.median(earlier)) - 1) if earlier else math.nan


def draw(found: Records) -> Figure:
    """A panel for each figure, over the commits."""
    figure = Figure(figsize=(6, 2.2 * len(found)), layout="constrained")
    for axes, (panel, lines) in zip(
        figure.subplots(len(found), squeeze=False)[:, 0], found.items(), strict=True
    ):
        places: dict[str, int] = {}
        for where, records in lines.items():
            at = [places.setdefault(record["commit"], len(places)) for record in records]
            values = [record["value"] for record in records]
            axes.plot(at, values, "o-", markersize=3, label=", ".join(where))
        axes.set_title(" ".join((panel.script, panel.arguments)) + f": {panel.metric}", fontsize=6)
        axes.set_xticks(range(len(places)), list(places), fontsize=5, rotation=20)
        axes.tick_params(axis="y", labelsize=6)
        axes.set_ylabel(panel.unit, fontsize=6)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=5)
    return figure


def main() -> None:
    """Prints the table, and draws."""
    config = tyro.cli(Config, description=__doc__)
    if not config.records.exists():
        sys.exit(f"there are no records in {config.records}: run a benchmark with --record")
    found, are_worse = read(config.records), False
    print("| figure | machine | records | latest | against the median of the earlier ones | |")
    print("| --- | --- | --: | --: | --: | --- |")
    for panel, lines in found.items():
        for where, records in lines.items():
            percent = change(records)
            worse = len(records) >= config.least and percent > config.percent
            are_worse |= worse
            print(
                f"| {' '.join((panel.script, panel.arguments)).strip()}: {panel.metric} "
                f"| {', '.join(where)} | {len(records)} "
                f"| {records[-1]['value']:.4g} {panel.unit}, {records[-1]['commit']} "
                f"| {'' if math.isnan(percent) else f'{percent:+.0f} %'} "
                f"| {'worse' if worse else ''} |"
            )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save(draw(found), config.out)
    if config.check and are_worse:
        sys.exit(1)


if __name__ == "__main__":
    main()
