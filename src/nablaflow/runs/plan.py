"""What a run takes of a device's memory: its parts, its stages and the batches that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nablaflow.training.memory_plan import GIB

REHEARSAL, ROLLOUT, DECODE = "rehearsal", "rollout", "decode and reward"
FIT = "fit of the value"
LOSSES, ESTIMATES = "losses and gradients", "value gradients"
"""Stages of a run's memory."""
WEIGHTS, TRAINED, KEPT = "weights", "adapter and optimizer", "rollout, kept"
"""Parts that are there all the time."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a run of these batches takes at most, bytes.

    Attributes:
        parts: that are there at once, at the peak's time or always; their sum is ``peak``.
        stages: the peak of each stage of an update, besides what is always there.
        saved: of a transition for backward, by network.
        encoders: of the text encoders, by name.
        rest: whether those are on the CPU but while they are at work, which is in the rehearsal.
        batches: chosen or given, by their settings.
        device: type of the one that it is for.
        rewarded: whether the reward's own is counted.
    """

    parts: dict[str, int]
    stages: dict[str, int]
    saved: dict[str, int]
    encoders: dict[str, int]
    rest: bool
    batches: dict[str, int | None]
    device: str
    rewarded: bool

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The stage that the peak is in."""
        return max(self.stages, key=lambda name: self.stages[name])

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: GiB, but for the batches."""
        groups = {"parts": self.parts, "stages": self.stages, "saved_per_transition": self.saved}
        gib = {
            group: {name: round(value / GIB, 4) for name, value in values.items()}
            for group, values in groups.items()
        }
        return {
            "peak_gib": round(self.peak / GIB, 4),
            **gib,
            "batches": self.batches,
            "counts_the_reward": self.rewarded,
        }
