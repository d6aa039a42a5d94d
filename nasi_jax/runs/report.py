"""`nasi report`: one HTML page of runs of any command, read from what they left."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from nasi_jax.cells import genotype_from_dict, parse_genotype
from nasi_jax.report import charts
from nasi_jax.report import page as pages
from nasi_jax.report.cells import NOTE, unsure_of
from nasi_jax.report.page import Cells, Chart, Run, Table
from nasi_jax.report.svg import svg_of
from nasi_jax.runs import resume
from nasi_jax.search.history import fitness_of
from nasi_jax.storage import files

Row = dict[str, Any]


def report(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> None:
    """Writes a page of runs side by side: cells, charts, configurations, versions, costs.

    Args:
      paths: the directories of searches, selections, rankings, comparisons and trainings.
      out: the HTML file.
      overwrite: whether to replace it.

    Raises:
      ValueError: if there is no path, one holds no such run or none that is finished, what a run
        left cannot be read, the file is there or cannot be written, or the charts' package is not
        installed.
    """
    if not paths:
        raise ValueError("name at least one directory of a run to report")
    files.check_absent(out, overwrite=overwrite)
    cells = Cells()
    names = [path.resolve().name for path in paths]
    unique = len(set(names)) == len(names)
    runs = [
        _run(path, name if unique else str(path), cells)
        for path, name in zip(paths, names, strict=True)
    ]
    files.write(out, pages.page(runs, cells).encode(), overwrite=overwrite)


def _run(path: Path, name: str, cells: Cells) -> Run:
    verb = resume.verb_of(path)
    if verb not in _READERS:
        raise ValueError(f"{path} holds scores alone: nasi report takes {', '.join(_READERS)}")
    record, read = _READERS[verb]
    file = path / record
    result = _json(file) if file.exists() else {}
    # A comparison has its record from the start, and its result there in the end.
    if not result or (verb == "compare" and "correlations" not in result):
        raise ValueError(f"{path} holds no finished run: nasi resume {path} goes on with it")
    with files.at(path):
        return read(name, path, result, cells)


def _search(name: str, path: Path, result: Row, cells: Cells) -> Run:
    history = _csv(path / "history.csv")
    for row in history:
        row[charts.CELL] = _cell(row["selected"], result["config"]["space"], cells)
    steps = [*_numbered(history, "step", "x", "nu", "gradient_norm")]
    own = result.get("place", 1) == 1  # else the limits made other choices
    margins = {
        each["name"]: ratio
        for each in result["choices"]
        if (ratio := each["margin_in_standard_errors"]) is not None
    }
    drawn, tables = _of_alpha(result)
    drawn += [
        Chart(
            "x and nu",
            "The trace estimate of each step and the constraint on it; a point has the cell that "
            "would be selected then.",
            charts.lines(
                steps,
                {"x": "trace estimate x", "nu": "constraint nu"},
                x=("step", "search step"),
                y_title="x",
                points=("x",),
            ),
        ),
        Chart(
            "Gradient norm",
            "The norm of the gradient in alpha at each step.",
            charts.lines(
                steps,
                {"gradient_norm": "gradient norm"},
                x=("step", "search step"),
                y_title="gradient norm",
            ),
        ),
    ]
    outcome = {
        "steps": str(result["steps"]),
        "place among the most probable": _text(result.get("place", 1)),
    }
    unsure = unsure_of(margins) if own else set[str]()
    return _of_cell(name, "search", result, drawn, tables, outcome, unsure, NOTE if own else "")


def _of_alpha(result: Row) -> tuple[list[Chart], list[Table]]:
    """alpha as heat maps, and how sure the choices that it makes are."""
    drawn, tables, choices = list[Chart](), list[Table](), result["choices"]
    for entry, values in result["alpha"].items():
        description = "alpha by choice and option; the largest of each row has a frame."
        drawn.append(Chart(f"alpha: {entry}", description, charts.heat_map(values)))
    if choices:
        drawn.append(
            Chart(
                "Margins",
                "How far the last option that won lies before the first that lost. Left of the "
                "dashed line the choice is noise.",
                charts.margins(choices),
            )
        )
        rows = [
            [
                each["name"],
                each["winner"],
                each["runner_up"],
                f"{_number(each['margin'])} ± {_number(each['standard_error'])}",
                _number(each["margin_in_standard_errors"]),
                "yes" if each["sure"] else "no",
                "never" if each["steps_to_sure"] is None else f"{each['steps_to_sure']:,}",
            ]
            for each in choices
        ]
        header = ["choice", "won", "lost", "margin", "in standard errors", "sure", "steps to sure"]
        tables.append(Table(f"Choices, of {result.get('sure_of', 'this theta_0')}", header, rows))
    return drawn, tables


def _select(name: str, path: Path, result: Row, cells: Cells) -> Run:
    config = result["config"]
    texts, values = _means(_csv(path / "scores.csv"))
    places = [_cell(text, config["space"], cells) for text in texts]
    # What prune and perturb score besides architectures are supernets.
    kept = [index for index, place in enumerate(places) if place is not None]
    proxies = [proxy for proxy in dict.fromkeys(config["proxies"]) if proxy in values]
    of_kept = {proxy: values[proxy][:, kept] for proxy in values}
    drawn = []
    if len(kept) > 1:
        scores = np.stack([of_kept[proxy] for proxy in proxies], axis=1)
        fitness = fitness_of(scores)
        best = np.maximum.accumulate(fitness)
        rows = [
            {
                "number": kept[index] + 1,
                "fitness": files.finite(fitness[index]),
                "best": files.finite(best[index]),
                charts.CELL: places[kept[index]],
            }
            for index in range(len(kept))
        ]
        drawn.append(
            Chart(
                "Fitness",
                "The sum of the logarithms of ranks of each architecture among all, in the order "
                "in which they were looked at.",
                charts.lines(
                    rows,
                    {"fitness": "architecture", "best": "best so far"},
                    x=("number", "architectures looked at"),
                    y_title="sum of log ranks",
                    points=("fitness",),
                ),
            )
        )
        params = of_kept["num_params"].mean(axis=0)
        drawn += _scatters(
            "parameters of the scored network",
            params,
            {proxy: of_kept[proxy] for proxy in proxies},
            [places[index] for index in kept],
        )
    found = [
        [proxy, *(_number(scores.get(proxy)) for scores in result["scores"].values())]
        for proxy in proxies
    ]
    header = ["proxy", *(f"seed {seed}" for seed in result["scores"])]
    outcome = {
        "networks scored": str(result["num_scored"]),
        "number of the selected one": str(result["number"]),
        "fitness": _number(result["fitness"]),
    }
    tables = [Table("Scores of the selected architecture", header, found)]
    return _of_cell(name, "selection", result, drawn, tables, outcome)


def _rank(name: str, path: Path, result: Row, cells: Cells) -> Run:
    reference = f"table_{result['reference']}"
    return _ranking(name, "ranking", path / "scores.csv", reference, result, cells)


def _compare(name: str, path: Path, result: Row, cells: Cells) -> Run:
    return _ranking(name, "comparison", path / "compare.csv", result["reference"], result, cells)


def _ranking(name: str, kind: str, table: Path, reference: str, result: Row, cells: Cells) -> Run:
    """A ranking or a comparison: scores of architectures beside a column of reference."""
    texts, values = _means(_csv(table))
    truth = values[reference].mean(axis=0)
    order = np.argsort(-truth, kind="stable")  # so that the best ones are drawn
    space = result["config"]["space"]
    places = {int(index): _cell(texts[index], space, cells) for index in order}
    correlations = result["correlations"]
    drawn = _scatters(
        result["reference"],
        truth,
        {proxy: values[proxy] for proxy in correlations if proxy in values},
        [places[index] for index in range(len(texts))],
    )
    coefficients = list(next(iter(correlations.values()), {}))
    rows = [[proxy, *map(_interval, found.values())] for proxy, found in correlations.items()]
    best = [[texts[index], _number(float(truth[index]))] for index in order[:10]]
    tables = [
        Table(
            f"Correlations with {result['reference']}, 95% intervals",
            ["proxy", *coefficients],
            rows,
        ),
        Table(f"First ten by {result['reference']}", ["architecture", result["reference"]], best),
    ]
    outcome = {
        "architectures": str(result["num_archs"]),
        "networks scored": _text(result.get("num_scored")),
        "reference": result["reference"],
    }
    facts = _facts(kind, result, outcome)
    return Run(name, kind, None, "", "", drawn, tables, facts)


def _train(name: str, path: Path, result: Row, cells: Cells) -> Run:
    trainings = result.get("trainings", [result])
    several = "trainings" in result
    rows = []
    for each in trainings:
        folder = path / f"seed-{each['seed']}" if several else path
        label = f", seed {each['seed']}" if several else ""
        metrics = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "learning_rate")
        for row in _numbered(_csv(folder / "metrics.csv"), "epoch", *metrics):
            rows.append({f"{key}{label}" if key in metrics else key: x for key, x in row.items()})
    labels = [f", seed {each['seed']}" if several else "" for each in trainings]
    drawn = [
        Chart(
            title,
            description,
            charts.lines(
                rows,
                {
                    f"{key}{label}": f"{text}{label}"
                    for label in labels
                    for key, text in keys.items()
                },
                x=("epoch", "epoch"),
                y_title=unit,
                points=[
                    f"{key}{label}" for label in labels for key in keys if key.startswith("te")
                ],
            ),
        )
        for title, description, keys, unit in (
            (
                "Loss",
                "Mean loss of each epoch.",
                {"train_loss": "train", "test_loss": "test"},
                "loss",
            ),
            (
                "Accuracy",
                "The share of images that are classified correctly.",
                {"train_accuracy": "train", "test_accuracy": "test"},
                "accuracy in %",
            ),
            (
                "Learning rate",
                "That of the last step of each epoch.",
                {"learning_rate": "learning rate"},
                "learning rate",
            ),
        )
    ]
    first = trainings[0]
    header = ["seed", "test accuracy in %", "best", "after epoch", "test loss", "images per second"]
    table = Table(
        "Trainings",
        header,
        [
            [
                str(each["seed"]),
                f"{each['last_accuracy']:.2f}",
                f"{each['best_accuracy']:.2f}",
                str(each["best_epoch"]),
                _number(each["last_test_loss"]),
                _number(each["images_per_second"]),
            ]
            for each in trainings
        ],
    )
    found = result["last_accuracy"]
    outcome = {
        "test accuracy": f"{found['mean']:.2f} ± {found['standard_deviation']:.2f} %"
        if several
        else f"{found:.2f} %",
        "parameters": f"{first['parameters']:,}",
        "multiply-adds": f"{first['multiply_adds']:,}",
    }
    shown = {
        **first,
        "seed": ", ".join(str(each["seed"]) for each in trainings),
        "seconds": {"train": sum(each["seconds"] for each in trainings)},
    }
    return _of_cell(name, "training", shown, drawn, [table], outcome)


_READERS: dict[str, tuple[str, Callable[[str, Path, Row, Cells], Run]]] = {
    "search": ("result.json", _search),
    "select": ("result.json", _select),
    "rank": ("rank.json", _rank),
    "compare": ("compare.json", _compare),
    "train": ("summary.json", _train),
}
"""For each command the file that stands when all is done, and what reads a run of it."""


def _of_cell(
    name: str,
    kind: str,
    result: Row,
    drawn: Sequence[Chart],
    tables: Sequence[Table],
    outcome: Mapping[str, str],
    unsure: Set[str] = frozenset(),
    note: str = "",
) -> Run:
    """A run that ends with one architecture."""
    genotype = genotype_from_dict(result["genotype"], result["config"].get("space"))
    drawing = svg_of(genotype, unsure)
    size = {}
    if network := result.get("network"):  # which limits are of
        size = {
            f"{what} for {network['for']}, millions": f"{network[key] / 1e6:.2f}"
            for key, what in (("params", "parameters"), ("multiply_adds", "multiply-adds"))
        }
    facts = _facts(kind, result, {**outcome, **size})
    return Run(name, kind, genotype.to_text(), drawing, note, drawn, tables, facts)


def _facts(kind: str, result: Row, outcome: Mapping[str, str]) -> dict[str, dict[str, str]]:
    config = result["config"]
    seconds = {f"seconds to {name}": f"{x:.1f}" for name, x in result["seconds"].items()}
    peak = result["peak_memory_megabytes"]
    return {
        "Runs": {
            "kind": kind,
            "space": _text(config.get("space")),
            **outcome,
            "seed": _text(result.get("seed", config["seed"])),
            **seconds,
            "device": result["device"],
            "peak memory": "not reported" if peak is None else f"{peak:.0f} MB",
        },
        "Configuration": {key: _text(value) for key, value in config.items()},
        "Versions": {key: _text(value) for key, value in result["versions"].items()},
    }


def _scatters(
    title: str,
    truth: np.ndarray,
    scores: Mapping[str, np.ndarray],
    places: Sequence[int | None],
) -> list[Chart]:
    """A scatter plot for each proxy, of means over seeds."""
    found = []
    for proxy, values in scores.items():
        pairs = zip(truth, values.mean(axis=0), places, strict=True)
        rows = [
            {"x": files.finite(float(x)), "y": files.finite(float(y)), charts.CELL: place}
            for x, y, place in pairs
        ]
        missing = sum(row["x"] is None or row["y"] is None for row in rows)
        said = f"{len(rows) - missing} architectures"
        left_out = f"; {missing} have no finite number" if missing else ""
        found.append(Chart(proxy, f"{said}{left_out}.", charts.scatter(rows, title, proxy)))
    return found


def _cell(text: str, space: str, cells: Cells) -> int | None:
    """The place of an architecture among the drawings; None of a text that is none."""
    try:
        genotype = parse_genotype(text, space)
    except ValueError:
        return None
    return cells.index(text, genotype)


def _means(rows: Sequence[Row]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The texts of the `N` networks of a table of scores, and its columns, `[K, N]` each."""
    texts = list(dict.fromkeys(row["genotype"] for row in rows))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of_network = {(row["seed"], row["genotype"]): row for row in rows}
    columns = [name for name in rows[0] if name not in ("seed", "genotype", "seconds")]
    return texts, {
        name: np.array([[float(of_network[seed, text][name]) for text in texts] for seed in seeds])
        for name in columns
    }


def _numbered(rows: Iterable[Row], count: str, *names: str) -> Iterable[Row]:
    """Rows with numbers for JSON in place of text: `count` whole, of `names` what is finite."""
    for row in rows:
        numbers = {name: files.finite(float(row[name])) for name in names}
        yield {**row, count: int(row[count]), **numbers}


def _json(path: Path) -> Row:
    with files.at(path):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a result is an object, got {type(content).__name__}")
    return content


def _csv(path: Path) -> list[Row]:
    with files.at(path), path.open(newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
        if not rows:
            raise ValueError("there is no row in it")
    return rows


def _number(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _interval(found: Mapping[str, float | None]) -> str:
    low, high = found["low"], found["high"]
    interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return f"{_number(found['value'])}{interval}"


def _text(value: Any) -> str:
    """A setting as a reader writes it."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "—" if value is None else str(value)
