"""Several runs side by side: those of one reward and one beta, which one tilt judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablaflow.studio.data import inside, json_of, number, numbers
from nablaflow.studio.folders import COMPARISONS
from nablaflow.studio.look import Shown, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = tuple[str, str]
"""Reward and beta, as a run's configuration has them."""


@dataclass(frozen=True)
class Group:
    """Finished runs of one task.

    Attributes:
        runs: by their addresses.
        curve: the exact tilt over beta, where a comparison has measured it.
    """

    task: Task
    runs: Mapping[str, Shown]
    curve: Sequence[Mapping[str, float]]


def groups(runs: Mapping[str, Path], root: Path) -> list[Group]:
    """Finished runs by their tasks, those of most runs first."""
    found: dict[Task, dict[str, Shown]] = {}
    for key, path in runs.items():
        shown = look(path, root)
        if {"reference", "policy"} <= shown.summary.keys():
            found.setdefault(shown.task, {})[key] = shown
    grouped = [Group(task, runs, _curve(root, task)) for task, runs in found.items()]
    return sorted(grouped, key=lambda group: -len(group.runs))


def picture(group: Group, chosen: Sequence[str], theme: str) -> Figure:
    """The chosen runs of a group against the tilt."""
    from nablaflow.report.curves import DARK, LIGHT
    from nablaflow.report.runs_plot import RunsAndTilt, runs_figure

    runs = [run for key, run in group.runs.items() if key in chosen]
    policies = {run.name: run.summary["policy"] for run in runs}
    first = (runs or list(group.runs.values()))[0].summary
    data = RunsAndTilt(policies, first["reference"], first.get("exact_tilt"), group.curve)
    return runs_figure(data, DARK if theme == "dark" else LIGHT)


def _curve(root: Path, task: Task) -> list[Mapping[str, float]]:
    """The tilt over beta as the newest comparison of the task has it."""
    for path in sorted((root / COMPARISONS).glob("*/*.json"), reverse=True):
        data = json_of(path)
        beta = number(data, "beta")
        if (str(inside(data, "reward")), f"{beta:g}" if beta is not None else "") == task:
            return [numbers(row) for row in _rows(data.get("tilt_curve"))]
    return []


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
