"""Pictures of a study of exact problems: where the samples lie, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

from nablaflow.exact.catalog import named_problem
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.problem import Problem
from nablaflow.exact.study import LabCell
from nablaflow.report.curves import LIGHT
from nablaflow.report.exact_table import Row, groups, over_floor, significant, spread
from nablaflow.report.figures import save_figure

POINTS = 2000  # shown of each distribution
TARGET = 3.0  # times the floor: what counts as having found the tilt
_COLUMNS = 4  # panels in a row
_PAPER = "#ffffff"
_FURTHER = ("#c2417c", "#5c7a12", "#14808f")  # for more methods than a report's curves have
_COLOURS = (*LIGHT.series[:4], *_FURTHER)
_TIMES = "\N{MULTIPLICATION SIGN}"
_MARKERS = "osD^vPX"
_DASHED = (0, (5, 3))
_ENCLOSED = (0.95, 0.5)  # shares of the exact tilt's mass, by a line of equal density each
_DRAWN = 8000  # points of the exact tilt that place those lines
_PIXELS = 160  # a side, of the density that they are traced on
_PANEL = 2.75  # inches
_INK = "#1c1f24"
_WASHES = ("#fbf4e6", "#f4e4c4")  # of what those lines enclose

SamplesOf = Callable[[LabCell], Tensor]


@dataclass(frozen=True)
class Panel:
    """One distribution of a problem.

    Attributes:
        points: (n, 2).
        note: what stands small below the title.
    """

    title: str
    note: str
    points: np.ndarray
    colour: str


@dataclass(frozen=True)
class Frame:
    """Limits of both axes: the lower left corner and the upper right one, (2,) each."""

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Where a problem is looked at: itself in two dimensions, else the tilt's principal axes.

    Attributes:
        axes: (dim, 2), orthonormal.
        caption: what the plane is, where it has to be said.
    """

    axes: Float[Tensor, "dim 2"]
    caption: str

    def project(self, x: Float[Tensor, "n dim"]) -> np.ndarray:
        return (x.double() @ self.axes).numpy()

    def project_mixture(self, mixture: GaussianMixture) -> GaussianMixture:
        covariances = self.axes.T @ mixture.covariances @ self.axes
        return GaussianMixture(mixture.means @ self.axes, covariances, mixture.weights)


def write_plots(out: Path, rows: Sequence[Row], samples: SamplesOf) -> list[Path]:
    """``<problem>.png`` of each problem, and ``pareto.png``.

    Args:
        out: folder; it exists.
        samples: of a row's policy, (n, dim).

    Returns:
        Their paths.
    """
    colours = method_colours(rows)
    figures = {
        f"{name}.png": samples_figure(named_problem(name), methods, samples, colours)
        for name, methods in groups(rows).items()
    }
    figures["pareto.png"] = pareto_figure(rows)
    for name, figure in figures.items():
        save_figure(figure, out / name, facecolor=_PAPER, metadata={"Software": None})
    return [out / name for name in figures]


def method_colours(rows: Sequence[Row]) -> dict[str, str]:
    """The same for a method in every picture of a study."""
    names = dict.fromkeys(row["method"] for row in rows)
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}


# --- where the samples lie ------------------------------------------------------------------------


def samples_figure(
    problem: Problem,
    methods: Mapping[str, Sequence[Row]],
    samples: SamplesOf,
    colours: Mapping[str, str],
) -> Figure:
    """Prior, exact tilt, and each method's samples, in one frame for all.

    Of several seeds the one of median energy distance is shown, the better one of two.
    """
    plane = viewing_plane(problem)
    panels = _exact_panels(problem, plane)
    frame = _frame([panel.points for panel in panels])
    for method, rows in methods.items():
        row = _typical(rows)
        points = plane.project(samples(LabCell(problem.name, method, row["seed"]))[:POINTS])
        panels.append(Panel(method, _told(row, len(rows) > 1), points, colours[method]))
    outline = _outline(problem, plane, frame)
    told = f"Shaded: where 95 % and 50 % of the exact tilt lie. {plane.caption}".strip()
    figure, places = _sheet(len(panels), problem.name, told)
    for axes, panel in zip(places, panels, strict=True):
        outline(axes)
        _draw_points(axes, panel, frame)
    return figure


def viewing_plane(problem: Problem) -> Plane:
    """The plane itself, or that of the exact tilt's first two principal axes."""
    dim, target = problem.prior.dim, problem.target
    if dim == 2:
        return Plane(torch.eye(2, dtype=torch.float64), "")
    if isinstance(target, GaussianMixture):
        covariance = target.covariance
    else:
        covariance = target.sample(_DRAWN, torch.Generator().manual_seed(0)).T.cov()
    vectors = torch.linalg.eigh(covariance)[1]  # eigenvalues rise
    caption = f"Of {dim} dimensions, the first two principal axes of the exact tilt are shown."
    return Plane(vectors[:, [-1, -2]], caption)


def _exact_panels(problem: Problem, plane: Plane) -> list[Panel]:
    generator = torch.Generator().manual_seed(1)
    return [
        Panel(title, note, plane.project(source.sample(POINTS, generator)), colour)
        for title, note, source, colour in (
            ("prior", "where it starts", problem.prior, LIGHT.reference),
            ("exact tilt", "where it should end", problem.target, LIGHT.tilt),
        )
    ]


def _typical(rows: Sequence[Row]) -> Row:
    def distance(row: Row) -> float:
        return math.inf if row["energy_distance"] is None else row["energy_distance"]

    return sorted(rows, key=distance)[(len(rows) - 1) // 2]


def _told(row: Row, several: bool) -> str:
    times = over_floor(row)
    told = "not finite" if times is None else f"{significant(times)} {_TIMES} floor"
    return f"{told}, seed {row['seed']}" if several else told


def _frame(clouds: Sequence[np.ndarray]) -> Frame:
    """A square that holds nearly all of the points."""
    points = np.concatenate(clouds)
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    half = 0.55 * (high - low).max()
    centre = (low + high) / 2
    return Frame(centre - half, centre + half)


def _outline(problem: Problem, plane: Plane, frame: Frame) -> Callable[[Axes], None]:
    """What draws lines of equal density of the exact tilt, where the plane's is known."""
    target = problem.target
    if problem.prior.dim != 2:
        if not isinstance(target, GaussianMixture):
            return lambda axes: None
        target = plane.project_mixture(target)
    x, y = np.linspace(frame.low, frame.high, _PIXELS).T
    at = torch.as_tensor(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
    density = target.log_prob(at).reshape(_PIXELS, _PIXELS).numpy()
    drawn = target.log_prob(target.sample(_DRAWN, torch.Generator().manual_seed(2)))
    levels = [drawn.quantile(1.0 - share).item() for share in _ENCLOSED]

    line: dict[str, Any] = {"colors": LIGHT.tilt, "linewidths": 0.6, "alpha": 0.6}

    def draw(axes: Axes) -> None:
        axes.contourf(x, y, density, [*levels, math.inf], colors=_WASHES)
        axes.contour(x, y, density, levels, linestyles="solid", **line)

    return draw


def _sheet(panels: int, title: str, caption: str) -> tuple[Figure, list[Axes]]:
    """Square panels in lines of up to `_COLUMNS`, with room for two lines of text above each."""
    columns = min(panels, _COLUMNS)
    lines = math.ceil(panels / columns)
    size = (_PANEL * columns + 0.2, (_PANEL + 0.5) * lines + 0.75)
    figure = Figure(figsize=size, dpi=160)
    figure.subplots_adjust(
        left=0.1 / size[0],
        right=1.0 - 0.1 / size[0],
        bottom=0.45 / size[1],
        top=1.0 - 0.8 / size[1],
        wspace=0.06,
        hspace=0.55 / _PANEL,
    )
    left = 0.16 / size[0]
    figure.text(
        left, 1.0 - 0.3 / size[1], title, color=_INK, fontsize=13, fontweight="bold", va="center"
    )
    figure.text(left, 0.2 / size[1], caption, color=LIGHT.ink, fontsize=9, va="center")
    places = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axes in places[panels:]:
        axes.set_axis_off()
    return figure, places[:panels]


def _draw_points(axes: Axes, panel: Panel, frame: Frame) -> None:
    low, high = frame.low, frame.high
    axes.set_title(panel.title, color=panel.colour, fontsize=10, fontweight="bold", pad=18)
    axes.plot(
        *panel.points.T, ".", color=panel.colour, markersize=3.0, alpha=0.45, markeredgewidth=0
    )
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_color(LIGHT.line)
    _say(axes, panel.note, (0.5, 1.025), "center")
    outside = 1.0 - ((panel.points >= low) & (panel.points <= high)).all(1).mean()
    if outside > 0.005:
        _say(axes, f"{outside:.1%} outside", (0.97, 0.03), "right")


def _say(axes: Axes, text: str, place: tuple[float, float], side: str) -> None:
    axes.text(*place, text, color=LIGHT.ink, fontsize=9, ha=side, transform=axes.transAxes)


# --- what they cost -------------------------------------------------------------------------------


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
    figure.supylabel(f"energy distance, {_TIMES} floor", color=LIGHT.ink, fontsize=10)
    _legend(figure, colours)
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, color=_INK, fontsize=10, fontweight="bold", loc="left")
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
        markeredgecolor=_PAPER,
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
    line = Line2D([], [], color=LIGHT.tilt, linestyle=_DASHED, label=f"{TARGET:g} {_TIMES} floor")
    figure.legend(
        handles=[*marks, line],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        labelcolor=LIGHT.ink,
        fontsize=9,
    )
