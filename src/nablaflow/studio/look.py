"""What a run folder says of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nablaflow.errors import UserError
from nablaflow.runs.belonging import check_figures
from nablaflow.storage.lock import is_held
from nablaflow.storage.records import Record, records_and_faults
from nablaflow.storage.run_folder import CONFIG, METRICS, SAMPLES, SUMMARY, has_checkpoint
from nablaflow.studio.data import inside, json_of, number, numbers, text_of, yaml_of
from nablaflow.studio.folders import shown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("reference", "policy", "exact_tilt")
GUARDED = ("kl", "diversity", "held_out")
BUDGETS = {"kl": "max_kl", "diversity": "min_diversity"}  # settings of the guard


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it.

    Attributes:
        state: ``training``, ``finished``, ``stopped`` or ``begun``.
        config: text of config.yaml.
        summary: of summary.json, for what is there of it.
        sheets: pictures of samples during training, from the same noise, oldest first.
        faults: sentences about what of the folder is not shown, since it is not what the run wrote.
    """

    name: str
    state: str
    config: str
    summary: Mapping[str, Any]
    records: Sequence[Record]
    sheets: Sequence[Path]
    faults: Sequence[str]

    @property
    def update(self) -> int:
        return self.records[-1]["update"] if self.records else 0

    @property
    def reward(self) -> float | None:
        return self.records[-1].get("reward_mean") if self.records else None

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return yaml_of(self.config)

    @property
    def updates(self) -> int | None:
        """How many the run is to have."""
        planned = number(self.settings, "training", "updates")
        return None if planned is None or planned < 1 else int(planned)

    @property
    def minutes_left(self) -> float | None:
        """By the mean pace so far; None where the run does not train or has no pace yet."""
        paces = [pace for record in self.records if (pace := number(record, "seconds"))]
        if self.state != "training" or self.updates is None or not paces:
            return None
        return max(0, self.updates - self.update) * sum(paces) / len(paces) / 60

    @property
    def task(self) -> tuple[str, str]:
        """Reward and beta: runs that share them can be held against one tilt."""
        reward, beta = inside(self.settings, "reward"), number(self.settings, "method", "beta")
        reward = inside(reward, "name") or reward  # of a mapping without further settings
        return str(reward or "unknown"), "unknown" if beta is None else f"{beta:g}"

    def budget(self, which: str) -> float | None:
        """The guard's, as the run ended with it or was told it."""
        ended = number(self.summary, "guard", "budgets", which)
        if ended is not None or which not in BUDGETS:
            return ended
        return number(self.settings, "guard", BUDGETS[which])


def look(folder: Path, root: Path) -> Shown:
    """Read a run folder; what is damaged or missing is left out."""
    faults: list[str] = []
    summary = _summary(folder, faults)
    return Shown(
        shown_name(folder, root),
        _state(folder, summary),
        text_of(folder / CONFIG),
        summary,
        _records(folder, faults),
        _sheets(folder),
        faults,
    )


def stamp(folder: Path) -> str:
    """Another text whenever there is something new to see of a run."""
    parts = [folder / METRICS, folder / SUMMARY, folder / SAMPLES]
    sizes = [part.stat() for part in parts if part.exists()]
    return f"{[(s.st_size, s.st_mtime_ns) for s in sizes]}{_held(folder)}"


def curve(shown: Shown, which: str, theme: str) -> Figure | None:
    """A picture of a run by name: reward, loss, or a figure of the guard; None for no such."""
    from nablaflow.report.curves import DARK, LIGHT, guard_curve, loss_curves, reward_curve

    colours = DARK if theme == "dark" else LIGHT
    if which == "reward":
        reference, tilt = (number(shown.summary, key, "reward_mean") for key in COLUMNS[::2])
        return reward_curve(shown.records, reference=reference, exact_tilt=tilt, theme=colours)
    if which == "loss":
        return loss_curves(shown.records, theme=colours)
    if which in GUARDED:
        start, budget = {"kl": 0.0, "diversity": 1.0}.get(which), shown.budget(which)
        return guard_curve(shown.records, which, start=start, budget=budget, theme=colours)
    return None


def curves_of(shown: Shown) -> list[str]:
    """Names that `curve` draws something for."""
    found = {key for record in shown.records for key in record}
    names = ["reward"] if "reward_mean" in found else []
    names += ["loss"] if "loss" in found else []
    return names + [name for name in GUARDED if f"guard_{name}" in found]


def _state(folder: Path, summary: Mapping[str, Any]) -> str:
    if _held(folder):
        return "training"
    if summary:
        return "finished"
    return "stopped" if has_checkpoint(folder) else "begun"


def _held(folder: Path) -> bool:
    try:
        return is_held(folder)
    except (OSError, UserError):
        return False


def _records(folder: Path, faults: list[str]) -> list[Record]:
    try:
        found, told = ([], "") if (folder / METRICS).is_symlink() else records_and_faults(folder)
    except OSError:
        return []
    if told:
        faults.append(f"{METRICS} is damaged: {told}.")
    return found


def _summary(folder: Path, faults: list[str]) -> Mapping[str, Any]:
    found = json_of(folder / SUMMARY)
    try:
        check_figures(folder, found)
    except UserError:
        faults.append(
            f"{SUMMARY} is damaged or of another run's policy, and its figures are left out; train "
            "the run with --resume to measure it."
        )
        return {}
    columns = {key: found.get(key) for key in COLUMNS}
    whole = {key: value for key, value in columns.items() if isinstance(value, dict)}
    others = ((key, value) for key, value in found.items() if key not in COLUMNS)
    kept = {key: value for key, value in others if isinstance(value, int | float | dict)}
    return {**kept, **{key: numbers(value) for key, value in whole.items()}}


def _sheets(folder: Path) -> list[Path]:
    place = folder / SAMPLES
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(p for p in place.glob("step-*.png") if p.is_file() and not p.is_symlink())
