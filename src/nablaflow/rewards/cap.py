"""A reward that counts up to a threshold: enough is enough, for what invites reward hacking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch.nn import functional

from nablaflow.rewards.contract import Composite, NamedReward
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch


class Cap(RewardSettings):
    """Settings; ``at`` and ``softness`` are in the reward's own unit."""

    of: Any = Field(description="the reward, as reward itself is given")
    at: float = Field(description="the threshold: more than this counts no more")
    softness: float = Field(
        default=0.0, ge=0, description="width of the bend; 0 is a corner with no slope beyond"
    )

    def build(self, name: str, load: Load) -> NamedReward:
        part = load(self.of)
        capped = Capped(part, self.at, self.softness)
        return NamedReward(f"{name}({part.name}, {self.at:g})", capped)


@dataclass(frozen=True)
class Capped(Composite):
    """min(reward, at); with softness s, at - s softplus((at - reward) / s), which is below it."""

    reward: NamedReward
    at: float
    softness: float

    @property
    def parts(self) -> tuple[NamedReward, ...]:
        return (self.reward,)

    def combine(self, scores: list[Batch]) -> Batch:
        (score,) = scores
        if self.softness == 0.0:
            return score.clamp(max=self.at)
        return self.at - self.softness * functional.softplus((self.at - score) / self.softness)
