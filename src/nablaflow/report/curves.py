"""Curves over the updates of a run, from the records of ``metrics.jsonl``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]
"""One mapping for each update: ``update``, ``reward_mean``, ``loss`` and what else is logged."""


@dataclass(frozen=True)
class Theme:
    """Colours that go with a page's; the background is transparent.

    Attributes:
        ink: text.
        line: axes and grid.
        series: the curves, in turn; the first is the aligned model's.
        reference: the reference's level.
        tilt: the exact tilt's level.
    """

    ink: str
    line: str
    series: tuple[str, ...]
    reference: str
    tilt: str


LIGHT = Theme(
    ink="#4a4f57",
    line="#d9dce1",
    series=("#0b7a5c", "#3566b8", "#b4572b", "#7d4fa8", "#8a8f98"),
    reference="#8a8f98",
    tilt="#b7791f",
)
DARK = Theme(
    ink="#aab1bb",
    line="#3a4049",
    series=("#5fd3a6", "#7fa8f0", "#ec9a6c", "#c19be6", "#878e99"),
    reference="#878e99",
    tilt="#e2b562",
)


def reward_curve(
    records: Records,
    *,
    reference: float | None = None,
    exact_tilt: float | None = None,
    theme: Theme = LIGHT,
) -> Figure | None:
    """Mean reward over updates; None where no record has ``reward_mean``.

    Args:
        records: of the run.
        reference: the reference's mean reward, a horizontal line.
        exact_tilt: the exact tilt's, another.
        theme: colours.
    """
    updates, values = series(records, "reward_mean")
    if not len(values):
        return None
    figure, axes = _axes("mean reward", theme)
    for level, name, colour in (
        (exact_tilt, "exact tilt", theme.tilt),
        (reference, "reference", theme.reference),
    ):
        if level is not None:
            axes.axhline(level, color=colour, linestyle=(0, (5, 3)), linewidth=1.3, label=name)
    _draw(axes, updates, values, "aligned", theme.series[0])
    _legend(axes, theme)
    return figure


def loss_curves(records: Records, *, theme: Theme = LIGHT) -> Figure | None:
    """Each term whose name begins with ``loss``, on a log axis; None where none is positive."""
    names = dict.fromkeys(key for record in records for key in record if key.startswith("loss"))
    terms = {name: series(records, name) for name in names}
    terms = {name: term for name, term in terms.items() if (term[1] > 0).any()}
    if not terms:
        return None
    figure, axes = _axes("loss", theme)
    axes.set_yscale("log", nonpositive="mask")
    for place, (name, (updates, values)) in enumerate(terms.items()):
        _draw(axes, updates, values, name, theme.series[place % len(theme.series)])
    _legend(axes, theme)
    return figure


def guard_curve(
    records: Records,
    metric: str,
    *,
    start: float | None = None,
    budget: float | None = None,
    theme: Theme = LIGHT,
) -> Figure | None:
    """One of the guard's figures over updates; None where it was not recorded.

    Args:
        records: of the run.
        metric: kl, diversity, held_out or reward.
        start: its value at the reference, which is update 0.
        budget: its limit, a horizontal line.
        theme: colours.
    """
    first = [] if start is None else [{"update": 0, f"guard_{metric}": start}]
    updates, values = series([*first, *records], f"guard_{metric}")
    if len(values) <= len(first):
        return None
    figure, axes = _axes(metric.replace("_", "-"), theme)
    if budget is not None:
        axes.axhline(budget, color=theme.tilt, linestyle=(0, (5, 3)), linewidth=1.3, label="budget")
    _draw(axes, updates, values, "aligned", theme.series[0])
    _legend(axes, theme)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates and values of one key where it was recorded and is finite, each of shape (n,).

    A record without ``update`` counts as its place in the list.
    """
    points = [
        (record.get("update", place), record[key])
        for place, record in enumerate(records)
        if isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]
    updates, values = np.asarray(points, dtype=float).reshape(-1, 2).T
    return updates, values


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over ``width`` values, fewer at the ends; shape (n,)."""
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _axes(label: str, theme: Theme) -> tuple[Figure, Axes]:
    # A Figure of its own: pyplot would keep it in global state for ever.
    figure = Figure(figsize=(6.4, 3.0), dpi=180, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("update", color=theme.ink)
    axes.set_ylabel(label, color=theme.ink)
    axes.tick_params(colors=theme.ink, which="both", length=0, labelsize=9)
    axes.grid(color=theme.line, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _draw(axes: Axes, updates: np.ndarray, values: np.ndarray, name: str, colour: str) -> None:
    """One curve: every value faintly, and their running mean once there are many."""
    width = max(1, len(values) // 20)
    if width > 1:
        axes.plot(updates, values, color=colour, alpha=0.28, linewidth=0.9)
    mark = "o" if len(values) == 1 else ""  # a line through one point is invisible
    smooth = running_mean(values, width)
    axes.plot(updates, smooth, color=colour, linewidth=1.9, marker=mark, label=name)


def _legend(axes: Axes, theme: Theme) -> None:
    # Above the axes, where no curve can run through it.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
        ncols=5,
        frameon=False,
        borderaxespad=0.0,
        labelcolor=theme.ink,
        fontsize=9,
    )
