"""The Fréchet distance of whole samples."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.fid import frechet_of_samples, measure_frechet
from nablaflow.metrics.frechet import Moments
from nablaflow.metrics.frechet_influence import frechet_influence
from nablaflow.metrics.quadratic import euclidean

DOUBLE = torch.float64


def _ones(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=DOUBLE)


def _normals(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (12, 200, 30), (9, 11, 40)])
def test_by_rows_and_by_moments_are_the_textbook_formula(n: int, m: int, d: int):
    x, y = 0.3 + 1.5 * _normals(n, d, 0), _normals(m, d, 1)
    s1, s2 = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    # Singular products have their root only up to rounding; a speck of noise makes it exact enough.
    root = scipy.linalg.sqrtm((s1 + 1e-11 * np.eye(d)) @ (s2 + 1e-11 * np.eye(d)))
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = shift + np.trace(s1 + s2) - 2 * np.real(np.trace(root))
    found = frechet_of_samples(x, y, _ones(n), _ones(m)).item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_known_gaussians():
    """N(0, I) against N((1, 0, 0), diag(4, 1, 9)): 1 + (1 - 2)^2 + (1 - 3)^2."""
    x = _normals(40_000, 3, 0)
    y = torch.tensor([2.0, 1.0, 3.0]) * _normals(40_000, 3, 1) + torch.tensor([1.0, 0.0, 0.0])
    ones = _ones(40_000)
    assert frechet_of_samples(y, x, ones, ones).item() == pytest.approx(6.0, rel=0.02)


def test_a_sample_is_at_no_distance_from_itself():
    for n, d in ((8, 30), (50, 5)):
        x = 100.0 + _normals(n, d, 0)
        assert frechet_of_samples(x, x, _ones(n), _ones(n)).item() == pytest.approx(0.0, abs=1e-8)


def test_counts_make_the_covariance_unbiased():
    """Over all draws it is the sample's own, and so is the distance from a single point."""
    index = torch.zeros(6, dtype=torch.long)
    counts = Resampling(torch.Generator().manual_seed(0), 1000).counts(index, distinct=2)
    x = _normals(6, 2, 0)
    point = torch.zeros(5, 2, dtype=DOUBLE)
    found = frechet_of_samples(x, point, counts, torch.ones(len(counts), 5, dtype=DOUBLE))
    # The squared mean of a draw is larger by the variance of a mean, which is spread / 6.
    spread = x.T.cov().trace().item()
    assert found[1:].mean().item() == pytest.approx(found[0].item() + spread / 6, rel=0.06)


def test_no_more_images_than_dimensions_are_refused():
    view = View(_normals(8, 8, 0), torch.zeros(8, dtype=torch.long), euclidean)
    with pytest.raises(UserError, match=r"8 images .* 8 dimensions; use --n 9"):
        measure_frechet(view, view, Resampling(torch.Generator()))


@pytest.mark.parametrize("prompts", [2, 30])
def test_the_interval_holds_the_figure_and_is_as_wide_as_figures_scatter(prompts: int):
    """At any number of images a prompt, and prompts that differ are no part of the width."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(prompts).repeat(60 // prompts)
    centre = torch.linspace(-1, 1, prompts)[index, None]
    values, widths = [], []
    for _ in range(200):
        x, y = (shift + centre + torch.randn(60, 3, generator=generator) for shift in (0.8, 0.0))
        found = measure_frechet(
            View(x, index, euclidean), View(y, index, euclidean), Resampling(generator)
        )
        assert found.low <= found.value <= found.high
        values.append(found.value)
        widths.append((found.high - found.low) / (2 * 1.96))
    ratio = torch.tensor(widths).mean() / torch.tensor(values).std()
    assert ratio.item() == pytest.approx(1.0, abs=0.15)


def test_intervals_hold_the_distance_of_the_gaussians():
    """N(0.8, 1.5^2 I) against N(0, I) in three dimensions: 3 (0.8^2 + 0.5^2)."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(4).repeat(250)
    held = 0
    for _ in range(300):
        x, y = (torch.randn(1000, 3, generator=generator) for _ in "xy")
        found = measure_frechet(
            View(1.5 * x + 0.8, index, euclidean), View(y, index, euclidean), Resampling(generator)
        )
        held += found.low <= 3 * (0.8**2 + 0.5**2) <= found.high
    assert 0.91 <= held / 300 <= 0.98


def test_the_interval_lies_about_the_figure_and_nothing_is_drawn():
    index = torch.arange(2).repeat(20)
    views = [View(_normals(40, 3, seed) + seed, index, euclidean) for seed in (0, 1)]
    first, again = (measure_frechet(*views, _resampling(seed)) for seed in (0, 1))
    assert first == again
    assert first.high - first.value == pytest.approx(first.value - first.low)
    wider = measure_frechet(*views, _resampling(0, level=0.99))
    assert wider.high - wider.value == pytest.approx(
        2.5758 / 1.96 * (first.high - first.value), 1e-3
    )


def _resampling(seed: int, level: float = 0.95) -> Resampling:
    return Resampling(torch.Generator().manual_seed(seed), level=level)


def test_the_influence_is_the_derivative_of_the_distance_by_an_images_weight():
    """Counting 1 + h instead of 1 moves an image's share by h / n."""
    x, y = 0.5 + 1.5 * _normals(14, 4, 0), _normals(11, 4, 1)
    first, second = _moments(x, y)
    step = 1e-4
    for rows, influence, side in (
        (x, frechet_influence(x, first, second), 0),
        (y, frechet_influence(y, second, first), 1),
    ):
        n = len(rows)
        moved = torch.stack([1 + h * torch.eye(n, dtype=DOUBLE) for h in (step, -step)])
        counts = [torch.ones(2 * n, 14, dtype=DOUBLE), torch.ones(2 * n, 11, dtype=DOUBLE)]
        counts[side] = moved.flatten(0, 1)
        up, down = frechet_of_samples(x, y, *counts).view(2, n)
        torch.testing.assert_close(influence, n * (up - down) / (2 * step), rtol=1e-6, atol=1e-6)
        assert influence.mean().item() == pytest.approx(0.0, abs=1e-12)


def test_a_direction_in_which_an_image_cannot_vary_has_no_influence():
    """A dead feature, of one sample or of both: everything is finite, as if it were not there."""
    x, y = 0.5 + _normals(14, 3, 0), _normals(11, 3, 1)
    dead_x, dead_y = (torch.cat([each, torch.ones(len(each), 1)], 1) for each in (x, y))
    alive_y = torch.cat([y, 1.0 + _normals(11, 1, 2)], 1)
    plain = frechet_influence(x, *_moments(x, y))
    torch.testing.assert_close(frechet_influence(dead_x, *_moments(dead_x, dead_y)), plain)
    assert frechet_influence(dead_x, *_moments(dead_x, alive_y)).isfinite().all()
    assert frechet_influence(alive_y, *_moments(alive_y, dead_x)).isfinite().all()


def _moments(*samples: torch.Tensor) -> list[Moments]:
    return [Moments(each.mean(0), each.T.cov()) for each in samples]


def test_a_prompt_with_one_image_and_features_that_are_not_finite_are_refused():
    index = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    views = [View(_normals(7, 2, seed), index, euclidean) for seed in (0, 1)]
    with pytest.raises(UserError, match="1 images of a prompt are too few"):
        measure_frechet(*views, _resampling(0))
    views = [View(view.rows, index.clamp_max(0), euclidean) for view in views]
    views[0].rows[0, 0] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 7 images are NaN or infinite"):
        measure_frechet(*views, _resampling(0))
