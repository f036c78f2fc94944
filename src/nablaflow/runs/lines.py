"""What is said of a run while it trains, a line each."""

from __future__ import annotations

from nablaflow.report.words import SAME_REWARD, warnings
from nablaflow.runs.calibrate import calibrated
from nablaflow.runs.setup import Parts


def nothing_left(parts: Parts) -> list[str]:
    """A line about a run that has come to its end before: nothing will be trained, and why."""
    trainer, training = parts.trainer, parts.config.training
    if trainer.update >= training.updates:
        why = f"training.updates: {trainer.update} updates are made, of {training.updates}"
        more = f"A training.updates above {trainer.update} goes on"
    elif trainer.finished:
        why = f"training.minutes: {trainer.seconds / 60:.3g} are spent, of {training.minutes:g}"
        more = "A larger training.minutes goes on"
    elif trainer.tripped:
        why = f"guard: a budget of it ended the run after update {trainer.update}"
        more = "Another guard needs another run"
    else:
        return []
    return [f"{why}; nothing is trained, and the policy is {_what_is_done(parts)}. {more}"]


def _what_is_done(parts: Parts) -> str:
    """With a policy of which nothing is left to train."""
    if parts.config.calibrates and parts.trainer.update > 0 and calibrated(parts) is None:
        return "calibrated, if the reference bank tells the tilt, and measured"
    if not parts.config.calibrates and parts.trainer.keeper.trained is not None:
        return "again as it was trained, and measured"
    return "measured as it is"


def guard_told(parts: Parts) -> str:
    """The latest of the guard's figures."""
    guard = parts.trainer.guard
    if guard is None or guard.last is None:
        return ""
    kl = "" if guard.last.kl is None else f", kl {guard.last.kl:.3g}"
    return f"{kl}, diversity {guard.last.diversity:.0%}"


def new_warnings(parts: Parts, warned: set[str]) -> list[str]:
    """What is to be said for the first time; ``warned`` has the guard's metrics besides."""
    told = []
    if parts.trainer.alike and "same reward" not in warned:
        warned.add("same reward")
        told.append(f"after update {parts.trainer.update}: {SAME_REWARD}")
    return told + _of_guard(parts, warned)


def _of_guard(parts: Parts, warned: set[str]) -> list[str]:
    """What a guard that only warns has to say."""
    guard = parts.trainer.guard
    if guard is None or guard.last is None or guard.settings.action != "warn":
        return []
    found = warnings(guard.last.figures(), guard.settings.limits)
    new = [f"after update {guard.last.update}: {found[metric]}" for metric in found.keys() - warned]
    warned.update(found)
    return sorted(new)
