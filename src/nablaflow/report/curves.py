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
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nablaflow.report.words import GUARDED, loss_name

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
DECADES = 30.0
"""A loss whose values differ by more has a logarithmic axis."""
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
    _levels(axes, theme, {"exact tilt": exact_tilt, "reference": reference})
    _draw(axes, updates, values, "aligned", theme.series[0])
    _legend(axes, theme)
    return figure


def loss_curves(records: Records, *, theme: Theme = LIGHT) -> Figure | None:
    """The loss and its terms by their names; None where nothing was recorded.

    The axis is logarithmic where the values are positive and differ by a factor of `DECADES` or
    more; else it is linear and has 0 on it. A loss of one term is drawn once.
    """
    terms = loss_terms(records)
    if not terms:
        return None
    figure, axes = _axes("loss", theme)
    values = np.concatenate([values for _, values in terms.values()])
    if values.min() >= 0 and values.max() > DECADES * values[values > 0].min(initial=np.inf):
        axes.set_yscale("log", nonpositive="mask")
    else:
        _with_zero(axes, values)
    for place, (name, (updates, own)) in enumerate(terms.items()):
        _draw(axes, updates, own, name, theme.series[place % len(theme.series)])
    _legend(axes, theme)
    return figure


def loss_terms(records: Records) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Updates and values of the loss and of its terms, by the names that are shown."""
    keys = dict.fromkeys(key for record in records for key in record if key.startswith("loss"))
    found = {key: series(records, key) for key in keys}
    terms = {key: term for key, term in found.items() if (term[1] != 0).any()}
    if len(terms) == 2 and "loss" in terms:  # the one term and the sum are the same
        del terms["loss"]
    return {loss_name(key): term for key, term in terms.items()}


def guard_curve(
    records: Records,
    metric: str,
    *,
    start: float | None = None,
    budget: float | None = None,
    theme: Theme = LIGHT,
) -> Figure | None:
    """One of the guard's figures over updates; None where it was not recorded.

    The axis has 0 on it but for the trained reward's, so that a small change looks small.

    Args:
        records: of the run.
        metric: kl, diversity, held_out or reward.
        start: its value at the reference, which is update 0, a horizontal line.
        budget: its limit, another.
        theme: colours.
    """
    if not len(series(records, f"guard_{metric}")[0]):
        return None
    updates, values = series(begun(records, metric, start), f"guard_{metric}")
    _, label = GUARDED.get(metric, ("", metric.replace("_", "-")))
    figure, axes = _axes(label, theme)
    _levels(axes, theme, {"budget": budget, "reference": None if metric == "kl" else start})
    _draw(axes, updates, values, "aligned", theme.series[0])
    if metric != "reward":
        _with_zero(axes, np.append(values, [level for level in (start, budget) if level]))
    if metric == "diversity":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(axes, theme)
    return figure


def begun(records: Records, metric: str, start: float | None) -> Records:
    """The records of a figure of the guard behind that of the reference, which is update 0."""
    return records if start is None else [{"update": 0, f"guard_{metric}": start}, *records]


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
    figure = Figure(figsize=(5.2, 2.9), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("update", color=theme.ink)
    axes.set_ylabel(label, color=theme.ink)
    axes.tick_params(colors=theme.ink, which="both", length=0, labelsize=9)
    axes.grid(color=theme.line, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _levels(axes: Axes, theme: Theme, levels: Mapping[str, float | None]) -> None:
    """A dashed horizontal line for each level that is known."""
    colours = {"reference": theme.reference}
    for name, level in levels.items():
        if level is not None:
            colour = colours.get(name, theme.tilt)
            axes.axhline(level, color=colour, linestyle=(0, (5, 3)), linewidth=1.3, label=name)


def _with_zero(axes: Axes, values: np.ndarray) -> None:
    """An axis that has 0 and all values on it, and some room beyond."""
    low, high = min(0.0, values.min()), max(0.0, values.max())
    room = 0.08 * ((high - low) or 1.0)
    axes.set_ylim(low - (room if low < 0 else 0.0), high + room)


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
