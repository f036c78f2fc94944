"""What samples of exact problems cost each method, and how good they are, in a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from nablaflow.report.curves import LIGHT
from nablaflow.report.exact_look import INK, PAPER, TIMES, method_colours
from nablaflow.report.exact_table import Row, groups, over_floor, spread

TARGET = 3.0  # times the floor: what counts as having found the tilt
_MARKERS = "osD^vPX"
_DASHED = (0, (5, 3))


def pareto_figure(rows: Sequence[Row]) -> Figure:
    """Energy distance over the floor against passes of networks, a panel for each problem.

    A mark is the median over seeds, a bar their range. Where nothing was trained, or a figure is
    not finite, there is no mark.
    """
    problems, colours = groups(rows), method_colours(rows)
    columns = min(len(problems), 3)
    lines = math.ceil(len(problems) / columns)
    size = (max(6.4, 3.4 * columns + 0.4), 2.8 * lines + 1.1)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (name, methods) in zip(places, problems.items(), strict=False):
        _style(axes, name)
        for method, found in methods.items():
            _mark(axes, found, colours[method], _marker(method, colours))
    _fit(places[0], rows)
    for axes in places[len(problems) :]:
        axes.set_axis_off()
    figure.supxlabel("network passes of training", color=LIGHT.ink, fontsize=10)
    figure.supylabel(f"energy distance, {TIMES} floor", color=LIGHT.ink, fontsize=10)
    _legend(figure, colours)
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, color=INK, fontsize=10, fontweight="bold", loc="left")
    axes.axhline(TARGET, color=LIGHT.tilt, linestyle=_DASHED, linewidth=1.3)
    axes.tick_params(colors=LIGHT.ink, which="both", length=0, labelsize=9)
    axes.grid(color=LIGHT.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.line)
    for axis, steps in ((axes.xaxis, (1.0, 2.0, 5.0)), (axes.yaxis, (1.0, 3.0))):
        axis.set_major_locator(LogLocator(subs=steps, numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, place: _short(value)))
        axis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    """A tick of a log axis.

    >>> [_short(value) for value in (0.3, 30.0, 3e5, 1e7)]
    ['0.3', '30', '300k', '10M']
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _mark(axes: Axes, rows: Sequence[Row], colour: str, marker: str) -> None:
    passes = spread(row["network_evaluations"] for row in rows)
    times = spread(over_floor(row) for row in rows)
    if passes is None or times is None or passes.median <= 0:
        return
    bars = [[times.median - times.least], [times.most - times.median]] if len(rows) > 1 else None
    axes.errorbar(
        passes.median,
        times.median,
        bars,
        color=colour,
        marker=marker,
        markersize=9,
        markeredgecolor=PAPER,
        capsize=2.5,
        linestyle="",
    )


def _fit(axes: Axes, rows: Sequence[Row]) -> None:
    """Limits of all panels, with the floor itself in view."""
    times = [found for row in rows if (found := over_floor(row)) is not None and found > 0]
    passes = [row["network_evaluations"] for row in rows if row["network_evaluations"] > 0]
    axes.set_ylim(min(0.75, *times, 1.0) * 0.9, 1.6 * max(*times, TARGET, 1.0))
    if passes:
        axes.set_xlim(min(passes) / 1.6, 1.6 * max(passes))


def _marker(method: str, colours: Mapping[str, str]) -> str:
    return _MARKERS[list(colours).index(method) % len(_MARKERS)]


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    marks = [
        Line2D([], [], color=colour, marker=_marker(name, colours), linestyle="", label=name)
        for name, colour in colours.items()
    ]
    line = Line2D([], [], color=LIGHT.tilt, linestyle=_DASHED, label=f"{TARGET:g} {TIMES} floor")
    figure.legend(
        handles=[*marks, line],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        labelcolor=LIGHT.ink,
        fontsize=9,
    )
