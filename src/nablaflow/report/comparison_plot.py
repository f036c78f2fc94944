"""A comparison of methods in three pictures: reward against diversity, prior and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nablaflow.report.curves import LIGHT

CellFigures = Mapping[str, Any]

_COLOURS = (*LIGHT.series[:4], "#c23b72", "#2c8c99", "#9a7b1c", "#5b6b2f")
_STYLES = ("o", "s", "D", "^", "v", "P")
_INK = "#1c1f24"
_WINDOW = 4  # rollouts that a reward over time is averaged over, as in the table
_GRID = 60  # points of a curve over time
_BEYOND = 1.0  # how far a panel reaches past the known distributions, in their own span


@dataclass(frozen=True)
class MarkerStyle:
    """How a method is drawn, in every panel."""

    colour: str
    marker: str


def comparison_figure(data: Mapping[str, Any]) -> Figure:
    """Three panels.

    A line joins a method's measurements in the order of time, means over seeds, with bars of one
    standard error; the band over time is as wide. The exact tilt over beta is the dashed line: no
    method can be above it for long, and what ends far below has lost diversity or prior. What lies
    far out, a collapsed run, is an open mark at the panel's border, with its name.

    Args:
        data: of one reward, as in ``comparison.json``.
    """
    cells = _by_method(data["cells"])
    looks = _looks(list(cells))
    figure = Figure(figsize=(15.0, 5.9), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    middle.invert_yaxis()
    for axes, key, words in (
        (left, "diversity", "diversity within a prompt"),
        (middle, "distance_to_reference", "Fréchet distance to the reference"),
    ):
        _dress(axes, "reward", words)
        _draw_tilt(axes, data["tilt_curve"], key)
        _draw_ends(axes, data, key)
        inside = _window(data, key)
        for method, found in cells.items():
            _draw_points(axes, method, found, key, looks[method], inside)
    _dress(right, "seconds of training", "reward of the rollouts")
    _draw_levels(right, data)
    for method, found in cells.items():
        _draw_time(right, found, looks[method])
    _legend(figure, looks)
    return figure


def _by_method(cells: Sequence[CellFigures]) -> dict[str, list[CellFigures]]:
    found: dict[str, list[CellFigures]] = {}
    for cell in cells:
        if cell["points"]:
            found.setdefault(cell["method"], []).append(cell)
    return found


def _looks(methods: Sequence[str]) -> dict[str, MarkerStyle]:
    pairs = [MarkerStyle(colour, marker) for marker, colour in product(_STYLES, _COLOURS)]
    return {method: pairs[place % len(pairs)] for place, method in enumerate(methods)}


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=LIGHT.ink, fontsize=10)
    axes.set_title(y, color=_INK, fontsize=10, fontweight="bold", loc="left")
    axes.tick_params(colors=LIGHT.ink, length=0, labelsize=9)
    axes.grid(color=LIGHT.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.line)


def _draw_tilt(axes: Axes, curve: Sequence[Mapping[str, Any]], key: str) -> None:
    points = [(c["reward_mean"], c[key], c[f"{key}_se"]) for c in curve if c[key] is not None]
    if not points:
        return
    reward, value, error = np.asarray(points, dtype=float).T
    axes.fill_between(reward, value - error, value + error, color=LIGHT.tilt, alpha=0.2, lw=0)
    axes.plot(reward, value, color=LIGHT.tilt, linestyle=(0, (4, 2)), linewidth=1.6)


def _draw_ends(axes: Axes, data: Mapping[str, Any], key: str) -> None:
    for column, colour in ((data["reference"], LIGHT.reference), (data["tilt"], LIGHT.tilt)):
        if column is not None and column[key] is not None:
            place = (column["reward_mean"], column[key])
            axes.plot(*place, "*", color=colour, markersize=15, markeredgecolor="white", zorder=5)


def _window(data: Mapping[str, Any], key: str) -> np.ndarray | None:
    """Lowest and highest reward and figure that a panel shows; None without a known tilt."""
    known = [(c["reward_mean"], c[key]) for c in data["tilt_curve"] if c[key] is not None]
    if len(known) < 2:
        return None
    low, high = np.min(known, axis=0), np.max(known, axis=0)
    room = _BEYOND * (high - low)
    return np.stack([low - room, high + room])


def _draw_points(
    axes: Axes,
    method: str,
    cells: Sequence[CellFigures],
    key: str,
    look: MarkerStyle,
    inside: np.ndarray | None,
) -> None:
    stages = min(len(cell["points"]) for cell in cells)
    rows = []
    for stage in range(stages):
        points = [cell["points"][stage] for cell in cells]
        if all(point[key] is not None for point in points):
            rows.append((*_mean(points, "reward_mean"), *_mean(points, key)))
    if not rows:
        return
    x, dx, y, dy = np.asarray(rows).T
    at = np.stack([x, y], axis=1)
    shown = at if inside is None else np.clip(at, inside[0], inside[1])
    far = (shown != at).any(1)
    axes.plot(shown[:, 0], shown[:, 1], color=look.colour, linewidth=1.0, alpha=0.5)
    sizes = np.linspace(3.0, 7.5, len(x)) if len(x) > 1 else [7.5]
    for i in range(len(x)):
        bars = _bars(at[i], np.array([dx[i], dy[i]]), inside)
        axes.errorbar(
            shown[i, 0],
            shown[i, 1],
            None if far[i] else bars[:, 1:],
            None if far[i] else bars[:, :1],
            color=look.colour,
            marker=look.marker,
            markersize=sizes[i],
            markerfacecolor="white" if far[i] else look.colour,
            markeredgecolor=look.colour if far[i] else "white",
            elinewidth=0.8,
        )
    if inside is not None and far[-1]:
        _name(axes, f"{method}: {x[-1]:.2g}, {y[-1]:.2g}", shown[-1], look, inside)


def _name(axes: Axes, words: str, at: np.ndarray, look: MarkerStyle, inside: np.ndarray) -> None:
    """Beside a mark at the border, towards the panel's middle, each name in a row of its own."""
    right, upper = at > inside.mean(0)
    down = upper != axes.yaxis_inverted()
    away = 9.0 + 11.0 * len(axes.texts)
    axes.annotate(
        words,
        (float(at[0]), float(at[1])),
        xytext=(0.0, -away if down else away),
        textcoords="offset points",
        color=look.colour,
        fontsize=8,
        ha="right" if right else "left",
        va="top" if down else "bottom",
    )


def _bars(at: np.ndarray, error: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Lengths below and above, in rows, of the error bars in x and y; they end at the border."""
    bars = np.stack([error, error])
    return bars if inside is None else np.minimum(bars, np.stack([at - inside[0], inside[1] - at]))


def _mean(points: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """Over seeds, with the standard error of the mean; of one run that of its images."""
    values = np.asarray([point[key] for point in points], dtype=float)
    if len(values) == 1:
        return float(values[0]), float(points[0][f"{key}_se"] or 0.0)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _draw_levels(axes: Axes, data: Mapping[str, Any]) -> None:
    start, tilt = data["reference"]["reward_mean"], data["tilt"]
    axes.axhline(start, color=LIGHT.reference, linewidth=1.0)
    if tilt is None:
        return
    for share in (0.5, 0.8, 1.0):
        level = start + share * (tilt["reward_mean"] - start)
        axes.axhline(level, color=LIGHT.tilt, linestyle=(0, (4, 2)), linewidth=1.0)
        axes.annotate(
            f"{share:.0%} of the way",
            (0.0, level),
            xycoords=("axes fraction", "data"),
            color=LIGHT.ink,
            fontsize=8,
            va="bottom",
        )


def _draw_time(axes: Axes, cells: Sequence[CellFigures], look: MarkerStyle) -> None:
    curves = [cell["curve"] for cell in cells if (cell.get("curve") or {}).get("seconds")]
    if not curves:
        return
    end = min(curve["seconds"][-1] for curve in curves)
    time = np.linspace(0.0, end, _GRID)
    rewards = np.stack([np.interp(time, c["seconds"], _smooth(c["reward"])) for c in curves])
    mean = rewards.mean(0)
    axes.plot(time, mean, color=look.colour, linewidth=1.3)
    axes.plot(time[-1], mean[-1], look.marker, color=look.colour, markeredgecolor="white")
    if len(curves) > 1:
        error = rewards.std(0, ddof=1) / np.sqrt(len(curves))
        axes.fill_between(time, mean - error, mean + error, color=look.colour, alpha=0.15, lw=0)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and those before it."""
    total = np.cumsum([0.0, *values])
    index = np.arange(1, len(values) + 1)
    first = np.maximum(0, index - _WINDOW)
    return (total[index] - total[first]) / (index - first)


def _legend(figure: Figure, looks: Mapping[str, MarkerStyle]) -> None:
    marks = [
        Line2D([], [], color=look.colour, marker=look.marker, markeredgecolor="white", label=name)
        for name, look in looks.items()
    ]
    line = Line2D([], [], color=LIGHT.tilt, linestyle=(0, (4, 2)), label="exact tilt over beta")
    star = {"linestyle": "", "marker": "*", "markersize": 11}
    ends = [
        Line2D([], [], color=LIGHT.reference, label="reference", **star),
        Line2D([], [], color=LIGHT.tilt, label="exact tilt", **star),
    ]
    figure.legend(
        handles=[*ends, line, *marks],
        loc="outside lower center",
        ncols=7,
        frameon=False,
        labelcolor=LIGHT.ink,
        fontsize=9,
    )
