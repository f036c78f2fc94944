"""The fitted reward that ships with the package: what 200 pairs of scenes say is preferred."""

from __future__ import annotations

from pydantic import Field

from nablaflow.nano.preferences import FITTED
from nablaflow.rewards.contract import NamedReward
from nablaflow.rewards.fitted import FittedReward
from nablaflow.rewards.heads import read_heads
from nablaflow.rewards.settings import Load, RewardSettings


class Preference(RewardSettings):
    """Settings; the heads are those of ``nablaflow reward fit`` on the shipped pairs."""

    pessimism: float = Field(
        default=1.0, ge=0, description="standard deviations of the ensemble that are subtracted"
    )

    def build(self, name: str, load: Load) -> NamedReward:
        heads, about = read_heads(FITTED)
        return NamedReward(name, FittedReward.of(heads, about, self.pessimism))
