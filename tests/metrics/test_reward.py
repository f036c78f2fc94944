"""Mean reward, plain and by importance weights."""

import math

import pytest
import torch

from nablaflow.metrics import Estimate, reward_mean
from nablaflow.metrics.reward import weighted_mean

ONE_PROMPT = torch.zeros(200, dtype=torch.long)


def test_without_weights_it_is_the_textbook_mean_and_error():
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = reward_mean(rewards, torch.zeros(4, dtype=torch.long))
    assert result.value == pytest.approx(3.0)
    assert result.se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))


def test_prompts_count_equally_and_their_difference_is_no_error():
    rewards = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0, 5.0])
    assert reward_mean(rewards, torch.tensor([0, 0, 0, 0, 1, 1])) == Estimate(3.0, 0.0)


def test_equal_weights_of_any_scale_change_nothing():
    rewards = torch.randn(200, generator=torch.Generator().manual_seed(0))
    plain = reward_mean(rewards, ONE_PROMPT)
    weighted = reward_mean(rewards, ONE_PROMPT, torch.full((200,), 0.3))
    assert weighted.value == pytest.approx(plain.value)
    assert weighted.se == pytest.approx(plain.se)


def test_tilted_gaussian_is_recovered_and_its_error_is_the_spread(repeat):
    """N(0, 1) tilted by exp(beta x) is N(beta, 1)."""
    beta = 0.5

    def estimate(generator: torch.Generator) -> Estimate:
        x = torch.randn(400, generator=generator, dtype=torch.float64)
        return weighted_mean(x, (beta * x).exp())

    draws = repeat(estimate)
    # The ratio's bias, -cov(w, w (x - beta)) / n = -beta exp(beta^2) / n to first order.
    bias = -beta * math.exp(beta**2) / 400
    assert draws.is_unbiased_for(beta + bias)
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)


def test_rewards_that_are_all_the_same_have_that_mean_and_no_error():
    values = torch.full((600,), 0.3, dtype=torch.float64)
    weights = torch.linspace(0.1, 1.0, 600, dtype=torch.float64)
    found = reward_mean(values, torch.zeros(600, dtype=torch.long), weights)
    assert (found.value, found.se) == (0.3, 0.0)
