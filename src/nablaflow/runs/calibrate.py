"""The last thing before a policy is saved and measured: its strength, where a run asks for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nablaflow.evaluation.calibration import calibrate
from nablaflow.evaluation.measure import bank_of
from nablaflow.metrics.summary import SampleSet
from nablaflow.progress import Progress
from nablaflow.runs.setup import Parts


def calibrate_once(parts: Parts, folder: Path, progress: Progress) -> SampleSet | None:
    """Calibrate the policy after the last update (``training.calibrate``), and keep it.

    Where a session ended before it was kept, the next one does the same again.

    Returns:
        The reference bank, where it was looked at for this.
    """
    trainer = parts.trainer
    if not parts.config.training.calibrate or trainer.update == 0 or calibrated(parts):
        return None
    bank = bank_of(parts.subject, progress.start)
    assert bank is not None  # `check_evaluation` has seen to that
    found = calibrate(parts.subject, bank, progress.start)
    trainer.keeper.calibrated = {"update": trainer.update, "strength": found.strength.value}
    trainer.save(folder)
    progress.say(f"calibrate: {found}")
    return bank


def calibrated(parts: Parts) -> dict[str, Any] | None:
    """What was found for the policy as it is; None for one that was not calibrated."""
    found = parts.trainer.keeper.calibrated
    return found if found is not None and found["update"] == parts.trainer.update else None
