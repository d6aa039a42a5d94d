"""The page of a report: what stands in it, and what a browser makes of it."""

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from nasi_jax.cells.nasbench201 import Nasbench201Genotype
from nasi_jax.report import charts
from nasi_jax.report import page as pages
from nasi_jax.report.page import Cells, Chart, Run, Table, page
from nasi_jax.report.svg import svg_of

GENOTYPE = Nasbench201Genotype(
    ("nor_conv_3x3", "none", "nor_conv_1x1", "skip_connect", "none", "avg_pool_3x3")
)
EVIL = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
)


def example(cells):
    """A run with a chart of each kind, and with text from files that would like to be code."""
    places = [cells.index(EVIL, GENOTYPE), cells.index("other", None)]
    rows = [{"x": 2.0, "y": 1.0, "cell": places[0]}, {"x": 4.0, "y": 1e3, "cell": places[1]}]
    steps = [{"step": t, "loss": 1.0 / t, "best": 2.0} for t in (1, 2, 3)]
    choices = [
        {"name": EVIL, "winner": "a", "runner_up": "b", "margin_in_standard_errors": ratio}
        for ratio in (1.0, 3.0, None)
    ]
    names = {"loss": "loss", "best": "best"}
    drawn = (
        ("scatter", charts.scatter(rows, EVIL, "score")),
        ("lines", charts.lines(steps, names, x=("step", "step"), y_title="y", points=["loss"])),
        ("heat", charts.heat_map({"0->1": {"a": 0.5, EVIL: -0.25}})),
        ("margins", charts.margins(choices)),
    )
    shown = [Chart(name, EVIL, spec) for name, spec in drawn]
    table = Table(EVIL, ["name", "value"], [[EVIL, EVIL], ["long", "x" * 300]])
    facts = {"Runs": {"seed": "0"}, "Configuration": {EVIL: EVIL}}
    return Run(EVIL, "search", EVIL, svg_of(GENOTYPE, {"0->1"}), EVIL, shown, [table], facts)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def named(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(pages, "_library", lambda: "")


@pytest.mark.usefixtures("without_library")
def test_nothing_from_files_is_code():
    cells = Cells()
    elements = Elements(page([example(cells)], cells))
    assert len(elements.named("script")) == 3 and not elements.named("img")
    assert not [attributes for _, attributes in elements.found if "onerror" in attributes]


@pytest.mark.usefixtures("without_library")
def test_the_data_of_a_page_are_those_of_its_charts():
    cells = Cells()
    run = example(cells)
    text = page([run], cells)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(data) == {
        "charts": [chart.spec for chart in run.charts],
        "cells": [{"text": EVIL, "svg": svg_of(GENOTYPE)}, {"text": "other", "svg": ""}],
    }
    assert "Of 2 architectures 1 are drawn under the pointer." in text
    ids = [each["id"] for each in Elements(text).named("div") if each.get("class") == "chart"]
    assert ids == ["chart-0", "chart-1", "chart-2", "chart-3"]


@pytest.mark.usefixtures("without_library")
def test_a_page_may_load_nothing():
    cells = Cells()
    text = page([example(cells)], cells)
    elements = Elements(text)
    policy = [each["content"] for each in elements.named("meta") if "http-equiv" in each]
    assert policy[0].startswith("default-src 'none'") and "http" not in policy[0]
    assert not [each for _, each in elements.found if "href" in each or "src" in each]
    assert "{" in text and "url(" not in text and "@import" not in text


@pytest.mark.usefixtures("without_library")
def test_runs_stand_side_by_side_and_differences_are_marked():
    facts = [
        {"Runs": {"seed": seed, "space": "darts", **more}}
        for seed, more in (("0", {}), ("1", {"steps": "3"}))
    ]
    runs = [
        Run(name, "search", None, "", "", [], [], each)
        for name, each in zip("ab", facts, strict=True)
    ]
    text = page(runs, Cells())
    rows = re.findall(r"<tr( class=\"differs\")?><th scope=\"row\">(\w+)</th>(.*?)</tr>", text)
    assert [
        (name, bool(mark), re.findall("<td>(.*?)</td>", values)) for mark, name, values in rows
    ] == [
        ("seed", True, ["0", "1"]),
        ("space", False, ["darts", "darts"]),
        ("steps", False, ["", "3"]),
    ]
    assert text.count("<article>") == 2


def test_architectures_are_drawn_once_and_not_without_end(monkeypatch):
    monkeypatch.setattr(pages, "MOST_DRAWN", 1)
    cells = Cells()
    assert [cells.index(text, GENOTYPE) for text in ("a", "b", "a")] == [0, 1, 0]
    assert [bool(entry["svg"]) for entry in cells.entries] == [True, False]
    assert cells.note == "Of 2 architectures 1 are drawn under the pointer."


def test_drawings_are_those_of_the_cell():
    root = ET.fromstring(svg_of(GENOTYPE, {"0->1"}))
    texts = [each.text for each in root.iter("text")]
    assert texts[:4] == ["0", "1", "2", "3"]
    assert sorted(texts[4:]) == sorted(op for op in GENOTYPE.ops if op != "none")
    dashed = [each for each in root.iter() if each.get("stroke-dasharray")]
    assert len(dashed) == 1
    heads = [each for each in root.iter("path") if each.get("fill") == "currentColor"]
    assert len(heads) == 6
    left, top, width, height = map(float, root.get("viewBox").split())
    for box in root.iter("rect"):
        assert (
            left < float(box.get("x")) < left + width and top < float(box.get("y")) < top + height
        )


def test_axes_are_logarithmic_where_values_are_wide():
    def axis(*values):
        rows = [{"x": 1.0, "y": value} for value in values]
        return charts.scatter(rows, "x", "y")["encoding"]["y"]["scale"].get("type", "linear")

    assert axis(1.0, 100.0) == "log"
    assert axis(1.0, 2.0) == axis(-1.0, 100.0) == axis(0.0, 100.0) == axis(None) == "linear"


def test_what_has_no_value_is_left_out():
    rows = [{"x": None, "y": 1.0}, {"x": 1.0, "y": None}, {"x": 1.0, "y": 2.0}]
    assert charts.scatter(rows, "x", "y")["data"]["values"] == [{"x": 1.0, "y": 2.0}]
    spec = charts.lines(
        [{"t": 1, "a": None}, {"t": 2, "a": 3.0}], {"a": "A"}, x=("t", "t"), y_title="a"
    )
    assert spec["data"]["values"] == [{"x": 2, "y": 3.0, "series": "A", "form": "line"}]


def test_the_largest_of_each_row_has_a_frame():
    rows = charts.heat_map({"r": {"a": 1.0, "b": 2.0}, "s": {"a": 0.0, "b": -1.0}})["data"][
        "values"
    ]
    assert [(row["row"], row["column"]) for row in rows if row["largest"]] == [
        ("r", "b"),
        ("s", "a"),
    ]


def test_without_the_package_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ValueError, match=r"pip install 'nasi-jax\[report\]'"):
        page([Run("a", "search", None, "", "", [], [], {"Runs": {}})], Cells())


@pytest.fixture(scope="module")
def browser():
    """Chromium, with what it says on its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Opens the example at a width and in a color scheme, and waits for its charts."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    cells = Cells()
    path.write_text(page([example(cells), example(cells)], cells))

    def opened(width, scheme):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(path.as_uri())
        browser.set_script_timeout(60)
        browser.execute_async_script(
            """const done = arguments[0];
            const wait = () => document.querySelectorAll(".chart svg").length == 8
                ? requestAnimationFrame(done) : setTimeout(wait, 20);
            wait();"""
        )
        return browser

    return opened


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_in_both_schemes(opened, width, scheme):
    browser = opened(width, scheme)
    found = browser.execute_script(
        """const [axis] = document.querySelectorAll(".chart svg .role-axis-label text");
        const style = (element, name) => getComputedStyle(element)[name];
        return [document.documentElement.scrollWidth, style(document.body, "backgroundColor"),
                style(document.body, "color"), style(axis, "fill"), document.title];"""
    )
    wide, ground, ink, labels, title = found
    assert wide <= width
    dark = sum(map(int, re.findall(r"\d+", ground)[:3])) < 200
    assert dark == (scheme == "dark")
    assert labels == ink != ground
    assert title.startswith("nasi report: </script>")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_point_shows_its_cell_and_its_genotype(opened):
    browser = opened(375, "light")
    shown = browser.execute_script(
        """const found = [];
        const card = document.getElementById("pointer");
        for (const point of document.querySelectorAll("#chart-0 .mark-symbol path")) {
          const {x, y, width, height} = point.getBoundingClientRect();
          const at = {bubbles: true, clientX: x + width / 2, clientY: y + height / 2};
          for (const kind of ["pointerover", "pointermove", "mousemove"])
            point.dispatchEvent(new PointerEvent(kind, at));
          const edges = card.getBoundingClientRect();
          found.push({hidden: card.hidden, text: card.querySelector("code").textContent,
            drawings: card.querySelectorAll("svg").length, names: [...card.querySelectorAll("dt")]
            .map(e => e.textContent), fits: edges.left >= 0 && edges.right <= innerWidth});
        }
        return found;"""
    )
    assert [each["text"] for each in shown] == [EVIL, "other"]
    assert [each["drawings"] for each in shown] == [1, 0]
    assert all(each["fits"] and not each["hidden"] for each in shown)
    assert shown[0]["names"] == [EVIL, "score"]
