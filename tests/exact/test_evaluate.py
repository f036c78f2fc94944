"""How far a policy is from the tilt, where an untrained one's distance is known in closed form."""

import json
import math
from functools import cache
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.estimators import contrastive
from nablaflow.exact import (
    CONTENDERS,
    GaussianMixture,
    LabSettings,
    LinearReward,
    Problem,
    Result,
    evaluate,
)
from nablaflow.methods import AdjointMatching

N = 2000
SMALL = LabSettings(width=16, layers=1)
SHIFT = 1.5
LINE = Problem(
    GaussianMixture([[0.0]], [[[1.0]]]), LinearReward([SHIFT]), beta=1.0, steps=6, name="line"
)
PAIR = Problem(
    GaussianMixture([[-2.0, 0.0], [2.0, 1.0]], torch.eye(2).expand(2, 2, 2), [0.5, 0.5]),
    LinearReward([0.3, 0.0]),
    beta=1.0,
    steps=6,
)


@cache
def untrained(seed: int = 0, problem: str = "line") -> Result:
    chosen = {"line": LINE, "pair": PAIR}[problem]
    return evaluate(chosen, AdjointMatching(beta=1.0), 0, seed=seed, n=N, settings=SMALL)


def mean_absolute(mean: float, deviation: float) -> float:
    """E|N(mean, deviation^2)|."""
    z = mean / deviation
    spread = deviation * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2)
    return spread + mean * math.erf(z / math.sqrt(2))


def test_without_updates_the_distance_is_that_of_prior_and_tilt() -> None:
    """N(0, 1) and its tilt N(SHIFT, 1): all figures are known."""
    found = untrained()
    root = math.sqrt(2.0)
    expected = 2 * mean_absolute(SHIFT, root) - 2 * mean_absolute(0.0, root)
    assert found.energy_distance == pytest.approx(expected, rel=0.08)
    assert found.sliced_wasserstein == pytest.approx(SHIFT, abs=4 * math.sqrt(2 / N))
    assert found.reward_mean == pytest.approx(0.0, abs=4 * SHIFT / N**0.5)
    assert found.target_reward_mean == pytest.approx(SHIFT**2, abs=0.02)
    assert found.log_det == pytest.approx(0.0, abs=0.15)
    assert found.target_log_det == pytest.approx(0.0, abs=1e-9)
    assert found.mode_weight_error == pytest.approx(0.0, abs=1e-9)
    assert found.network_evaluations == 0
    assert found.samples.shape == (N, 1)
    assert (found.updates, found.n, found.seed) == (0, N, 0)


def test_the_floor_is_what_two_exact_samples_are_apart_on_average() -> None:
    """2 E|X - X'| / n, X - X' ~ N(0, 2); here by brute force and by the formula."""
    found = untrained()
    formula = 2 * mean_absolute(0.0, math.sqrt(2.0)) / N
    assert found.floor == pytest.approx(formula, rel=0.05)
    distances = []
    for seed in range(200):
        x, y = (
            LINE.target.sample(100, torch.Generator().manual_seed(2 * seed + part))
            for part in (0, 1)
        )
        between, within = torch.cdist(x, y).mean(), torch.cdist(x, x).mean()
        distances.append(float(2 * between - within - torch.cdist(y, y).mean()))
    brute = torch.tensor(distances)
    error = 4 * float(brute.std()) / 200**0.5
    assert float(brute.mean()) == pytest.approx(found.floor * N / 100, abs=error)


def test_of_a_round_normal_the_sampler_costs_nothing() -> None:
    found = untrained()
    assert abs(found.discretization) < 5 * found.floor


def test_the_weight_error_of_an_untrained_policy() -> None:
    """The modes are alike: the tilt weighs them by exp(0.3 x), the prior equally."""
    right = 1 / (1 + math.exp(-0.3 * 4))
    found = untrained(problem="pair")
    assert found.mode_weight_error == pytest.approx(right - 0.5, abs=0.05)
    assert found.reward_mean == pytest.approx(0.0, abs=0.1)
    assert found.target_reward_mean == pytest.approx(0.3 * (0.3 + 2 * (2 * right - 1)), abs=0.02)


def test_an_evaluation_follows_its_seed() -> None:
    def run(seed: int) -> Result:
        method = AdjointMatching(beta=1.0)
        return evaluate(PAIR, method, 2, batch=8, seed=seed, n=200, settings=SMALL)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = run(0), run(1)
    assert torch.equal(first.samples, again.samples)
    rows = [part.row() | {"seconds": 0.0} for part in (first, again)]
    assert rows[0] == rows[1]
    assert not torch.equal(first.samples, other.samples)
    assert first.network_evaluations > 0
    assert first.seconds > 0


def test_training_brings_the_policy_nearer() -> None:
    settings = LabSettings(width=32, layers=1, learning_rate=1e-2, policy_ema=0.9)
    method = AdjointMatching(beta=1.0)
    told: list[int] = []
    found = evaluate(LINE, method, 60, batch=32, n=N, settings=settings, on_update=told.append)
    assert told == list(range(1, 61))
    assert found.energy_distance < 0.05 * untrained().energy_distance
    assert found.reward_mean == pytest.approx(SHIFT**2, rel=0.15)


def test_a_row_is_plain_data_without_the_samples() -> None:
    row = untrained().row()
    assert json.loads(json.dumps(row)) == row
    named = {
        "problem",
        "method",
        "seed",
        "energy_distance",
        "floor",
        "mode_weight_error",
        "reward_mean",
        "target_reward_mean",
        "network_evaluations",
        "seconds",
    }
    assert named <= row.keys()
    assert "samples" not in row
    assert row["problem"] == "line"
    assert row["method"] == "adjoint-matching"


@pytest.mark.parametrize("name", [None, *CONTENDERS])
def test_every_contender_can_be_named_and_takes_any_beta(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "MOST", 8)  # of a fit that is far from its end
    sampler = "euler" if name == "vgg-flow" else "ddim"  # the one that has no noise
    problem = Problem(LINE.prior, LINE.reward, beta=0.7, steps=3, sampler=sampler)
    settings = LabSettings(width=8, layers=1)
    found = evaluate(problem, name, updates=1, batch=2, n=100, settings=settings)
    assert found.method == name or name is None
    assert found.method in CONTENDERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "adjoint-match"}, r"method: no method 'adjoint-match'.*; did you mean .*"),
        ({"method": ""}, r"method: no method ''.*; choose one of .*adjoint-matching.*"),
        (
            {"method": AdjointMatching(beta=2.0)},
            r"method: its beta is 2, the problem's 1; give both the same",
        ),
        ({"updates": -1}, r"updates: -1 is too few; use 0 or more"),
        ({"batch": 0}, r"batch: 0 is too few; use 1 or more"),
        ({"n": 99}, r"n: 99 is too few; use 100 or more"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_a_mistake_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}$"):
        evaluate(LINE, **arguments)
