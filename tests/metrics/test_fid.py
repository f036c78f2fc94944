"""The Fréchet distance of whole samples."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.fid import measure_frechet
from nablaflow.metrics.frechet import Moments, frechet_between_gaussians
from nablaflow.metrics.frechet_influence import frechet_influences
from nablaflow.metrics.quadratic import euclidean

DOUBLE = torch.float64


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    views = [View(each, torch.zeros(len(each), dtype=torch.long), euclidean) for each in (x, y)]
    return measure_frechet(*views, _resampling(0)).value


def _normals(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


SHAPES = [(200, 150, 6), (32, 200, 30), (200, 32, 30)]


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_it_is_the_textbook_formula(n: int, m: int, d: int):
    x, y = 0.3 + 1.5 * _normals(n, d, 0), _normals(m, d, 1)
    root = scipy.linalg.sqrtm(np.cov(x.T.numpy()) @ np.cov(y.T.numpy()))
    expected = _without_overlap(x, y) - 2 * np.real(np.trace(root))
    assert _distance(x, y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("swap", [False, True])
def test_it_is_the_textbook_formula_where_a_covariance_has_no_full_rank(rank: int, swap: bool):
    """A product that is singular has its root only up to rounding, so the symmetric one is taken.

    S1^{1/2} is exact here, since the first sample's covariance is made from it.
    """
    x, y = _normals(60, rank, 0) @ _normals(rank, 10, 2), 1.0 + _normals(50, 10, 1)
    u, s, _ = np.linalg.svd((x - x.mean(0)).T.numpy() / np.sqrt(59))
    half = u[:, :rank] * s[:rank] @ u[:, :rank].T
    root = scipy.linalg.sqrtm(half @ np.cov(y.T.numpy()) @ half)
    expected = _without_overlap(x, y) - 2 * np.real(np.trace(root))
    found = _distance(y, x) if swap else _distance(x, y)
    assert found == pytest.approx(expected, rel=1e-6)


def _without_overlap(x: torch.Tensor, y: torch.Tensor) -> float:
    shift = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum()
    return shift.item()


def test_known_gaussians():
    """N(0, I) against N((1, 0, 0), diag(4, 1, 9)): 1 + (1 - 2)^2 + (1 - 3)^2."""
    x = _normals(40_000, 3, 0)
    y = torch.tensor([2.0, 1.0, 3.0]) * _normals(40_000, 3, 1) + torch.tensor([1.0, 0.0, 0.0])
    assert _distance(y, x) == pytest.approx(6.0, rel=0.02)


def test_a_sample_is_at_no_distance_from_itself():
    for n, d in ((31, 30), (50, 5)):
        x = 100.0 + _normals(n, d, 0)
        assert _distance(x, x) == pytest.approx(0.0, abs=1e-8)


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
    found = frechet_influences(x, y)
    step = 1e-4
    for rows, influence, side in ((x, found.first, 0), (y, found.second, 1)):
        n = len(rows)
        counts = [torch.ones(2 * n, 14, dtype=DOUBLE), torch.ones(2 * n, 11, dtype=DOUBLE)]
        counts[side] = 1 + step * torch.cat([torch.eye(n), -torch.eye(n)]).double()
        up, down = frechet_between_gaussians(_counted(x, counts[0]), _counted(y, counts[1])).view(
            2, n
        )
        torch.testing.assert_close(influence, n * (up - down) / (2 * step), rtol=1e-6, atol=1e-6)
        assert influence.mean().item() == pytest.approx(0.0, abs=1e-12)


def _counted(points: torch.Tensor, counts: torch.Tensor) -> Moments:
    """Of a sample whose rows count so much, (replicate, n); unbiased as a mean over pairs is."""
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ points
    centred = points - mean[:, None]
    spread = torch.einsum("rn,rni,rnj->rij", share, centred, centred)
    return Moments(mean, spread / (1 - share.square().sum(1))[:, None, None])


def test_a_direction_in_which_an_image_cannot_vary_has_no_influence():
    """A dead feature, of one sample or of both: everything is finite, as if it were not there."""
    x, y = 0.5 + _normals(14, 3, 0), _normals(11, 3, 1)
    dead_x, dead_y = (torch.cat([each, torch.ones(len(each), 1)], 1) for each in (x, y))
    plain, dead = frechet_influences(x, y), frechet_influences(dead_x, dead_y)
    torch.testing.assert_close(dead.first, plain.first)
    torch.testing.assert_close(dead.second, plain.second)


@pytest.mark.parametrize("swap", [False, True])
def test_a_direction_of_one_sample_alone_counts_for_that_one(swap: bool):
    """Its variance is added to the distance, so an image's influence has what it adds to that."""
    x, y = 0.5 + _normals(14, 3, 0), _normals(11, 3, 1)
    own = _normals(11, 1, 2)
    dead_x, alive_y = torch.cat([x, torch.zeros(14, 1)], 1), torch.cat([y, own], 1)
    plain = frechet_influences(y, x) if swap else frechet_influences(x, y)
    found = frechet_influences(alive_y, dead_x) if swap else frechet_influences(dead_x, alive_y)
    deviation = (own - own.mean()).square()[:, 0]
    gained = 2 * own[:, 0].mean() * (own[:, 0] - own.mean()) + 1.1 * deviation - own.var()
    ours, theirs = (found.second, found.first)[:: -1 if swap else 1]
    ours_plain, theirs_plain = (plain.second, plain.first)[:: -1 if swap else 1]
    torch.testing.assert_close(ours, ours_plain + gained)
    torch.testing.assert_close(theirs, theirs_plain)


def test_a_prompt_with_one_image_and_features_that_are_not_finite_are_refused():
    index = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    views = [View(_normals(7, 2, seed), index, euclidean) for seed in (0, 1)]
    with pytest.raises(UserError, match="1 images of a prompt are too few"):
        measure_frechet(*views, _resampling(0))
    views = [View(view.rows, index.clamp_max(0), euclidean) for view in views]
    views[0].rows[0, 0] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 7 images are NaN or infinite"):
        measure_frechet(*views, _resampling(0))
