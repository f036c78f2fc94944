"""A trained entrant once more, at the strength that has the exact tilt's mean reward."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.comparison.gauge import Gauge
from nablaflow.evaluation.calibration import calibrate
from nablaflow.metrics.summary import Column
from nablaflow.models.adapters import trainable_state
from nablaflow.progress import StartProgress
from nablaflow.runs.setup import Parts


def at_its_strength(
    parts: Parts, gauge: Gauge, as_trained: Column, start: StartProgress
) -> dict[str, Any]:
    """Figures of the policy at the strength that `calibrate` finds, and that with its error.

    Every method is looked at upwards too, so that none has more from it than another. The network
    is left at that strength.

    Args:
        as_trained: the figures at strength 1, which are kept where it stays at that.
    """
    trained = trainable_state(parts.model.network, torch.device("cpu"))
    found = calibrate(parts.subject, gauge.bank.samples, trained, start, up=True).strength
    figures = as_trained
    if found.value != 1.0:
        measured = start("policy at its strength", parts.config.evaluation.n)
        figures = gauge.measure_policy(parts.model, parts.config, measured)
    return {**figures, "strength": found.value, "strength_se": found.se}
