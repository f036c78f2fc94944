"""One update, and the loop around it."""

from nablaflow.training.optimization import (
    Average,
    Objective,
    Schedule,
    add_gradients,
    clip_gradients,
    make_optimizer,
)
from nablaflow.training.rollout import Rollout
from nablaflow.training.update import Update

__all__ = [
    "Average",
    "Objective",
    "Rollout",
    "Schedule",
    "Update",
    "add_gradients",
    "clip_gradients",
    "make_optimizer",
]
