"""A fitted reward to look at: calibration and spread of held-out judgements, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from nablaflow.fitting.validation import HeldOut, reliability
from nablaflow.report.curves import LIGHT
from nablaflow.report.figures import save_figure


def write_fit_plot(path: Path, held_out: HeldOut) -> Path:
    """Write the picture: how far what was said was so, and where the ensemble parts."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _calibration(left, held_out)
    _spread(right, held_out)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LIGHT.line)
        axes.tick_params(colors=LIGHT.ink)
    save_figure(figure, path, dpi=120)
    return path


def _calibration(axes: Axes, held_out: HeldOut) -> None:
    curve = reliability(held_out)
    pairs = held_out.target is None
    ends = (0.5, 1.0) if pairs else (min(curve.said + curve.was), max(curve.said + curve.was))
    axes.plot(ends, ends, color=LIGHT.reference, linestyle="--", linewidth=1)
    axes.plot(curve.said, curve.was, "o-", color=LIGHT.series[0])
    what = "probability of the preferred side" if pairs else "score, standardised"
    axes.set(title="calibration, held out", xlabel=f"said: {what}", ylabel="found")


def _spread(axes: Axes, held_out: HeldOut) -> None:
    if held_out.target is None:
        right = held_out.predicted > 0
        size, label = held_out.predicted.abs(), "difference of the two scores"
        parts = [(right, "told right", LIGHT.series[0]), (~right, "told wrong", LIGHT.series[2])]
        for chosen, name, color in parts:
            axes.scatter(size[chosen], held_out.spread[chosen], s=14, color=color, label=name)
        axes.legend(frameon=False)
    else:
        label = "error, standardised"
        error = (held_out.predicted - held_out.target).abs()
        axes.scatter(error, held_out.spread, s=14, color=LIGHT.series[0])
    axes.set(title="ensemble, held out", xlabel=label, ylabel="standard deviation of the heads")


def fit_table(about: Mapping[str, Any]) -> Table:
    """The held-out figures of a fit."""
    title = (
        f"{about['rows']} {about['judgements']}, {about['folds']} folds by {about['held_out_by']}"
    )
    table = Table("held out", "", title=title)
    for name, value in about["held_out"].items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    return table


def score_table(rows: Sequence[tuple[str, float, float | None]]) -> Table:
    """Images with their scores and, where known, what these are uncertain by."""
    uncertain = any(spread is not None for _, _, spread in rows)
    table = Table("image", "score", *(["uncertainty"] if uncertain else []))
    for name, score, spread in rows:
        extra = [] if spread is None else [f"{spread:.3f}"]
        table.add_row(name, f"{score:.4f}", *extra)
    return table
