"""Places of the boxes, labels and arrows of a small graph, from left to right.

A layered graph (Gansner et al., 1993, "A technique for drawing directed graphs", the method of
graphviz's dot, which DARTS draws with): an arrow's label takes a place in a column of its own, and
every arrow bends between the columns only, so that no arrow or label can run into a box or another
label. By hand, as graphviz is a program to install beside Python.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy.optimize import linprog

DARK = "#333333"
"""Color of text, borders and arrows."""

# Lengths are inches, font sizes points.
FONT = "sans-serif"
FONT_SIZE = 9.0
_BOX_HEIGHT = 0.36
_LABEL_HEIGHT = 0.2
_PORT_GAP = 0.11
_ROW_GAP = 0.12
_COLUMN_GAP = 0.35
_HEAD = 0.1

_STARTS = 20
_SWEEPS = 8


class Box(NamedTuple):
    """A node of the graph: its text, and how it is drawn."""

    text: str
    color: str
    border: str = DARK
    dashed: bool = False


class Arrow(NamedTuple):
    """An edge of the graph, from box to box by index, and how it is drawn."""

    source: int
    target: int
    label: str = ""
    color: str = DARK
    dashed: bool = False


class Graph(NamedTuple):
    """A graph whose arrows lead from a lower to a higher box; the last box is the output."""

    title: str
    boxes: list[Box]
    arrows: list[Arrow]


class Layout(NamedTuple):
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

    @property
    def x(self) -> np.ndarray:
        """The middle of each item, `[items]`."""
        middle = np.zeros(len(self.y))
        for rank, column in enumerate(self.columns):
            middle[column] = (self.left[rank] + self.right[rank]) / 2
        return middle

    @property
    def curves(self) -> list[list[tuple[float, float]]]:
        """The points of each arrow: its start, of each bend a line and a cubic curve, its end."""
        rank_of = {item: rank for rank, column in enumerate(self.columns) for item in column}
        middles, found = self.x, []
        for route, ports in zip(self.routes, self.ports, strict=True):
            levels = self.y[route]
            levels[[0, -1]] += ports
            ranks = [rank_of[item] for item in route]
            tail, head = middles[[route[0], route[-1]]]
            points = [(tail + self.width[route[0]] / 2, levels[0])]
            for (r, level), (s, next_level) in pairwise(zip(ranks, levels, strict=True)):
                # The last bit is straight, for the arrowhead to be level.
                begin = self.right[r]
                stop = self.left[s] - (_HEAD if s == ranks[-1] else 0)
                bend = (begin + stop) / 2
                points += [(begin, level), (bend, level), (bend, next_level), (stop, next_level)]
            found.append([*points, (head - self.width[route[-1]] / 2, levels[-1])])
        return found


@functools.cache
def text_width(text: str, size: float = FONT_SIZE) -> float:
    """The width of a line of text, in inches."""
    font = FontProperties(family=[FONT])
    # The control points span no less than the outlines, at a tenth of the time.
    return float(np.ptp(TextPath((0, 0), text, size=size, prop=font).vertices[:, 0])) / 72


def _layers(graph: Graph) -> list[int]:
    """Each box's column: one after the last that it reads; the output comes after all."""
    layers = [0] * len(graph.boxes)
    for arrow in sorted(graph.arrows, key=lambda arrow: arrow.target):
        layers[arrow.target] = max(layers[arrow.target], layers[arrow.source] + 1)
    layers[-1] = max(layers[:-1]) + 1
    return layers


def layout_of(graph: Graph) -> Layout:
    """The places of a graph's boxes, labels and arrows."""
    num_boxes = len(graph.boxes)
    layers = _layers(graph)
    # Boxes have the even places, the labels of the arrows into them the odd ones before.
    labelled = {2 * layers[arrow.target] - 1 for arrow in graph.arrows if arrow.label}
    rank_of = {place: r for r, place in enumerate(sorted({2 * x for x in layers} | labelled))}
    ranks = [rank_of[2 * layer] for layer in layers]
    degree = np.zeros((num_boxes, 2), int)
    for arrow in graph.arrows:
        degree[arrow.source, 0] += 1
        degree[arrow.target, 1] += 1
    widths = [max(0.4, text_width(box.text) + 0.2) for box in graph.boxes]
    heights = [max(_BOX_HEIGHT, _PORT_GAP * (most - 1) + 0.2) for most in degree.max(1)]
    routes = []
    for arrow in graph.arrows:
        between = range(ranks[arrow.source] + 1, ranks[arrow.target])
        passed = list(range(len(ranks), len(ranks) + len(between)))
        routes.append([arrow.source, *passed, arrow.target])
        ranks += between
        widths += [0.0] * len(between)
        heights += [0.0] * len(between)
        if arrow.label:
            widths[-1], heights[-1] = text_width(arrow.label) + 0.1, _LABEL_HEIGHT

    width, height = np.array(widths), np.array(heights)
    columns, ports, y = _places(tuple(ranks), tuple(map(tuple, routes)), tuple(heights))
    column_width = np.array([width[column].max() for column in columns])
    left = np.zeros(len(columns))
    for rank in range(1, len(columns)):
        # Room in proportion to the rise keeps the bends gentle.
        rises = [
            abs(y[u] - y[v]) for route in routes for u, v in pairwise(route) if ranks[v] == rank
        ]
        gap = _COLUMN_GAP + 0.15 * max(rises, default=0.0)
        left[rank] = left[rank - 1] + column_width[rank - 1] + gap
    return Layout(routes, columns, ports, width, height, y, left, left + column_width)


@functools.lru_cache(maxsize=1000)  # what differs by labels alone, as cells of NAS-Bench-201
def _places(
    ranks: tuple[int, ...], routes: tuple[tuple[int, ...], ...], heights: tuple[float, ...]
) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Columns, ports and the middles of all items; see `Layout`."""
    passed, height = [list(route) for route in routes], np.array(heights)
    columns = _order(np.array(ranks), passed)
    ports = _ports(columns, passed)
    y = _rows(columns, passed, ports, height)
    return columns, ports, y - (y - height / 2).min()


def _order(ranks: np.ndarray, routes: list[list[int]]) -> list[list[int]]:
    """The items of each rank, ordered so that few arrows cross.

    Items move to the mean place of their neighbors in the column before, then in the one
    after, to and fro (Sugiyama et al., 1981), from several starts; the best order wins.
    """
    links = np.array([pair for route in routes for pair in pairwise(route)], int).reshape(-1, 2)
    neighbors = np.zeros((len(ranks), len(ranks)))
    neighbors[links[:, 0], links[:, 1]] = 1
    into = [links[ranks[links[:, 1]] == rank] for rank in range(ranks.max() + 1)]
    members = [np.flatnonzero(ranks == rank) for rank in range(ranks.max() + 1)]
    before = [neighbors[:, column].T for column in members]
    after = [neighbors[column] for column in members]
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
    for end, neighbor in ((0, 1), (-1, -2)):
        for box in {route[end] for route in routes}:
            here = [i for i, route in enumerate(routes) if route[end] == box]
            here.sort(key=lambda i: place[routes[i][neighbor]])
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
