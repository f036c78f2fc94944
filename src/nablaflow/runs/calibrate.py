"""The last thing before a policy is saved and measured: its strength, where a run asks for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nablaflow.config.recipe import Config
from nablaflow.evaluation.calibration import calibrate
from nablaflow.evaluation.measure import bank_of
from nablaflow.metrics.summary import SampleSet
from nablaflow.models.adapters import trainable_state
from nablaflow.progress import Progress
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import calibration_in


def calibrate_once(parts: Parts, folder: Path, progress: Progress) -> SampleSet | None:
    """Calibrate the policy after the last update, as `is_wanted` says, and keep it.

    What was trained is kept beside it: training goes on from that, and a run that is gone on with
    by ``training.calibrate=false`` ends with it. Where a session ended before it was kept, the next
    one does the same again.

    Returns:
        The reference bank, where it was looked at for this.
    """
    trainer = parts.trainer
    if not is_wanted(parts.config):
        _undo(parts, folder, progress)
        return None
    if trainer.update == 0 or calibrated(parts):
        return None
    bank = bank_of(parts.subject, progress.start)
    assert bank is not None  # `check_evaluation` has seen to that
    # Off the device, which has the sampling to hold.
    trained = trainable_state(parts.model.network, torch.device("cpu"))
    guard = parts.config.guard
    held = guard is not None and guard.action != "warn"  # to budgets, as it was trained
    may = parts.config.method.keeps_shape_beyond
    found = calibrate(parts.subject, bank, trained, progress.start, up=may and not held)
    if found.way is not None:  # a larger bank, given with --resume, may tell
        trainer.keeper.calibrated = {"update": trainer.update, "strength": found.strength.value}
        trainer.keeper.trained = trained if found.strength.value != 1.0 else None
        trainer.save(folder)
    other = found.strength.value != 1.0 and trainer.average is not None
    rest = "; the average of adapter.ema_decay stays as it is" if other else ""
    if may and held and found.way is not None and found.way.value < 1.0:
        rest = "; with a guard that ends runs no policy is strengthened"
    progress.say(f"calibrate: {found}{rest}")
    return bank


def _undo(parts: Parts, folder: Path, progress: Progress) -> None:
    keeper, found = parts.trainer.keeper, calibrated(parts)
    changed = keeper.trained is not None
    if found is None or (found["strength"] != 1.0 and not changed):  # an earlier version kept none
        return
    keeper.undo_calibration()
    parts.trainer.save(folder)
    if changed:
        progress.say("calibrate: the policy is again as it was trained")


def is_wanted(config: Config) -> bool:
    """``training.calibrate``; without a word, whether a run can say where its method's goal is."""
    asked = config.training.calibrate
    return config.evaluation.bank > 0 and config.method.aims_at_tilt if asked is None else asked


def calibrated(parts: Parts) -> dict[str, Any] | None:
    """What was found for the policy as it is; None for one that was not calibrated."""
    kept = {"calibrated": parts.trainer.keeper.calibrated}
    return calibration_in(kept, parts.trainer.update)
