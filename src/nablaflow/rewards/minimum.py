"""The least of several rewards: each image is moved by what it is worst at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from nablaflow.rewards.contract import Composite, NamedReward
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch


class Minimum(RewardSettings):
    """Settings; the parts should have one scale, as ``normalized`` gives them."""

    of: list[Any] = Field(min_length=2, description="the rewards, each as reward itself is given")

    def build(self, name: str, load: Load) -> NamedReward:
        parts = tuple(load(spec) for spec in self.of)
        return NamedReward(f"{name}({', '.join(part.name for part in parts)})", Least(parts))


@dataclass(frozen=True)
class Least(Composite):
    """min over ``rewards``, image by image; its gradient is that of the least one."""

    rewards: tuple[NamedReward, ...]

    @property
    def parts(self) -> tuple[NamedReward, ...]:
        return self.rewards

    def combine(self, scores: list[Batch]) -> Batch:
        return torch.stack(scores).amin(0)
