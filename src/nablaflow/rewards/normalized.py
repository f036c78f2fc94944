"""A reward in units of its own recent spread, so that several of them can be added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.rewards.contract import Components, Composite, NamedReward, walk
from nablaflow.rewards.settings import Load, RewardSettings
from nablaflow.typing import Batch

NOTHING = torch.empty(0, dtype=torch.float64)
"""The scores of a window that has seen none."""


class Normalized(RewardSettings):
    """Settings of (reward - mean) / spread over the last ``window`` scores of training."""

    of: Any = Field(description="the reward, as reward itself is given")
    window: int = Field(
        default=1024, ge=2, description="scores that mean and spread are taken over"
    )
    least_spread: float = Field(
        default=1e-3, gt=0, description="the spread is never taken to be smaller, in the same unit"
    )

    def build(self, name: str, load: Load) -> NamedReward:
        part = load(self.of)
        function = Standardized(part, self.window, self.least_spread)
        return NamedReward(f"{name}({part.name})", function)


class Standardized(Composite):
    """The reward against a window of past scores; as it is until there are two.

    The window moves only in ``observe``, which training calls once an update with the scores of all
    processes: within an update scores and gradients belong to one and the same reward.
    """

    def __init__(self, reward: NamedReward, window: int, least_spread: float) -> None:
        self.reward, self.window, self.least_spread = reward, window, least_spread
        self.restore(NOTHING)

    @property
    def parts(self) -> tuple[NamedReward, ...]:
        return (self.reward,)

    def combine(self, scores: list[Batch]) -> Batch:
        (score,) = scores
        return (score - self.mean) / self.spread

    def observe(self, scores: Tensor) -> None:
        """Add scores (batch,) of the reward, as it was before normalisation."""
        self.restore(torch.cat([self.scores, scores.detach().cpu().double()]))

    def restore(self, scores: Tensor) -> None:
        """Go on from the scores of a window, float64 on the processor."""
        self.scores: Float[Tensor, "past"] = scores[-self.window :]
        self.mean, self.spread = 0.0, 1.0
        if len(self.scores) >= 2:
            self.mean = self.scores.mean().item()
            self.spread = max(self.scores.std().item(), self.least_spread)


def windows(reward: NamedReward) -> dict[str, Standardized]:
    """What a reward remembers, by the name of the part that does."""
    found = {part.name: part.function for part in walk(reward)}
    return {name: part for name, part in found.items() if isinstance(part, Standardized)}


def observe(reward: NamedReward, components: Components) -> None:
    """Move all windows of a reward by the scores of an update, those of all processes."""
    for part in windows(reward).values():
        part.observe(components[part.reward.name])


def memory(reward: NamedReward) -> dict[str, Tensor]:
    """All that a reward remembers, for a checkpoint."""
    return {name: part.scores for name, part in windows(reward).items()}


def recall(reward: NamedReward, saved: Mapping[str, Tensor]) -> None:
    """Give a reward its memory back; what was not saved remembers nothing."""
    for name, part in windows(reward).items():
        part.restore(saved.get(name, NOTHING))
