"""Energy distance."""

import math

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics import Cloud, Estimate, clouds, energy_distance, energy_distance_by_prompt


def _normal_shift(shift: float) -> float:
    """Of N(0, 1) and N(shift, 1): X - Y ~ N(shift, 2), a folded normal."""
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    return 2 * folded - 2 * 2 / math.sqrt(math.pi)


def test_known_points():
    first, second = Cloud.of(torch.tensor([[0.0], [1.0]])), Cloud.of(torch.tensor([[0.0], [3.0]]))
    # 2 * (0 + 3 + 1 + 2) / 4 - 1 - 3
    assert energy_distance(first, second).value == pytest.approx(-1.0)


def test_it_is_symmetric():
    generator = torch.Generator().manual_seed(0)
    first, second = (Cloud.of(torch.randn(n, 3, generator=generator)) for n in (20, 30))
    forth, back = energy_distance(first, second), energy_distance(second, first)
    assert (forth.value, forth.se) == pytest.approx((back.value, back.se))


def test_uniforms():
    """U(0, 1) and U(1, 2): 2 * 1 - 1/3 - 1/3."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2000, 1, generator=generator) for _ in range(2))
    result = energy_distance(Cloud.of(first), Cloud.of(second + 1.0))
    assert result.value == pytest.approx(4 / 3, abs=4 * result.se)
    assert result.se < 0.03


def test_shifted_normals_and_the_error_is_the_spread(repeat):
    def estimate(generator: torch.Generator) -> Estimate:
        first, second = (torch.randn(n, 1, generator=generator) for n in (60, 90))
        return energy_distance(Cloud.of(first), Cloud.of(second + 1.0))

    draws = repeat(estimate)
    assert draws.is_unbiased_for(_normal_shift(1.0))
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)


def test_equal_distributions_scatter_about_zero_and_the_error_is_at_most_too_large(repeat):
    def estimate(generator: torch.Generator) -> Estimate:
        return energy_distance(*(Cloud.of(torch.randn(60, 2, generator=generator)) for _ in "xy"))

    draws = repeat(estimate)
    assert draws.is_unbiased_for(0.0)
    assert (draws.values < 0).any()
    assert draws.error_over_spread == pytest.approx(math.sqrt(2.0), rel=0.25)


def test_weighted_normal_stands_for_its_tilt(repeat):
    """N(0, 1) weighted by exp(x / 2) is N(1/2, 1): zero distance from that, known from others."""

    def to(mean: float):
        def estimate(generator: torch.Generator) -> Estimate:
            x, y = (torch.randn(n, 1, generator=generator) for n in (100, 400))
            return energy_distance(Cloud.of(x + mean), Cloud.of(y, (0.5 * y[:, 0]).exp()))

        return repeat(estimate, times=200)

    exact, off = to(0.5), to(1.5)
    assert exact.values.mean().item() == pytest.approx(0.0, abs=0.003)
    assert off.values.mean().item() == pytest.approx(_normal_shift(1.0), rel=0.03)
    assert off.error_over_spread == pytest.approx(1.0, abs=0.25)


def test_prompts_are_compared_each_with_its_own():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(2).repeat(200)
    features = torch.randn(400, 1, generator=generator) + 5.0 * index[:, None]
    again = torch.randn(400, 1, generator=generator) + 5.0 * index[:, None]
    known = clouds(again, index)
    result = energy_distance_by_prompt(clouds(features, index), known)
    assert result.value == pytest.approx(0.0, abs=4 * result.se)
    swapped = energy_distance_by_prompt(clouds(features, 1 - index), known)
    assert swapped.value == pytest.approx(_normal_shift(5.0), rel=0.05)


def test_a_prompt_without_reference_is_refused():
    sample = clouds(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(UserError, match=r"\[1\]"):
        energy_distance_by_prompt(sample, {0: sample[0]})
