"""What a run folder says of a run, read as data: nothing in it is believed to be well formed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nablaflow.errors import UserError
from nablaflow.report.curves import Theme, guard_curve, loss_curves, reward_curve
from nablaflow.storage.checkpoint import list_checkpoints
from nablaflow.storage.lock import is_held
from nablaflow.storage.records import Record, read_records
from nablaflow.storage.run_folder import CONFIG, SAMPLES, SUMMARY

LARGEST = 2**22  # bytes of a text file that are read
COLUMNS = ("reference", "policy", "exact_tilt")
GUARDED = ("kl", "diversity", "held_out")


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it.

    Attributes:
        state: ``training``, ``finished``, ``stopped`` or ``begun``.
        config: text of config.yaml.
        summary: of summary.json, for what is there of it.
        sheets: pictures of samples during training, from the same noise, oldest first.
    """

    name: str
    state: str
    config: str
    summary: Mapping[str, Any]
    records: Sequence[Record]
    sheets: Sequence[Path]

    @property
    def update(self) -> int:
        return self.records[-1]["update"] if self.records else 0

    @property
    def reward(self) -> float | None:
        return self.records[-1].get("reward_mean") if self.records else None

    @property
    def figures(self) -> Mapping[str, Any]:
        """Of the summary, all that is a number, for a table."""
        columns = {key: self.summary[key] for key in COLUMNS if key in self.summary}
        return {**_figures(self.summary), **columns}


def look(folder: Path, root: Path) -> Shown:
    """Read a run folder; what is damaged or missing is left out."""
    summary = _summary(folder / SUMMARY)
    return Shown(
        str(folder.relative_to(root)) if folder != root else folder.name,
        _state(folder, summary),
        _text(folder / CONFIG),
        summary,
        read_records(folder),
        _sheets(folder),
    )


def stamp(folder: Path) -> str:
    """Another text whenever there is something new to see of a run."""
    parts = [folder / "metrics.jsonl", folder / SUMMARY, folder / SAMPLES]
    sizes = [part.stat() for part in parts if part.exists()]
    return f"{[(s.st_size, s.st_mtime_ns) for s in sizes]}{_held(folder)}"


def curve(shown: Shown, which: str, theme: Theme) -> Figure | None:
    """A picture of a run by name: reward, loss, or a figure of the guard; None for no such."""
    if which == "reward":
        reference, tilt = (_number(shown.summary, key, "reward_mean") for key in COLUMNS[::2])
        return reward_curve(shown.records, reference=reference, exact_tilt=tilt, theme=theme)
    if which == "loss":
        return loss_curves(shown.records, theme=theme)
    if which in GUARDED:
        budgets = _mapping(shown.summary.get("guard"), "budgets")
        start = {"kl": 0.0, "diversity": 1.0}.get(which)
        budget = _number(budgets, which)
        return guard_curve(shown.records, which, start=start, budget=budget, theme=theme)
    return None


def curves_of(shown: Shown) -> list[str]:
    """Names that `curve` draws something for."""
    found = {key for record in shown.records for key in record}
    names = ["reward"] if "reward_mean" in found else []
    names += ["loss"] if "loss" in found else []
    return names + [name for name in GUARDED if f"guard_{name}" in found]


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _number(summary: Mapping[str, Any], *keys: str) -> float | None:
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if finite else None


def _state(folder: Path, summary: Mapping[str, Any]) -> str:
    if _held(folder):
        return "training"
    if summary:
        return "finished"
    return "stopped" if list_checkpoints(folder) else "begun"


def _held(folder: Path) -> bool:
    try:
        return is_held(folder)
    except (OSError, UserError):
        return False


def _summary(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    columns = {key: found.get(key) for key in COLUMNS}
    whole = {key: value for key, value in columns.items() if isinstance(value, dict)}
    others = ((key, value) for key, value in found.items() if key not in COLUMNS)
    kept = {key: value for key, value in others if isinstance(value, int | float | dict)}
    return {**kept, **{key: _figures(value) for key, value in whole.items()}}


def _figures(column: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: _number(column, key) for key in column}
    return {key: value for key, value in numbers.items() if value is not None}


def _text(path: Path) -> str:
    """A text file of the run itself; nothing where it is none, a link, or too large."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sheets(folder: Path) -> list[Path]:
    place = folder / SAMPLES
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(p for p in place.glob("step-*.png") if p.is_file() and not p.is_symlink())
