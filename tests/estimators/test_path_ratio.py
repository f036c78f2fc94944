"""Log ratios of whole trajectories against torch's normals, and weights that keep a sample."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.estimators import Path, path_log_ratio, tempered_weights
from tests.support.paths import Bent, bent_problem, path_of, random_states

PROMPTS = ["one", "three", "two"]


def log_density(problem: Bent, states: Tensor, row: int, *, policy: bool) -> float:
    """Of a whole trajectory given its x_K, constants included."""
    found = 0.0
    for k in range(1, problem.steps + 1):
        x, x_next = states[k, row].flatten(), states[k - 1, row].flatten()
        mean = problem.mean(x, k, PROMPTS[row], policy=policy)
        kernel = Normal(mean, problem.model.process.sigma[k].double())
        found += kernel.log_prob(x_next).sum().item()
    return found


def trajectories(problem: Bent) -> Path:
    """With the log density that sampling by the policy would have left."""
    states = 0.3 * random_states(problem.steps, len(PROMPTS), 2, seed=4)
    sigma = problem.model.process.sigma[1:].double()
    constants = states[0, 0].numel() * (sigma.log() + 0.5 * math.log(2 * math.pi)).sum().item()
    log_prob = torch.tensor(
        [log_density(problem, states, row, policy=True) + constants for row in range(len(PROMPTS))],
        dtype=torch.float64,
    )
    condition = problem.model.condition(PROMPTS)
    return replace(path_of(states, [[]] * 3, condition, PROMPTS), log_prob=log_prob)


def test_the_ratio_is_that_of_the_two_products_of_kernels() -> None:
    problem = bent_problem()
    path = trajectories(problem)
    assert path.states is not None
    found = path_log_ratio(path, problem.model)
    for row in range(len(PROMPTS)):
        policy, reference = (
            log_density(problem, path.states, row, policy=which) for which in (True, False)
        )
        assert found[row].item() == pytest.approx(policy - reference, rel=1e-4)
        assert abs(policy - reference) > 0.01


LOG_WEIGHTS = torch.tensor([3.0, 0.0, -1.0, 0.5, 0.2, -2.0], dtype=torch.float64)


def share(weights: Tensor) -> float:
    return (weights.sum().square() / weights.square().sum() / len(weights)).item()


def test_weights_that_leave_enough_are_the_exponentials() -> None:
    found = tempered_weights(LOG_WEIGHTS, 0.1)
    expected = len(LOG_WEIGHTS) * torch.softmax(LOG_WEIGHTS, 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("least", [0.5, 0.9])
def test_weights_that_leave_too_few_are_those_of_the_largest_power_that_does_not(
    least: float,
) -> None:
    found = tempered_weights(LOG_WEIGHTS, least).double()
    assert share(found) == pytest.approx(least, abs=1e-4)
    assert found.mean().item() == pytest.approx(1.0, abs=1e-6)
    slopes = (found[1:].log() - found[0].log()) / (LOG_WEIGHTS[1:] - LOG_WEIGHTS[0])
    torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes), rtol=1e-4, atol=0.0)
    assert 0 < slopes[0] < 1


def test_a_share_of_one_makes_all_weights_equal() -> None:
    torch.testing.assert_close(
        tempered_weights(LOG_WEIGHTS, 1.0), torch.ones(6), rtol=0.0, atol=1e-3
    )


def test_a_shift_of_all_log_weights_changes_nothing() -> None:
    near, far = (tempered_weights(LOG_WEIGHTS + by, 0.6) for by in (0.0, 5e4))
    torch.testing.assert_close(near, far, rtol=1e-5, atol=0.0)
