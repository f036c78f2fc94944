"""Fréchet distance."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nablaflow.metrics import Estimate, Projection, frechet_distance, frechet_to_reweighted
from nablaflow.metrics.frechet import Moments, frechet_between_gaussians, has_full_rank

DOUBLE = torch.float64


def _one_prompt(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.long)


def test_diagonal_gaussians():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    first = Moments(torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([4.0, 1.0])))
    second = Moments(torch.tensor([0.0, 2.0]), torch.diag(torch.tensor([1.0, 9.0])))
    assert frechet_between_gaussians(first, second).item() == pytest.approx(1 + 4 + 1 + 4)


def test_general_gaussians_agree_with_scipy():
    roots = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    s1, s2 = roots @ roots.mT
    zero = torch.zeros(5, dtype=DOUBLE)
    root = np.real(np.asarray(scipy.linalg.sqrtm((s1 @ s2).numpy())))
    expected = (s1.trace() + s2.trace()).item() - 2 * root.trace()
    result = frechet_between_gaussians(Moments(zero, s1), Moments(zero, s2))
    assert result.item() == pytest.approx(expected)


def test_samples_of_shifted_and_scaled_gaussians_and_the_error_is_the_spread(repeat):
    scale = torch.tensor([2.0, 1.0, 0.5])
    truth = 0.25 * 3 + 0.25 * scale.square().sum().item()

    def estimate(generator: torch.Generator) -> Estimate:
        x, y = (torch.randn(n, 3, generator=generator) * scale for n in (100, 150))
        return frechet_distance(0.5 * x + 0.5, _one_prompt(100), y, _one_prompt(150))

    draws = repeat(estimate)
    assert draws.is_unbiased_for(truth)
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("n", [32, 128])
def test_equal_distributions_scatter_about_zero_at_any_size(repeat, n: int):
    """The bias of the plug-in value is taken off but for a tenth, at no cost in spread."""
    plug_in = []

    def estimate(generator: torch.Generator) -> Estimate:
        x, y = (torch.randn(m, 16, generator=generator) for m in (n, 1000))
        moments = (Moments(each.mean(0), each.T.cov()) for each in (x, y))
        plug_in.append(frechet_between_gaussians(*moments).item())
        return frechet_distance(x, _one_prompt(n), y, _one_prompt(1000))

    draws = repeat(estimate, times=50)
    biased = torch.tensor(plug_in)
    assert biased.mean() > 4 * biased.std()
    assert abs(draws.values.mean()) < 0.1 * biased.mean()
    assert draws.values.std() < 1.2 * biased.std()
    assert 1.0 < draws.error_over_spread < 1.7


def test_a_tilted_gaussian_is_as_far_as_its_mean_moves_and_the_error_is_the_spread(repeat):
    """N(0, 1) weighted by exp(x / 2) is N(1/2, 1), at squared distance 1/4."""

    def estimate(generator: torch.Generator) -> Estimate:
        x = torch.randn(600, 1, generator=generator)
        return frechet_to_reweighted(x, _one_prompt(600), (0.5 * x[:, 0]).exp())

    draws = repeat(estimate)
    assert draws.values.mean().item() == pytest.approx(0.25, abs=0.01)
    assert draws.error_over_spread == pytest.approx(1.0, abs=0.25)


def test_equal_weights_are_no_distance_and_no_error():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    result = frechet_to_reweighted(x, _one_prompt(100), torch.full((100,), 0.2))
    assert (result.value, result.se) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_weights_match_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 2, generator=generator) for _ in range(2))
    weights = torch.randint(1, 3, (300,), generator=generator).double()
    repeated = x.repeat_interleave(weights.long(), dim=0)
    weighted = frechet_distance(x, _one_prompt(300), y, _one_prompt(300), weights=weights)
    plain = frechet_distance(repeated, _one_prompt(len(repeated)), y, _one_prompt(300))
    assert weighted.value == pytest.approx(plain.value, abs=0.01)


def test_prompts_are_compared_each_with_its_own():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(2).repeat(500)
    x, y = (torch.randn(1000, 1, generator=generator) + 4.0 * index[:, None] for _ in range(2))
    near = frechet_distance(x, index, y, index)
    assert near.value == pytest.approx(0.0, abs=4 * near.se)
    assert frechet_distance(x, 1 - index, y, index).value == pytest.approx(16.0, rel=0.05)


def test_projection_finds_the_directions_of_most_variance_in_order():
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=DOUBLE))
    scale = torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1, 0.1], dtype=DOUBLE)
    features = 7.0 + (torch.randn(2000, 6, generator=generator, dtype=DOUBLE) * scale) @ axes.T
    projection = Projection.fit(features, dim=2)
    alignment = (projection.basis.T @ axes[:, :2]).abs()
    torch.testing.assert_close(alignment, torch.eye(2, dtype=DOUBLE), atol=0.02, rtol=0)
    projected = projection.apply(features)
    torch.testing.assert_close(projected.mean(0), torch.zeros(2, dtype=DOUBLE))
    torch.testing.assert_close(projected.std(0), scale[:2], rtol=0.05, atol=0)


def test_projection_is_no_wider_than_the_features():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    projection = Projection.fit(features)
    assert projection.dim == 3
    torch.testing.assert_close(
        torch.cdist(projection.apply(features), projection.apply(features)),
        torch.cdist(features.double(), features.double()),
    )


def test_too_few_rows_in_any_prompt_is_not_full_rank():
    index = torch.tensor([0] * 10 + [1] * 7)
    assert has_full_rank(index, 3)
    assert not has_full_rank(index, 4)
