"""Finished runs of one reward and one beta against the exact tilt, in three panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nablaflow.report.curves import LIGHT, Theme

Column = Mapping[str, float]
"""Figures of a distribution of images by name, each with its ``_se`` where that is known."""

PANELS = {
    "diversity": "diversity within a prompt",
    "distance_to_reference": "distance to the reference",
    "distance_to_tilt": "distance to the exact tilt",
}
DASHED = (0, (4, 2))


@dataclass(frozen=True)
class RunsAndTilt:
    """What is drawn.

    Attributes:
        policies: a run's name to its aligned model.
        reference: of the runs.
        tilt: at their beta; None where it is not known.
        curve: the exact tilt over beta, from the reference on; empty where nobody measured it.
    """

    policies: Mapping[str, Column]
    reference: Column | None
    tilt: Column | None
    curve: Sequence[Column] = ()


def runs_figure(data: RunsAndTilt, theme: Theme = LIGHT) -> Figure:
    """Diversity and both distances over the mean reward, with bars of one standard error."""
    figure = Figure(figsize=(11.0, 4.2), dpi=130, layout="constrained")
    for axes, (key, words) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        _dress(axes, words, theme)
        _draw_tilt(axes, data.curve, key, theme)
        for place, (name, column) in enumerate(data.policies.items()):
            colour = theme.series[place % len(theme.series)]
            _draw_point(axes, column, key, colour, "osD^v"[place // len(theme.series) % 5], name)
        if data.reference is not None:
            _draw_point(axes, data.reference, key, theme.reference, "*", "reference")
        if data.tilt is not None:
            _draw_point(axes, data.tilt, key, theme.tilt, "*", "exact tilt")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=theme.ink
    )
    return figure


def _dress(axes: Axes, words: str, theme: Theme) -> None:
    axes.set_title(words, color=theme.ink, fontsize=10, loc="left")
    axes.set_xlabel("mean reward", color=theme.ink)
    axes.tick_params(colors=theme.ink, length=0, labelsize=9)
    axes.grid(color=theme.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.line)


def _draw_tilt(axes: Axes, curve: Sequence[Column], key: str, theme: Theme) -> None:
    points = [(c["reward_mean"], c[key]) for c in curve if "reward_mean" in c and key in c]
    if len(points) < 2:
        return
    rewards, values = zip(*points, strict=True)
    axes.plot(rewards, values, color=theme.tilt, linestyle=DASHED, label="exact tilt over beta")


def _draw_point(axes: Axes, column: Column, key: str, colour: str, marker: str, name: str) -> None:
    """A point with its bars; nothing where a figure is not known."""
    if "reward_mean" not in column or key not in column:
        return
    axes.errorbar(
        column["reward_mean"],
        column[key],
        yerr=column.get(f"{key}_se"),
        xerr=column.get("reward_mean_se"),
        color=colour,
        marker=marker,
        markersize=13 if marker == "*" else 7,
        linestyle="",
        elinewidth=1.0,
        label=_plain(name),
    )


def _plain(name: str) -> str:
    """As it is: matplotlib leaves a label out that begins with _, and reads $ as mathematics."""
    return name[:40].replace("$", r"\$").lstrip("_") or "run"
