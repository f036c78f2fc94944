"""The gauge against Gaussian rewards, whose tilts are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from nablaflow.comparison.gauge import Gauge, ScoredSamples
from nablaflow.comparison.outcome import tilt_curve
from nablaflow.metrics import SampleSet
from nablaflow.progress import unseen
from nablaflow.rewards import NamedReward

N, SPREAD = 10_000, 0.5


def bank(n: int = N) -> SampleSet:
    """Rewards with the quantiles of a normal distribution, for each of two prompts."""
    normal = torch.distributions.Normal(0.0, SPREAD)
    rewards = normal.icdf((torch.arange(n // 2) + 0.5) / (n // 2)).repeat_interleave(2)
    features = torch.stack([rewards, torch.zeros(n)], 1)
    return SampleSet(features, rewards, torch.arange(n) % 2)


def test_the_default_beta_leaves_a_third_of_the_bank():
    # Kish's share of exp(beta r) with r normal is exp(-beta^2 s^2).
    exact = math.sqrt(math.log(3.0)) / SPREAD
    reward = NamedReward("r", lambda images, prompts: images.mean((1, 2, 3)))
    found = Gauge.of(reward, None, None, ["a", "b"], ScoredSamples(bank(), None))
    assert found.beta == pytest.approx(exact, rel=0.03)


def gauge(held_out: bool, n: int = 2_000) -> Gauge:
    samples = bank(n)
    scored = ScoredSamples(samples, 3.0 * samples.rewards + 1.0 if held_out else None)
    reward = NamedReward("r", lambda images, prompts: images.mean((1, 2, 3)))
    return Gauge.of(reward, None, 1.0, ["a", "b"], scored)


def test_the_tilt_moves_both_rewards_as_a_gaussian_is_moved():
    # r ~ N(0, s^2) tilted by exp(beta r) is N(beta s^2, s^2); held out is 3 r + 1.
    curve = gauge(held_out=True).tilt_curve(lambda done: None)
    assert curve[0]["beta"] == 0.0
    for column in curve:
        mean = (column["beta"] or 0.0) * SPREAD**2
        assert column["reward_mean"] == pytest.approx(mean, abs=0.03)
        assert column["held_out"] == pytest.approx(3.0 * mean + 1.0, abs=0.09)


def test_the_curve_ends_where_the_bank_does():
    few = gauge(held_out=False, n=600)
    betas = [column["beta"] for column in few.tilt_curve(lambda done: None)]
    assert betas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]  # 300 exp(-beta^2 / 4) >= 200 up to 1.27
    assert few.reference()["distance_to_tilt"] is None


def test_without_a_second_reward_nothing_is_said_of_one():
    assert gauge(held_out=False).tilt_curve(lambda done: None)[0]["held_out"] is None


def test_a_curve_that_is_there_is_taken_for_the_same_bank_alone(tmp_path: Path):
    """Another comparison at the same beta, into the same folder, has a curve of its own."""
    first = gauge(held_out=False)
    samples = first.bank.samples
    shifted = SampleSet(samples.features, samples.rewards + 1.0, samples.prompt_index)
    second = Gauge.of(first.reward, None, 1.0, ["a", "b"], ScoredSamples(shifted, None))
    curve = tilt_curve(first, tmp_path, unseen)
    assert tilt_curve(first, tmp_path, unseen) == curve
    moved = tilt_curve(second, tmp_path, unseen)
    assert [after["reward_mean"] for after in moved] == pytest.approx(
        [before["reward_mean"] + 1.0 for before in curve]
    )
