"""The Fréchet distance of whole samples."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.fid import frechet_of_samples, measure_frechet
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


def test_the_interval_holds_the_figure_and_is_as_wide_as_figures_scatter():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(2).repeat(30)
    values, widths = [], []
    for _ in range(40):
        x, y = (
            torch.randn(60, 3, generator=generator) + 0.8,
            torch.randn(60, 3, generator=generator),
        )
        views = (View(rows, index, euclidean) for rows in (x, y))
        found = measure_frechet(*views, Resampling(generator, 60))
        assert found.low <= found.value <= found.high
        values.append(found.value)
        widths.append((found.high - found.low) / (2 * 1.96))
    ratio = torch.tensor(widths).mean() / torch.tensor(values).std()
    assert ratio.item() == pytest.approx(1.0, abs=0.25)
