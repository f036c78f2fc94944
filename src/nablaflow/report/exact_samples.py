"""Where the samples of each method lie on an exact problem, in a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.problem import Problem
from nablaflow.exact.study import LabCell
from nablaflow.report.curves import LIGHT
from nablaflow.report.exact_look import INK, TIMES
from nablaflow.report.exact_table import Row, over_floor, significant

POINTS = 2000  # shown of each distribution
_COLUMNS = 4  # panels in a row
_ENCLOSED = (0.95, 0.5)  # shares of the exact tilt's mass, by a line of equal density each
_DRAWN = 8000  # points of the exact tilt that place those lines
_PIXELS = 160  # a side, of the density that they are traced on
_PANEL = 2.75  # inches
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
    told = "not finite" if times is None else f"{significant(times)} {TIMES} floor"
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
        left, 1.0 - 0.3 / size[1], title, color=INK, fontsize=13, fontweight="bold", va="center"
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
