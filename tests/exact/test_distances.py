"""Distances of samples against brute force, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nablaflow.exact.distances import (
    energy_distance,
    log_det_covariance,
    mode_weight_error,
    sliced_wasserstein,
)
from nablaflow.exact.mixture import GaussianMixture


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute_force(x: Tensor, y: Tensor) -> float:
    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.linalg.norm(p - q) for p in a for q in b]))

    a, b = x.double().numpy(), y.double().numpy()
    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def test_energy_distance_of_known_points() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    # 2 * (0 + 3 + 1 + 2) / 4 - 1 / 2 - 3 / 2, where the unbiased form has - 1 - 3.
    assert energy_distance(x, y) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "m", "dim"), [(2, 3, 1), (40, 40, 2), (30, 50, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_distance_is_that_over_all_pairs(
    n: int, m: int, dim: int, dtype: torch.dtype
) -> None:
    x, y = normal(n, dim, seed=0).to(dtype), (1.5 * normal(m, dim, seed=1) + 0.3).to(dtype)
    assert energy_distance(x, y) == pytest.approx(brute_force(x, y), rel=1e-9)
    assert energy_distance(y, x) == pytest.approx(brute_force(x, y), rel=1e-9)


def test_energy_distance_is_the_square_of_scipys() -> None:
    """With more pairs than are held at a time."""
    x, y = normal(3000, 1, seed=0), 1.1 * normal(2500, 1, seed=1) + 0.1
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_is_exact_far_from_the_origin_and_at_equal_points() -> None:
    """Where squares of coordinates cancel: 40 points are enough for torch to expand them."""
    x = normal(40, 2, seed=0)
    y = torch.cat([x[:20] + 1e-6, x[20:]])
    assert energy_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert energy_distance(x + 1e5, 1.2 * y + 1e5) == pytest.approx(
        brute_force(x, 1.2 * y), rel=1e-6
    )


def test_energy_distance_of_shifted_normals() -> None:
    """|X - Y| with X - Y ~ N(1, 2) is a folded normal; the floor comes on top."""
    folded = 2 / math.sqrt(math.pi) * math.exp(-1 / 4) + math.erf(1 / 2)
    exact = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    n = 200
    pairs = ((normal(n, 1, seed=2 * s), normal(n, 1, seed=2 * s + 1) + 1.0) for s in range(200))
    found = np.array([energy_distance(x, y) for x, y in pairs])
    floor = 2 * 2 / math.sqrt(math.pi) / n
    error = found.std(ddof=1) / len(found) ** 0.5
    assert found.mean() == pytest.approx(exact + floor, abs=4 * error)
    assert error < 0.02 * exact


@pytest.mark.parametrize("n", [20, 100])
def test_the_floor_between_exact_samples(n: int) -> None:
    """2 E|X - X'| / n, where X - X' ~ N(0, 2 I) in the plane has the mean length sqrt(pi)."""
    pairs = ((normal(n, 2, seed=2 * s), normal(n, 2, seed=2 * s + 1)) for s in range(300))
    found = np.array([energy_distance(x, y) for x, y in pairs])
    assert found.min() > 0
    error = found.std(ddof=1) / len(found) ** 0.5
    assert found.mean() == pytest.approx(2 * math.sqrt(math.pi) / n, abs=4 * error)
    assert error < 0.04 * found.mean()


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_sliced_wasserstein_of_a_shift(dim: int) -> None:
    """Along u each point moves by d.u, and the mean of (d.u)^2 over directions is |d|^2 / dim."""
    x, shift = normal(50, dim, seed=0), normal(dim, seed=1)
    shuffled = x[torch.randperm(50, generator=generator())]
    found = sliced_wasserstein(x, shuffled + shift, generator(), projections=20_000) ** 2
    # (d.u)^2 / |d|^2 is Beta(1/2, (dim - 1) / 2), or 1 on the line.
    spread = stats.beta(0.5, (dim - 1) / 2).std() if dim > 1 else 1e-12
    squared = shift.square().sum().item()
    assert found == pytest.approx(squared / dim, abs=4 * squared * spread / 20_000**0.5)


def test_sliced_wasserstein_on_the_line_is_the_distance_itself() -> None:
    """Which is the integral of the squared difference of the quantile functions."""
    x, y = normal(4000, 1, seed=0), 2.0 * normal(4000, 1, seed=1) + 1.0
    found = sliced_wasserstein(x, y, generator(), projections=3)
    quantiles = (np.arange(1_000) + 0.5) / 1_000
    by_hand = np.quantile(x, quantiles) - np.quantile(y, quantiles)
    assert found == pytest.approx(np.mean(by_hand**2) ** 0.5, rel=0.01)
    assert found == pytest.approx(math.sqrt(1.0 + 1.0), rel=0.06)  # mean and spread


def test_sliced_wasserstein_of_normals_in_the_plane() -> None:
    """N(0, I) and N(0, 9 I): along every direction the spreads are 1 and 3."""
    x, y = normal(20_000, 2, seed=0), 3.0 * normal(20_000, 2, seed=1)
    assert sliced_wasserstein(x, y, generator(), projections=50) == pytest.approx(2.0, rel=0.02)
    assert sliced_wasserstein(x, x, generator()) == 0.0


def test_sliced_wasserstein_takes_float32_and_follows_the_generator() -> None:
    x, y = normal(100, 3, seed=0).float(), normal(100, 3, seed=1).float()
    first, again, other = (sliced_wasserstein(x, y, generator(s)) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert first == sliced_wasserstein(x.double(), y.double(), generator(0))


def test_sliced_wasserstein_wants_one_size() -> None:
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(6, 2\); give one size"):
        sliced_wasserstein(torch.zeros(5, 2), torch.zeros(6, 2), generator())


OVERLAPPING = GaussianMixture(
    [[0.0, 0.0], [0.8, 0.0], [0.0, 1.0]],
    [torch.eye(2), 2 * torch.eye(2), 0.5 * torch.eye(2)],
    [0.5, 0.2, 0.3],
)


def test_mode_weight_error_of_exact_samples_is_monte_carlo_error() -> None:
    n = 100_000
    x = OVERLAPPING.sample(n, generator())
    found = mode_weight_error(x, OVERLAPPING, OVERLAPPING.weights)
    assert found < 4 * 0.5 / n**0.5  # a share in [0, 1] has at most this spread
    # By the nearest mean it would not be: the components overlap.
    nearest = torch.cdist(x, OVERLAPPING.means).argmin(1).bincount() / n
    assert (nearest - OVERLAPPING.weights).abs().max() > 0.05


def test_mode_weight_error_by_hand() -> None:
    """Equal round components at -1 and 1: the first has the probability 1 / (1 + exp(2 x))."""
    modes = GaussianMixture([[-1.0], [1.0]], [[[1.0]], [[1.0]]])
    x = torch.tensor([[0.3], [-0.7], [2.0]])
    first = np.mean(1 / (1 + np.exp(2 * np.array([0.3, -0.7, 2.0]))))
    found = mode_weight_error(x, modes, torch.tensor([0.9, 0.1]))
    assert found == pytest.approx(0.9 - first, abs=1e-6)


def test_mode_weight_error_of_a_mode_that_was_dropped() -> None:
    modes = GaussianMixture([[-9.0], [0.0], [9.0]], [[[1.0]]] * 3, [0.5, 0.3, 0.2])
    x = normal(1000, 1, seed=0)
    assert mode_weight_error(x, modes, modes.weights) == pytest.approx(0.7, abs=1e-4)
    assert mode_weight_error(x, modes, torch.tensor([0.0, 1.0, 0.0])) < 1e-4


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_log_det_covariance_is_numpys(dim: int) -> None:
    x = normal(100, dim, seed=0) @ normal(dim, dim, seed=1) + 50.0
    expected = np.linalg.slogdet(np.atleast_2d(np.cov(x.numpy(), rowvar=False)))[1]
    assert log_det_covariance(x) == pytest.approx(expected, rel=1e-9)
    assert log_det_covariance(x.float()) == pytest.approx(expected, abs=1e-3)


def test_log_det_covariance_of_a_mixture_and_of_its_collapse() -> None:
    x = OVERLAPPING.sample(100_000, generator())
    exact = np.linalg.slogdet(OVERLAPPING.covariance.numpy())[1]
    assert log_det_covariance(x) == pytest.approx(exact, abs=0.03)
    assert log_det_covariance(0.1 * x) == pytest.approx(exact - 2 * math.log(100), abs=0.03)
