"""What the rewards of the package say of the reference samples that ship with the package.

Features and scores of a shipped bank, so that thousands of images need not be decoded for them;
``benchmarks/shipped_scores.py`` writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.evaluation.bank import spread
from nablaflow.evaluation.sampled import Sampled
from nablaflow.evaluation.shares import all_of_them
from nablaflow.metrics.summary import SampleSet
from nablaflow.rewards import REWARDS, SCORED, NamedReward, load
from nablaflow.rewards.fitted import FittedReward
from nablaflow.storage.cached import key_of, read_cached

FEATURES = "features"


@dataclass(frozen=True)
class ScoredBank:
    """A whole bank's features and scores, prompts in turns."""

    features: Tensor
    rewards: Tensor
    prompts: int

    def rows(self, which: Tensor) -> Sampled:
        """Some of it, in that order, without images."""
        index = spread(len(self.rewards), self.prompts)
        samples = SampleSet(self.features[which], self.rewards[which], index[which])
        return Sampled(samples, torch.empty(0, 3, 1, 1), [])


def shipped_scores(key: str, reward: NamedReward, prompts: int) -> ScoredBank | None:
    """Those of a bank by a reward; None where they do not ship.

    Args:
        key: of the bank, see `nablaflow.evaluation.bank.states_key`.
        prompts: how many it is of.
    """
    found = None
    path = next((p for p in map(nano.scores_path, nano.MODELS) if key_of(p) == key), None)
    if path is not None and is_of_the_package(reward):
        found = read_cached(path, key)
    if not all_of_them(found is not None) or found is None:
        return None
    return ScoredBank(found[FEATURES].float(), found[reward.name], prompts)


def is_of_the_package(reward: NamedReward) -> bool:
    """Whether it is one of `SCORED`, and not another of that name or of other settings."""
    if reward.name not in SCORED:
        return False
    if reward.name in REWARDS:
        return reward.function is REWARDS[reward.name]
    own, given = load(reward.name).function, reward.function
    if not (isinstance(own, FittedReward) and isinstance(given, FittedReward)):
        return False
    heads, others = own.heads.tensors(), given.heads.tensors()
    return (own.name, own.weights, own.pessimism) == (
        given.name,
        given.weights,
        given.pessimism,
    ) and all(torch.equal(value, others[name]) for name, value in heads.items())
