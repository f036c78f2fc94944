"""Importance weights of the tilt."""

import math

import pytest
import torch

from nablaflow.metrics import MIN_EFFECTIVE_SAMPLE_SIZE, ImportanceWeights
from nablaflow.metrics.tilt import effective_sample_size


def test_effective_sample_size_at_its_ends():
    assert effective_sample_size(torch.full((7,), 3.0)) == pytest.approx(7.0)
    assert effective_sample_size(torch.tensor([0.0, 2.0, 0.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_effective_sample_size_of_a_tilted_gaussian(beta: float):
    """For r = x ~ N(0, 1): E[w]^2 / E[w^2] = exp(-beta^2)."""
    n = 200_000
    rewards = torch.randn(n, generator=torch.Generator().manual_seed(0))
    weights = ImportanceWeights.of_rewards(rewards, torch.zeros(n, dtype=torch.long), beta)
    assert weights.effective_sample_size == pytest.approx(n * math.exp(-(beta**2)), rel=0.03)


def test_weights_are_proportional_to_the_tilt_within_each_prompt_only():
    index = torch.tensor([1, 0, 1, 0, 1])
    rewards = torch.tensor([0.0, 100.0, 1.0, 102.0, 2.0])
    weights = ImportanceWeights.of_rewards(rewards, index, beta=0.5).weights
    assert weights[index == 0].sum().item() == pytest.approx(1.0)
    assert weights[index == 1].sum().item() == pytest.approx(1.0)
    assert (weights[3] / weights[1]).item() == pytest.approx(math.exp(1.0))
    assert (weights[4] / weights[0]).item() == pytest.approx(math.exp(1.0))


def test_large_log_weights_do_not_overflow():
    rewards = torch.tensor([0.0, 1e4, 1e4])
    weights = ImportanceWeights.of_rewards(rewards, torch.zeros(3, dtype=torch.long), beta=10.0)
    assert weights.weights.tolist() == [0.0, 0.5, 0.5]


def test_one_bad_prompt_makes_the_whole_untrustworthy():
    n = MIN_EFFECTIVE_SAMPLE_SIZE + 1
    index = torch.arange(2).repeat_interleave(n)
    rewards = torch.zeros(2 * n)
    assert ImportanceWeights.of_rewards(rewards, index, beta=1.0).trustworthy
    rewards[0] = 3.0
    spoiled = ImportanceWeights.of_rewards(rewards, index, beta=1.0)
    assert spoiled.effective_sample_sizes[1] == pytest.approx(n)
    assert spoiled.effective_sample_size == spoiled.effective_sample_sizes[0] < n
    assert not spoiled.trustworthy
