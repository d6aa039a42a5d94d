import os
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nasi_jax.cells.darts import DARTS_OPS, DartsGenotype
from nasi_jax.cells.nasbench101 import NASBENCH101_OPS, Nasbench101Genotype
from nasi_jax.cells.nasbench201 import NASBENCH201_OPS, Nasbench201Genotype
from nasi_jax.report.cells import draw_genotype
from nasi_jax.report.curves import draw_fitness, draw_history, draw_scatter
from nasi_jax.report.figures import save


def _darts(rng):
    def cell():
        return [
            (str(rng.choice(DARTS_OPS[1:])), int(source))
            for node in range(2, 6)
            for source in rng.choice(node, 2, replace=False)
        ]

    return DartsGenotype(cell(), cell())


def _nasbench201(rng):
    return Nasbench201Genotype([str(op) for op in rng.choice(NASBENCH201_OPS, 6)])


def _nasbench101(rng):
    size = int(rng.integers(2, 8))
    ops = [str(op) for op in rng.choice(NASBENCH101_OPS, size - 2)]
    matrix = np.triu(rng.integers(0, 2, (size, size)), 1).tolist()
    return Nasbench101Genotype(matrix, ["input", *ops, "output"])


FAMILIES = {"darts": _darts, "nasbench201": _nasbench201, "nasbench101": _nasbench101}
DARTS = DartsGenotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("skip_connect", 1),
        ("dil_conv_5x5", 0),
        ("max_pool_3x3", 2),
        ("sep_conv_5x5", 1),
        ("avg_pool_3x3", 3),
        ("dil_conv_3x3", 3),
        ("sep_conv_3x3", 4),
    ],
    reduce=[("max_pool_3x3", 0), ("skip_connect", 1)] * 4,
)
NASBENCH201 = Nasbench201Genotype(
    ("nor_conv_3x3", "none", "nor_conv_1x1", "skip_connect", "none", "avg_pool_3x3")
)
# Vertex 2 leads nowhere; 0 -> 1 -> 3 -> 4 and 0 -> 4 are used.
NASBENCH101 = Nasbench101Genotype(
    matrix=[
        [0, 1, 1, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ],
    ops=["input", "conv3x3-bn-relu", "maxpool3x3", "conv1x1-bn-relu", "output"],
)
HISTORY = {
    "x": np.array([4.0, 2.0, 6.0, 8.0]),
    "nu": np.array([1.0, 2.0, 3.0, 4.0]),
    "gradient_norm": np.array([1.0, 3.0, 2.0, 4.0]),
}


def _of_kind(figure, kind):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def _arrows(figure):
    return _of_kind(figure, FancyArrowPatch)


def _boxes(figure):
    return _of_kind(figure, FancyBboxPatch)


def _dashed(patches):
    return [index for index, patch in enumerate(patches) if patch.get_linestyle() == "--"]


def _svg_texts(figure, path):
    save(figure, path)
    return Counter(
        "".join(element.itertext()).strip()
        for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    )


def _lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def _enters(line, box):
    return ((line > box.min) & (line < box.max)).all(axis=1).any()


def test_darts_shows_every_op_node_and_arrow(tmp_path):
    figure = draw_genotype(DARTS, title="a $5 title")
    expected = Counter(op for op, _ in DARTS.normal + DARTS.reduce)
    for text in ("c_{k-2}", "c_{k-1}", "c_{k}", "0", "1", "2", "3"):
        expected[text] = 2
    expected.update(["normal cell", "reduction cell", "a $5 title"])
    assert _svg_texts(figure, tmp_path / "cell.svg") == expected
    assert len(_boxes(figure)) == 2 * 7
    assert len(_arrows(figure)) == 2 * (8 + 4)


def test_darts_arrows_lead_from_the_node_read_to_the_reader():
    figure = draw_genotype(DARTS)
    boxes, arrows = _boxes(figure)[:7], _arrows(figure)[:12]
    targets = [2, 2, 3, 3, 4, 4, 5, 5]
    expected = [(edge.node, target) for edge, target in zip(DARTS.normal, targets, strict=True)]
    expected += [(node, 6) for node in range(2, 6)]
    found = []
    for arrow in arrows:
        tail, head = arrow._path_original.vertices[[0, -1]]
        touching = [
            [
                index
                for index, box in enumerate(boxes)
                if abs(x - box.get_x() - side * box.get_width()) < 1e-6
                and box.get_y() < y < box.get_y() + box.get_height()
            ]
            for side, (x, y) in ((1, tail), (0, head))
        ]
        assert [len(indices) for indices in touching] == [1, 1]
        found.append((touching[0][0], touching[1][0]))
    assert found == expected


def test_nasbench201_leaves_none_without_a_label(tmp_path):
    figure = draw_genotype(NASBENCH201)
    texts = _svg_texts(figure, tmp_path / "cell.svg")
    labels = [op for op in NASBENCH201.ops if op != "none"]
    assert texts == Counter([*labels, "0", "1", "2", "3"])
    colors = [arrow.get_edgecolor() for arrow in _arrows(figure)]
    faint = [color != colors[0] for color in colors]
    assert faint == [op == "none" for op in NASBENCH201.ops]


def test_nasbench101_grays_what_pruning_drops(tmp_path):
    figure = draw_genotype(NASBENCH101)
    assert _svg_texts(figure, tmp_path / "cell.svg") == Counter(NASBENCH101.ops)
    colors = [box.get_facecolor() for box in _boxes(figure)]
    assert len(set(colors)) == 4
    assert colors[1] == colors[3] != colors[2]
    # In the order of the vertex read into: 0->1, 0->2, 1->3, 0->4, 3->4.
    colors = [arrow.get_edgecolor() for arrow in _arrows(figure)]
    assert [color != colors[0] for color in colors] == [False, True, False, False, False]


def test_nasbench101_without_a_path_is_drawn():
    genotype = Nasbench101Genotype(
        [[0, 1, 0], [0, 0, 0], [0, 0, 0]], ["input", "maxpool3x3", "output"]
    )
    boxes = _boxes(draw_genotype(genotype))
    assert len({box.get_facecolor() for box in boxes}) == 1


@pytest.mark.parametrize(
    ("genotype", "confidence", "arrows", "boxes"),
    [
        (DARTS, {"normal 0->2": 1.9, "normal 1->2": 2.0, "reduce 1->5": -1.0}, [0, 19], []),
        (DARTS, {"normal inputs of 2": 0.0, "reduce inputs of 5": 1.0}, [], [2, 12]),
        (DARTS, {"normal 0->2": float("nan"), "normal 1->2": float("inf")}, [0], []),
        (NASBENCH201, {"0->1": 0.5, "0->3": 7.0, "2->3": 1.0}, [0, 5], []),
        (NASBENCH101, {"op of 1": 1.0, "op of 3": 3.0}, [], [1]),
        (NASBENCH101, {"inputs of 3": 1.0, "inputs of output": 1.0}, [2, 3, 4], []),
        (NASBENCH101, {}, [], []),
    ],
)
def test_dashed_are_only_the_choices_of_low_confidence(genotype, confidence, arrows, boxes):
    figure = draw_genotype(genotype, confidence=confidence)
    assert _dashed(_arrows(figure)) == arrows
    assert _dashed(_boxes(figure)) == boxes
    notes = [text for text in figure.axes[0].texts if "below 2 standard errors" in text.get_text()]
    assert len(notes) == 1


@pytest.mark.parametrize("genotype", [DARTS, NASBENCH201, NASBENCH101])
def test_without_confidence_nothing_is_dashed(genotype, tmp_path):
    save(draw_genotype(genotype), tmp_path / "cell.svg")
    svg = (tmp_path / "cell.svg").read_text()
    assert "stroke-dasharray" not in svg
    assert "standard errors" not in svg


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_overlaps_and_all_is_inside(family):
    rng = np.random.default_rng(0)
    for _ in range(20):
        figure = draw_genotype(FAMILIES[family](rng), confidence={}, title="a long title " * 10)
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [box.get_window_extent(renderer) for box in _boxes(figure)]
        texts = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
        in_box = 0
        for index, text in enumerate(texts):
            assert figure.bbox.x0 <= text.x0 and text.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= text.y0 and text.y1 <= figure.bbox.y1
            assert not any(text.overlaps(other) for other in texts[:index])
            around = [box for box in boxes if box.overlaps(text)]
            if around:
                (box,) = around
                assert box.x0 < text.x0 and text.x1 < box.x1
                assert box.y0 < text.y0 and text.y1 < box.y1
                in_box += 1
        assert in_box == len(boxes)
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_arrow_runs_through_a_box_or_a_label_of_another(family):
    rng = np.random.default_rng(1)
    for _ in range(5):
        figure = draw_genotype(FAMILIES[family](rng))
        axes = figure.axes[0]
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [box.get_window_extent(renderer) for box in _boxes(figure)]
        labels = [
            extent
            for extent in (text.get_window_extent(renderer) for text in axes.texts)
            if not any(box.overlaps(extent) for box in boxes)
        ]
        num_labelled = 0
        for arrow in _arrows(figure):
            path = axes.transData.transform_path(arrow._path_original)
            points = path.to_polygons(closed_only=False)[0]
            steps = np.linspace(0, 1, 50)[:, None]
            line = np.concatenate([a + steps * (b - a) for a, b in pairwise(points)])
            # A pixel's hundredth inside, because arrows begin and end on a box's border.
            assert not any(_enters(line, box.padded(-0.01)) for box in boxes)
            num_labelled += sum(_enters(line, label) for label in labels)
        # A label lies on its own arrow and on no other; the headings lie on none.
        headings = sum("cell" in text.get_text() for text in axes.texts)
        assert num_labelled == len(labels) - headings


def test_darts_inputs_are_read_from_top_to_bottom():
    rng = np.random.default_rng(0)
    for _ in range(8):
        boxes = _boxes(draw_genotype(_darts(rng)))
        # y points down.
        assert boxes[0].get_y() < boxes[1].get_y() and boxes[7].get_y() < boxes[8].get_y()


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_bytes_are_reproducible(suffix, tmp_path):
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        save(draw_genotype(NASBENCH201, confidence={"0->1": 1.0}, title="t"), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    for path in paths:
        save(draw_history(HISTORY), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_png_has_its_signature_and_size(tmp_path):
    figure = draw_genotype(NASBENCH201)
    save(figure, tmp_path / "cell.PNG")
    data = (tmp_path / "cell.PNG").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(data[start : start + 4], "big") for start in (16, 20)]
    np.testing.assert_allclose(size, figure.get_size_inches() * 200, atol=1)


def test_save_replaces_a_file_and_changes_no_settings(tmp_path):
    settings = dict(matplotlib.rcParams)
    path = tmp_path / "cell.svg"
    path.write_text("old")
    save(draw_genotype(NASBENCH201), str(path))
    assert path.read_text().startswith("<?xml")
    assert os.listdir(tmp_path) == ["cell.svg"]
    assert dict(matplotlib.rcParams) == settings


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    figure = draw_genotype(NASBENCH201)
    path = tmp_path / "cell.svg"
    path.write_text("old")

    def fail(content, **_):
        content.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, path)
    assert os.listdir(tmp_path) == ["cell.svg"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("name", "kind"), [("cell.pdf", "pdf"), ("cell", ""), (".svg", "")])
def test_save_refuses_other_suffixes(name, kind, tmp_path):
    with pytest.raises(ValueError, match=rf"\.svg or \.png, not '{kind}'$"):
        save(draw_genotype(NASBENCH201), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_history_shows_running_mean_and_maximum():
    upper, lower = draw_history(HISTORY, title="run").axes
    shown = _lines(upper)
    np.testing.assert_array_equal(shown["trace estimate $x$"], HISTORY["x"])
    np.testing.assert_allclose(shown["running mean of $x$"], [4, 3, 4, 5])
    np.testing.assert_array_equal(shown[r"constraint $\nu$"], HISTORY["nu"])
    assert upper.get_yscale() == "log"
    shown = _lines(lower)
    np.testing.assert_array_equal(shown["gradient norm"], HISTORY["gradient_norm"])
    np.testing.assert_array_equal(shown["running maximum"], [1, 3, 3, 4])
    assert upper.get_shared_x_axes().joined(upper, lower)
    assert "squared gradient norm" in upper.get_ylabel() and "step" in lower.get_xlabel()


def test_history_leaves_out_what_is_not_finite(tmp_path):
    nan, inf = np.nan, np.inf
    history = {
        "x": np.array([nan, 2.0, inf, 4.0]),
        "nu": np.array([1.0, -1.0, nan, 1.0]),
        "gradient_norm": np.array([nan, 1.0, inf, 0.5]),
    }
    figure = draw_history(history)
    upper, lower = figure.axes
    shown = _lines(upper)
    assert "trace estimate $x$ (2 not finite)" in shown
    np.testing.assert_array_equal(_lines(lower)["running maximum (1 not finite)"], [nan, 1, 1, 1])
    np.testing.assert_array_equal(shown["running mean of $x$ (1 not finite)"], [nan, 2, 2, 3])
    assert upper.get_yscale() == "linear"
    save(figure, tmp_path / "history.png")


@pytest.mark.parametrize("values", [[1.0], [0.0], [np.nan], []])
def test_history_of_one_step_or_none(values, tmp_path):
    history = {name: np.array(values, np.float32) for name in HISTORY}
    for suffix in ("svg", "png"):
        save(draw_history(history), tmp_path / f"history.{suffix}")


def test_history_refuses_missing_and_unequal_arrays():
    with pytest.raises(ValueError, match="missing: nu, gradient_norm"):
        draw_history({"x": np.ones(2)})
    with pytest.raises(ValueError, match=r"one shape \[T\]"):
        draw_history(HISTORY | {"nu": np.ones(3)})
    with pytest.raises(ValueError, match=r"one shape \[T\]"):
        draw_history({name: np.ones((2, 2)) for name in HISTORY})


def test_fitness_shows_the_best_so_far():
    fitness = np.array([-3.0, -1.0, -2.0, -0.5, -4.0])
    figure = draw_fitness(fitness, title="a $5 title")
    (axes,) = figure.axes
    shown = _lines(axes)
    np.testing.assert_array_equal(shown["network"], fitness)
    np.testing.assert_array_equal(shown["best so far"], [-3, -1, -1, -0.5, -0.5])
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
    assert axes.get_xlabel() == "networks scored" and "log ranks" in axes.get_ylabel()
    assert figure.get_suptitle() == "a $5 title"


def test_fitness_of_one_network(tmp_path):
    save(draw_fitness(np.zeros(1)), tmp_path / "history.png")


def test_scatter_has_a_panel_a_score():
    truth, rising = np.array([1.0, 10.0, 100.0]), np.array([2.0, 3.0, 5.0])
    scores = {name: rising for name in "abcde"} | {"e": -rising}
    titles = {name: f"title of {name}" for name in scores}
    panels = draw_scatter(("trace", truth), scores, titles).axes
    assert [panel.get_title() for panel in panels] == list(titles.values())
    assert [panel.get_ylabel() for panel in panels] == list(scores)
    assert {panel.get_xlabel() for panel in panels} == {"trace"}
    assert [panel.get_yscale() for panel in panels] == ["log"] * 4 + ["linear"]
    for panel, values in zip(panels, scores.values(), strict=True):
        (line,) = panel.lines
        np.testing.assert_array_equal(line.get_xydata(), np.stack([truth, values], axis=1))
