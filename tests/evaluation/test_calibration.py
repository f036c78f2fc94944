"""The strength at which a policy has the tilt's mean reward, with rewards that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nablaflow.evaluation import calibration
from nablaflow.evaluation.calibration import Calibration, Try, at_tilt, calibrate
from nablaflow.evaluation.measure import Subject
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.summary import SampleSet
from nablaflow.models.adapters import LoraAdapter, trainable_parameters, trainable_state
from nablaflow.progress import unseen

BETA = 1.0


def bank() -> SampleSet:
    """Normal rewards, whose tilt by beta has the mean beta, of two prompts."""
    half = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(1000) + 0.5) / 1000)
    index = torch.arange(2000) % 2
    return SampleSet(torch.zeros(2000, 1), half.repeat_interleave(2), index)


def calibrated(of: Any, *, up: bool = False) -> Calibration:
    return calibrate(of, bank(), trainable_state(of.model.network), unseen, up=up)


def strengths_seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is looked at from now on, by the name that it is shown with."""
    seen, sampled = [], calibration.sample_and_measure

    def counted(*given: Any, **named: Any) -> Any:
        seen.append(given[-1])
        return sampled(*given, **named)

    monkeypatch.setattr(calibration, "sample_and_measure", counted)
    return seen


def tilted_mean() -> float:
    rewards = bank().rewards.double()
    return ((BETA * rewards).exp() * rewards).sum().item() / (BETA * rewards).exp().sum().item()


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], Any]:
    """A policy whose mean reward is a function of its strength, read off its weights."""

    def make(reward: Callable[[float], float], beta: float = BETA) -> Any:
        network = torch.nn.Sequential(torch.nn.Linear(3, 2))
        adapter = LoraAdapter(network, 2, 2.0, ["0"])
        layer: Any = network[0]
        with torch.no_grad():
            layer.lora_A["default"].weight.fill_(1.0)
            layer.lora_B["default"].weight.fill_(0.5)  # B A is 1 at every place

        def strength() -> float:
            x = torch.tensor([1.0, 0.0, 0.0])
            with torch.no_grad():
                return (network(x) - layer.base_layer(x))[0].item()

        def sampled(*_: Any, **given: Any) -> Any:
            assert given["purpose"] == "calibration"
            rewards = reward(strength()) + torch.tensor([-0.1, -0.1, 0.1, 0.1])
            own = SampleSet(torch.zeros(4, 1), rewards, torch.arange(4) % 2)
            return SimpleNamespace(samples=own)

        monkeypatch.setattr(calibration, "sample_and_measure", sampled)
        model = SimpleNamespace(network=network, adapter=adapter)
        made = object.__new__(Subject)  # its other parts are for what is not asked here
        parts = {"model": model, "reward": None, "prompts": ["a", "b"], "config": None}
        for name, part in (parts | {"beta": beta, "strength": strength}).items():
            object.__setattr__(made, name, part)
        return made

    return make


def test_a_straight_line_is_followed_exactly(subject: Any) -> None:
    of = subject(lambda strength: 1.6 * strength)
    found = calibrated(of)
    assert found.strength.value == pytest.approx(tilted_mean() / 1.6, rel=1e-4)
    assert found.way is not None
    assert found.way.value == pytest.approx(1.6 / tilted_mean(), rel=1e-4)
    assert of.strength() == pytest.approx(found.strength.value, rel=1e-5)
    of.model.adapter.scale(1.0)  # the policy is that now, at its own strength
    assert of.strength() == pytest.approx(found.strength.value, rel=1e-5)


def test_a_curve_is_followed_below_what_was_tried(subject: Any) -> None:
    """Where s is the strength, a mean reward of 2 s - s^2 / 1.5."""
    of = subject(lambda strength: 2.0 * strength - strength**2 / 1.5)
    found = calibrated(of)
    exact = 1.5 - (1.5**2 - 1.5 * tilted_mean()) ** 0.5
    assert found.strength.value == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("reward", "tries"),
    [
        (lambda s: 0.9 * s, [1.0]),
        (lambda s: 1.2 * s, [1.0, 0.75]),
        (lambda s: 1.5 * s, [1.0, 0.5]),
        (lambda s: 3.0 * s, [1.0, 0.25]),
        (lambda s: 1.5 - 1.5 * math.exp(-5.0 * s), [1.0, 0.5, 0.25]),
    ],
)
def test_no_more_is_sampled_than_is_needed(
    subject: Any,
    reward: Callable[[float], float],
    tries: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = subject(reward)
    seen = strengths_seen(monkeypatch)
    calibrated(of)
    assert seen == [f"policy at strength {strength:g}" for strength in tries]


@pytest.mark.parametrize(
    "ways",
    [
        {1.0: 1.0, 0.75: 0.9},  # of rewards that are counts, say
        {1.0: 1.2, 0.75: 1.0},
        {1.0: 1.1, 0.75: 1.1, 0.5: 0.99},
        {1.0: 1.1, 0.75: 1.2},  # noise, or a reward that falls again
        {1.0: 5.0, 0.75: 1.1},
        {1.0: 1.3, 0.75: 1.2, 0.5: 1.1, 0.25: 1.05},
    ],
)
def test_the_parabola_goes_through_what_was_measured(ways: dict[float, float]) -> None:
    tries = [Try(strength, Estimate(way, 0.02)) for strength, way in ways.items()]
    found = at_tilt(tries)
    points = [0.0, *(t.strength for t in tries[:-3:-1])]
    parabola = np.polyfit(points, [0.0, *(t.way.value for t in tries[:-3:-1])], 2)
    roots = np.roots(parabola - [0.0, 0.0, 1.0])
    assert found.value == pytest.approx(min(root.real for root in roots if root.real > 0.0))
    slope = np.polyval(np.polyder(parabola), found.value)
    assert found.se == pytest.approx(0.02 / slope)


def test_what_falls_short_is_followed_upwards_where_that_is_asked_for(subject: Any) -> None:
    """A straight line, and a curve whose mean reward is 0.8 s - s^2 / 10."""
    found = calibrated(of := subject(lambda strength: 0.6 * strength), up=True)
    assert found.strength.value == pytest.approx(tilted_mean() / 0.6, rel=1e-4)
    assert of.strength() == pytest.approx(found.strength.value, rel=1e-5)
    found = calibrated(subject(lambda strength: 0.8 * strength - strength**2 / 10), up=True)
    assert found.strength.value == pytest.approx(4 - (16 - 10 * tilted_mean()) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("reward", "tries"),
    [
        (lambda s: 0.8 * s, [1.0, 1.25]),
        (lambda s: 0.55 * s, [1.0, 2.0]),
        (lambda s: 0.3 * s, [1.0, 2.0]),
        (lambda s: 0.98 * s, [1.0]),
        (lambda s: 1.2 * s, [1.0, 0.75]),
        (lambda s: 1.1 - 1.1 * math.exp(-1.2 * s), [1.0, 1.5, 1.75, 2.0]),
        (lambda s: 0.8 * s - 0.2 * s * s, [1.0, 1.75, 2.0]),
        (lambda s: 0.95 * s - 0.35 * s * s, [1.0, 1.75]),
        (lambda s: 0.5 - 0.3 * (s - 1.0), [1.0, 2.0]),
        (lambda s: -0.5 * s, [1.0]),
    ],
)
def test_upwards_no_more_is_sampled_than_is_needed(
    subject: Any,
    reward: Callable[[float], float],
    tries: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = subject(reward)
    seen = strengths_seen(monkeypatch)
    calibrated(of, up=True)
    assert seen == [f"policy at strength {strength:g}" for strength in tries]


@pytest.mark.parametrize(
    "reward", [lambda s: 0.2 * s, lambda s: 0.5 - 2.0 * (s - 1.0), lambda s: 0.6 * s - 0.1 * s**2]
)
def test_what_no_strength_brings_to_the_tilt_stays(
    subject: Any, reward: Callable[[float], float]
) -> None:
    """Of a slow rise, one that falls again at once, and one that ends below the tilt."""
    of = subject(reward)
    found = calibrated(of, up=True)
    assert found.strength == calibration.AS_IT_IS
    assert "short of it at every strength that was tried; the policy stays as it is" in str(found)
    assert of.strength() == pytest.approx(1.0)


def test_what_has_not_passed_the_tilt_stays_as_it_is(subject: Any) -> None:
    of = subject(lambda strength: 0.9 * strength)
    before = [value.clone() for value in trainable_parameters(of.model.network)]
    found = calibrated(of)
    assert found.strength == calibration.AS_IT_IS
    assert "not past it" in str(found)
    after = trainable_parameters(of.model.network)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_chance_may_have_put_past_the_tilt_stays_as_it_is(subject: Any) -> None:
    """Four rewards 0.1 about their mean: an error of 6 % of the way, and the bank's own."""
    of = subject(lambda strength: 1.1 * strength)
    found = calibrated(of)
    assert found.way is not None
    assert found.way.value - 2.0 * found.way.se < 1.0 < found.way.value
    assert found.strength == calibration.AS_IT_IS
    assert "past it by what chance may do; the policy stays as it is" in str(found)
    assert of.strength() == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [0.0, 20.0])
def test_a_bank_that_does_not_tell_changes_nothing(subject: Any, beta: float) -> None:
    """At beta 0 there is no way; at beta 20 a handful of its images would be the tilt."""
    of = subject(lambda strength: 5.0 * strength, beta)
    found = calibrated(of)
    assert found.way is None
    assert of.strength() == pytest.approx(1.0)


def test_even_the_weakest_quarter_may_be_past_it(subject: Any) -> None:
    of = subject(lambda strength: 10.0 * strength)
    found = calibrated(of)
    assert found.strength.value == pytest.approx(0.1, rel=0.01)
