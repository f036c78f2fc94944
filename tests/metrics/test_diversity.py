"""Within-prompt diversity."""

import math

import pytest
import torch

from nablaflow.metrics import Estimate, diversity

TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5


def test_known_points():
    features = torch.cat([TRIANGLE, torch.tensor([[9.0, 9.0], [9.0, 9.0]])])
    index = torch.tensor([0, 0, 0, 1, 1])
    assert diversity(features[:3], index[:3]).value == pytest.approx(4.0)
    assert diversity(features, index).value == pytest.approx(2.0)


def test_weights_count_pairs():
    index = torch.zeros(3, dtype=torch.long)
    weights = torch.tensor([1.0, 2.0, 3.0])
    expected = (1 * 2 * 3 + 1 * 3 * 4 + 2 * 3 * 5) / (1 * 2 + 1 * 3 + 2 * 3)
    assert diversity(TRIANGLE, index, weights).value == pytest.approx(expected)
    equal = diversity(TRIANGLE, index, torch.full((3,), 5.0))
    plain = diversity(TRIANGLE, index)
    assert (equal.value, equal.se) == pytest.approx((plain.value, plain.se))


def test_collapse_has_none():
    copies = torch.rand(1, 192, generator=torch.Generator().manual_seed(0)).expand(64, -1)
    result = diversity(copies, torch.zeros(64, dtype=torch.long))
    assert result.value == pytest.approx(0.0, abs=1e-6)


def test_gaussian_is_recovered_and_its_error_is_the_spread(repeat):
    """E|x - x'| = 2 / sqrt(pi) for N(0, 1)."""
    index = torch.arange(2).repeat(40)

    def estimate(generator: torch.Generator) -> Estimate:
        return diversity(torch.randn(80, 1, generator=generator), index)

    draws = repeat(estimate)
    assert draws.is_unbiased_for(2 / math.sqrt(math.pi))
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)


def test_tilted_gaussian_keeps_its_width_and_its_error_is_the_spread(repeat):
    """N(0, 1) tilted by exp(x / 2) is N(1/2, 1), which is as wide."""
    index = torch.zeros(400, dtype=torch.long)

    def estimate(generator: torch.Generator) -> Estimate:
        x = torch.randn(400, 1, generator=generator)
        return diversity(x, index, (0.5 * x[:, 0]).exp())

    draws = repeat(estimate, times=200)
    assert draws.values.mean().item() == pytest.approx(2 / math.sqrt(math.pi), rel=0.01)
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)
