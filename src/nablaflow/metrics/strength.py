"""How strong a tilt is, told without the reward's unit, and the beta of a given strength.

Both measures are of the prompt that the tilt moves most, and of reference samples alone. For
rewards that are normal with standard deviation s within a prompt, the effective share is
exp(-beta^2 s^2) and the divergence beta^2 s^2 / 2 nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.prompts import by_prompt
from nablaflow.metrics.reward import reward_mean
from nablaflow.metrics.tilt import ImportanceWeights
from nablaflow.typing import Batch

FEWEST = 4
"""Samples of a prompt that a strength must leave to be told from them."""

STRONGEST = 2.0**20
"""Of betas that are tried, in units of 1 / the reward's spread."""


@dataclass(frozen=True)
class Strength:
    """A tilt of some reference samples.

    Attributes:
        effective_share: Kish's effective sample size over the samples, the smallest over prompts.
        nats: divergence of the tilt from the reference, the largest over prompts.
        reward_mean: of the reference.
        tilted_reward_mean: of the exact tilt.
        n: samples in all.
    """

    beta: float
    effective_share: float
    nats: float
    reward_mean: float
    tilted_reward_mean: float
    n: int

    @classmethod
    def of_rewards(
        cls, rewards: Batch, prompt_index: Int[Tensor, "batch"], beta: float
    ) -> Strength:
        """By importance weights.

        Args:
            rewards: (n,) of samples of the reference.
            prompt_index: (n,) integers.

        Raises:
            UserError: a prompt has a single row.
        """
        weights = ImportanceWeights.of_rewards(rewards, prompt_index, beta).weights
        return cls(
            beta,
            _least_share(rewards, prompt_index, beta),
            _most_nats(rewards, prompt_index, beta),
            reward_mean(rewards, prompt_index).value,
            reward_mean(rewards, prompt_index, weights).value,
            len(rewards),
        )


def _least_share(rewards: Batch, prompt_index: Tensor, beta: float) -> float:
    sizes = ImportanceWeights.of_rewards(rewards, prompt_index, beta).effective_sample_sizes
    counts = [len(own) for (own,) in by_prompt(prompt_index, rewards).values()]
    return min(size / count for size, count in zip(sizes, counts, strict=True))


def _most_nats(rewards: Batch, prompt_index: Tensor, beta: float) -> float:
    def divergence(own: Tensor) -> float:
        log_weights = torch.log_softmax(beta * own, dim=0)
        return (log_weights.exp() * log_weights).sum().item() + math.log(len(own))

    return max(divergence(own) for (own,) in by_prompt(prompt_index, rewards).values())


def beta_of_effective_share(rewards: Batch, prompt_index: Tensor, share: float) -> float:
    """The beta at which this share of the samples counts, in two digits.

    Raises:
        UserError: the reward is constant or not finite, or the samples are too few for the share.
    """
    return _beta(rewards, prompt_index, lambda b: -_least_share(rewards, prompt_index, b), -share)


def beta_of_nats(rewards: Batch, prompt_index: Tensor, nats: float) -> float:
    """The beta at which the tilt is this far from the reference, in two digits.

    Raises:
        UserError: as `beta_of_effective_share`.
    """
    most = math.log(min(_counts(prompt_index)) / FEWEST)
    if nats > most:
        raise UserError(
            f"method.beta.nats: {nats:g} is more than {min(_counts(prompt_index))} reference "
            f"samples of a prompt can tell; use {math.floor(100 * most) / 100:g} or less"
        )
    return _beta(rewards, prompt_index, lambda b: _most_nats(rewards, prompt_index, b), nats)


def _counts(prompt_index: Tensor) -> list[int]:
    return torch.unique(prompt_index, return_counts=True)[1].tolist()


def _beta(
    rewards: Batch, prompt_index: Tensor, rising: Callable[[float], float], goal: float
) -> float:
    """Where ``rising``, which does not fall with beta, reaches the goal: by bisection."""
    if not rewards.isfinite().all():
        raise UserError("method.beta: the reward of a reference sample is not finite; mend it")
    spread = max(own.std().item() for (own,) in by_prompt(prompt_index, rewards).values())
    if spread == 0.0:
        raise UserError(
            "method.beta: the reward is the same for all reference samples of a prompt, so no "
            "tilt moves them; use another reward, or give beta as a number"
        )
    low, high = 0.0, 1.0 / spread
    while rising(high) < goal:
        low, high = high, 2.0 * high
        if high * spread > STRONGEST:
            raise UserError(
                "method.beta: the reward has too few different values for a tilt of this "
                "strength; give beta as a number"
            )
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return float(f"{low:.2g}")
