"""Kernel distance: against double loops, and unbiased."""

import math

import numpy as np
import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.catalog import METRICS
from nablaflow.metrics.contract import View
from nablaflow.metrics.kid import kernel_distance, measure_kernel_distance
from nablaflow.metrics.quadratic import euclidean

DOUBLE = torch.float64


def _loops(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 4 of arXiv 1801.01401, a pair at a time."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def _ones(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=DOUBLE)


def _normals(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_it_is_the_double_loop():
    x, y = _normals(9, 4, 0), 0.5 + 2.0 * _normals(11, 4, 1)
    found = kernel_distance(x, y, _ones(9), _ones(11)).item()
    assert found == pytest.approx(_loops(x.numpy(), y.numpy()))


def test_counts_leave_out_the_pairs_of_copies():
    """A row that counts twice weighs double with others, and makes no pair with itself."""
    x, y = _normals(6, 3, 0), _normals(5, 3, 1)
    counts = torch.tensor([[2.0, 1.0, 0.0, 1.0, 3.0, 1.0]], dtype=DOUBLE)
    kernel = (x @ x.T / 3 + 1) ** 3
    off = torch.outer(counts[0], counts[0]) * (1 - torch.eye(6, dtype=DOUBLE))
    within_y = kernel_distance(y, y, _ones(5), _ones(5)) + 2 * ((y @ y.T / 3 + 1) ** 3).mean()
    expected = (
        (off * kernel).sum() / off.sum()
        + within_y / 2
        - 2 * (counts[0] @ (x @ y.T / 3 + 1) ** 3).sum() / (counts.sum() * 5)
    )
    found = kernel_distance(x, y, counts, _ones(5))
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("n", [10, 40])
def test_equal_distributions_scatter_about_zero_at_any_number(n: int):
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(200):
        x, y = (torch.randn(n, 4, generator=generator) for _ in "xy")
        values.append(kernel_distance(x, y, _ones(n), _ones(n)).item())
    drawn = torch.tensor(values)
    assert abs(drawn.mean().item()) < 4 * drawn.std().item() / 200**0.5
    assert (drawn < 0).any()


def test_the_interval_is_as_wide_as_the_figures_scatter():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(2).repeat(30)
    values, widths = [], []
    for _ in range(100):
        x, y = (
            torch.randn(60, 3, generator=generator) + 0.8,
            torch.randn(60, 3, generator=generator),
        )
        views = (View(rows, index, euclidean) for rows in (x, y))
        found = measure_kernel_distance(*views, Resampling(generator, 60))
        values.append(found.value)
        widths.append((found.high - found.low) / (2 * 1.96))
    ratio = torch.tensor(widths).mean() / torch.tensor(values).std()
    assert ratio.item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("images", "prompts"), [(4, 1), (5, 1), (2, 2), (2, 3), (3, 2)])
def test_intervals_of_few_images_are_finite(images: int, prompts: int):
    """A draw of one image alone, over and over, has no pair; 400 draws of four meet it often."""
    index = torch.arange(prompts).repeat(images)
    views = [View(_normals(len(index), 3, seed), index, euclidean) for seed in (0, 1)]
    for seed in range(5):
        resampling = Resampling(torch.Generator().manual_seed(seed), 400)
        found = measure_kernel_distance(*views, resampling)
        assert all(map(math.isfinite, (found.low, found.value, found.high)))
        assert found.low < found.high


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [(2, 1, "use --n 4 or more"), (3, 1, "use --n 4 or more"), (1, 3, "use --n 6 or more")],
)
@pytest.mark.parametrize("short", [0, 1])
def test_too_few_images_are_refused(images: int, prompts: int, words: str, short: int):
    views = [
        View(_normals(prompts * n, 3, 0), torch.arange(prompts).repeat(n), euclidean)
        for n in ((images, 8) if short == 0 else (8, images))
    ]
    with pytest.raises(UserError, match=f"kernel distance: {images} images .*{words}"):
        measure_kernel_distance(*views, Resampling(torch.Generator()))


def test_the_catalog_asks_for_as_many_images_as_the_measurement():
    for name in ("mmd", "kid"):
        assert [METRICS[name].least(prompts, 64) for prompts in (1, 2, 5)] == [4, 4, 10]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(broken: float):
    views = [View(_normals(8, 3, seed), torch.arange(2).repeat(4), euclidean) for seed in (0, 1)]
    views[1].rows[3, 1] = broken
    with pytest.raises(UserError, match="features of 1 of 8 images are NaN or infinite"):
        measure_kernel_distance(*views, Resampling(torch.Generator()))
