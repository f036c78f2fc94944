"""Bootstrap intervals: they cover what is known, at any number of images a prompt."""

import math

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import (
    Resampling,
    error_of_mean,
    measured,
    measured_with_error,
    prompt_means,
)
from nablaflow.metrics.contract import View
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.pair_diversity import measure_diversity
from nablaflow.metrics.quadratic import euclidean
from nablaflow.metrics.scores import measure_clip_score, measure_reward


def _resampling(seed: int = 0, replicates: int = 100) -> Resampling:
    return Resampling(torch.Generator().manual_seed(seed), replicates)


def _coverage(measure, truth: float, draw, times: int = 200) -> float:
    """Share of intervals, each of fresh data, that hold the truth."""
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(times):
        view = draw(generator)
        found = measure(view, view, Resampling(generator, 100))
        held += found.low <= truth <= found.high
    return held / times


@pytest.mark.parametrize("images", [2, 4, 20])
def test_intervals_of_a_mean_cover_it_at_any_number_of_images_a_prompt(images: int):
    """m draws of m would give 0.83 of the truth's intervals at two images a prompt."""
    index = torch.arange(80 // images).repeat(images)

    def draw(generator: torch.Generator) -> View:
        return View(torch.randn(80, generator=generator) + index, index, euclidean)

    truth = index.double().mean().item()
    assert 0.91 < _coverage(measure_reward, truth, draw) < 0.98


def test_intervals_of_a_pair_mean_cover_it():
    """E|x - x'| = 2 / sqrt(pi) for N(0, 1); pairs of a row with itself would pull it down."""
    index = torch.arange(4).repeat(8)

    def draw(generator: torch.Generator) -> View:
        return View(torch.randn(32, 1, generator=generator), index, euclidean)

    assert 0.9 < _coverage(measure_diversity, 2 / math.sqrt(math.pi), draw, 200) < 0.99


def test_replicates_of_a_pair_mean_have_no_bias():
    index = torch.zeros(12, dtype=torch.long)
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = _resampling(replicates=4000).counts(index, distinct=2)
    off = ~torch.eye(12, dtype=torch.bool)
    distances = torch.cdist(x, x)
    pairs = [(torch.outer(c, c) * off) for c in counts]
    values = torch.stack([(p * distances).sum() / p.sum() for p in pairs])
    assert values[1:].mean().item() == pytest.approx(values[0].item(), rel=0.01)


def test_the_counts_of_each_prompt_add_up_to_its_images():
    index = torch.tensor([0, 1, 0, 1, 1, 0, 0])
    counts = _resampling().counts(index)
    assert (counts[0] == 1).all()
    for prompt, size in ((0, 4), (1, 3)):
        sums = counts[:, index == prompt].sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, size))


def test_two_different_images_are_drawn_where_asked_for():
    counts = _resampling(replicates=2000).counts(torch.zeros(3, dtype=torch.long), distinct=2)
    assert ((counts > 0).sum(1) >= 2).all()


def test_the_generator_decides():
    index = torch.zeros(9, dtype=torch.long)
    first, again, other = (_resampling(seed).counts(index) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_shift_that_all_replicates_share_does_not_move_the_interval():
    """The number of distinct rows is the sample's own only for the sample itself."""
    index = torch.zeros(50, dtype=torch.long)
    resampling = _resampling()
    counts = resampling.counts(index)
    found = measured(lambda c: (c > 0).double().sum(1), resampling, counts, n=50)
    assert found.value == 50
    assert found.low < 50 < found.high


def test_bounds_hold_the_interval():
    resampling = _resampling()
    counts = resampling.counts(torch.zeros(5, dtype=torch.long))
    found = measured(lambda c: c[:, 0], resampling, counts, n=5, bounds=(0.5, 1.0))
    assert 0.5 <= found.low <= found.value <= found.high <= 1.0


def test_means_are_taken_within_prompts_first():
    values = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    index = torch.tensor([0, 0, 1])
    ones = torch.ones(1, 3, dtype=torch.float64)
    assert prompt_means(values, index, ones).item() == pytest.approx((2.0 + 10.0) / 2)


@pytest.mark.parametrize(
    ("measure", "images", "words"),
    [
        (measure_reward, 1, "reward: 1 images .* 2 are needed; use --n 6"),
        (measure_clip_score, 1, "clip-score"),
        (measure_diversity, 3, "diversity: 3 images .* 4 are needed; use --n 12"),
    ],
)
def test_too_few_images_are_refused_with_the_number_that_would_do(measure, images, words):
    index = torch.arange(3).repeat(images)
    view = View(torch.zeros(len(index), 1), index, euclidean)
    with pytest.raises(UserError, match=words):
        measure(view, view, _resampling())


def test_the_error_of_a_mean_is_the_spread_of_its_replicates():
    """Prompts of unequal size that differ: only the spread within each counts."""
    index = torch.tensor([0] * 2 + [1] * 5 + [2] * 9)
    values = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values * (1 + index) + 10 * index
    replicates = _resampling(replicates=20_000).counts(index)[1:] @ values / 16
    assert error_of_mean(values, index) == pytest.approx(replicates.std().item(), rel=0.03)


def test_a_normal_interval_is_cut_at_the_bounds():
    found = measured_with_error(1.0, 2.0, 0.95, n=3, bounds=(0.0, 10.0))
    assert (found.low, found.value, found.n) == (0.0, 1.0, 3)
    assert found.high == pytest.approx(1.0 + 1.96 * 2.0, rel=1e-4)


def test_it_is_plain_data():
    assert Estimate(1.0, 0.4, (0.5, 2.0), 8).as_dict() == {
        "value": 1.0,
        "low": 0.5,
        "high": 2.0,
        "n": 8,
    }
