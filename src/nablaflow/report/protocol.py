"""The protocol's figures as a table and as curves over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nablaflow.evaluation.protocol import GUARD_BEST
from nablaflow.metrics.catalog import METRICS
from nablaflow.report.curves import LIGHT, Theme
from nablaflow.report.digits import is_told, to_the_error

_COLUMNS = 3  # panels, and columns of figures, a line
_PAPER = "#ffffff"
_RING: dict[str, Any] = {"marker": "o", "markersize": 9, "fillstyle": "none", "linestyle": "none"}


def with_interval(figure: Mapping[str, float]) -> str:
    """A figure and its interval, to the second significant digit of the interval's half width.

    >>> with_interval({"value": 0.81234, "low": 0.8034, "high": 0.8211, "n": 64})
    '0.8123 [0.8034, 0.8211]'
    """
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    half = (high - low) / 2
    if not is_told(half, value):
        return f"{value:.4g}"
    shown, *ends = to_the_error(half, value, low, high)
    return f"{shown} [{', '.join(ends)}]"


def protocol_table(protocol: Mapping[str, Any]) -> Group:
    """For a terminal: a line for each model, a column for each metric, a few columns at a time.

    Args:
        protocol: as ``nablaflow eval --json`` has it.
    """
    metrics = protocol["metrics"]
    parts = [metrics[start : start + _COLUMNS] for start in range(0, len(metrics), _COLUMNS)]
    tables = [_table(protocol["rows"], part) for part in parts]
    return Group(*tables, *(Text(f"\n{note}") for note in _notes(protocol)))


def _table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, header_style="")
    table.add_column("", no_wrap=True)
    for name in metrics:
        table.add_column(METRICS[name].label, justify="right")
    for row in rows:
        table.add_row(_label(row), *(with_interval(row[name]) for name in metrics))
    return table


def protocol_curves(protocol: Mapping[str, Any], *, theme: Theme = LIGHT) -> Figure:
    """A panel for each metric: the run's models over updates with their intervals.

    The reference stands at update 0 and goes on as a dashed line: of a distance, that is the floor.
    The guard's best checkpoint, where it has a row, has a ring.
    """
    metrics = protocol["metrics"]
    lines = -(-len(metrics) // _COLUMNS)
    columns = min(_COLUMNS, len(metrics))
    figure = Figure(
        figsize=(3.4 * columns, 2.6 * lines), dpi=180, layout="constrained", facecolor=_PAPER
    )
    for place, name in enumerate(metrics, start=1):
        axes = figure.add_subplot(lines, columns, place)
        _panel(axes, name, protocol["rows"], theme)
    return figure


def _panel(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    level = rows[0][name]["value"]
    axes.axhline(level, color=theme.reference, linestyle=(0, (5, 3)), linewidth=1.2)
    updates = [row["update"] for row in rows]
    values = [row[name]["value"] for row in rows]
    below = [row[name]["value"] - row[name]["low"] for row in rows]
    above = [row[name]["high"] - row[name]["value"] for row in rows]
    axes.errorbar(
        updates,
        values,
        yerr=[below, above],
        color=theme.series[0],
        marker="o",
        markersize=4,
        linewidth=1.7,
        elinewidth=1.2,
        capsize=2.5,
    )
    best = [(row["update"], row[name]["value"]) for row in rows if row["name"] == GUARD_BEST]
    if best:
        axes.plot(*zip(*best, strict=True), **_RING, color=theme.series[2], label=GUARD_BEST)
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)
    axes.set_title(METRICS[name].label, color=theme.ink, fontsize=10, loc="left")
    axes.set_xlabel("update", color=theme.ink, fontsize=9)
    axes.tick_params(colors=theme.ink, which="both", length=0, labelsize=8)
    axes.grid(color=theme.line, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _label(row: Mapping[str, Any]) -> str:
    return "aligned" if row["name"] == "policy" else row["name"]


def _notes(protocol: Mapping[str, Any]) -> list[str]:
    basis = (
        f"95 % intervals over images, within each prompt; {protocol['n']} images "
        f"of {protocol['prompts']} prompts for each model, features {protocol['features']}. "
        "Distances are to a second set of the reference's own samples, so the reference's is the "
        "floor."
    )
    left_out = [f"Left out: {reason}." for reason in protocol["refused"].values()]
    return [basis, *left_out]
