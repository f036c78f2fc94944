"""The last thing before a policy is saved and measured: its strength, where a run asks for that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.evaluation.calibration import AS_IT_IS, Calibration, calibrate
from nablaflow.evaluation.measure import bank_of
from nablaflow.metrics.summary import SampleSet
from nablaflow.models.adapters import load_trainable_state, trainable_state
from nablaflow.progress import Progress
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import calibration_in


def calibrate_once(parts: Parts, folder: Path, progress: Progress) -> SampleSet | None:
    """Calibrate the policy after the last update, as `Config.calibrates` says, and keep it.

    What was trained is kept beside it: training goes on from that, and a run that is gone on with
    by ``training.calibrate=false`` ends with it. Where a session ended before it was kept, the next
    one does the same again.

    Returns:
        The reference bank, where it was looked at for this.
    """
    trainer = parts.trainer
    if not parts.config.calibrates:
        _undo(parts, folder, progress)
        return None
    if trainer.update == 0 or calibrated(parts):
        return None
    bank = bank_of(parts.subject, progress.start)
    assert bank is not None  # `check_evaluation` has seen to that
    # Off the device, which has the sampling to hold.
    trained = trainable_state(parts.model.network, torch.device("cpu"))
    up = parts.config.method.keeps_shape_beyond
    found = calibrate(parts.subject, bank, trained, progress.start, up=up)
    found, beyond = _within_budgets(parts, found, trained, progress)
    if found.way is not None:  # a larger bank, given with --resume, may tell
        trainer.keeper.calibrated = {"update": trainer.update, "strength": found.strength.value}
        trainer.keeper.trained = trained if found.strength.value != 1.0 else None
        trainer.save(folder)
    other = found.strength.value != 1.0 and trainer.average is not None
    rest = "; the average of adapter.ema_decay stays as it is" if other else ""
    progress.say(f"calibrate: {found}{rest}{beyond}")
    return bank


def _within_budgets(
    parts: Parts, found: Calibration, trained: dict[str, Tensor], progress: Progress
) -> tuple[Calibration, str]:
    """What a guard makes of a policy that is stronger than it has seen, and a word about that.

    One that does more than to warn has it as it was trained where a budget is exceeded.
    """
    guarding, strength = parts.trainer.guarding, found.strength.value
    if guarding is None or strength <= 1.0:
        return found, ""
    look = progress.start("look as the guard does", guarding.guard.n)
    trip = guarding.trip(parts.trainer.update, look)
    if trip is None:
        return found, ""
    beyond = f"; at {strength:.3g} times the strength the guard's {trip}"
    if guarding.guard.settings.action == "warn":
        return found, beyond
    load_trainable_state(parts.model.network, trained)
    return replace(found, strength=AS_IT_IS), beyond


def _undo(parts: Parts, folder: Path, progress: Progress) -> None:
    keeper, found = parts.trainer.keeper, calibrated(parts)
    changed = keeper.trained is not None
    if found is None or (found["strength"] != 1.0 and not changed):  # an earlier version kept none
        return
    keeper.undo_calibration()
    parts.trainer.save(folder)
    if changed:
        progress.say("calibrate: the policy is again as it was trained")


def calibrated(parts: Parts) -> dict[str, Any] | None:
    """What was found for the policy as it is; None for one that was not calibrated."""
    kept = {"calibrated": parts.trainer.keeper.calibrated}
    return calibration_in(kept, parts.trainer.update)
