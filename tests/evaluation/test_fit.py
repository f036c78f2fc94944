"""What a policy leaves of its target, against the closed form of a Gaussian and a linear reward."""

from __future__ import annotations

import pytest

from nablaflow.diffusion import build_process, mean_per_score
from nablaflow.estimators import Networks
from nablaflow.evaluation.fit import PolicyFit, policy_fit
from nablaflow.methods import AdjointMatching, ResidualNablaDB
from tests.support.balance import COVARIANCE, DIRECTION, MEAN
from tests.support.chain import x0_hat_of
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.4


def measured(steps: int, followed: float) -> tuple[PolicyFit, float]:
    """The fit of a policy that goes a share of the tilt's own shift, and the nats of that shift."""
    process = build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)
    policy = MeanShift(process, 2)
    model = GaussianModel(process, MEAN, COVARIANCE, policy)
    asked = 0.0
    for k in range(1, steps + 1):
        scale, gradient = mean_per_score(process)[k], BETA * x0_hat_of(model, k).slope.T @ DIRECTION
        policy.shift.data[k] = followed * scale * gradient
        asked += (0.5 * scale * gradient.square().sum()).item()
    method = ResidualNablaDB(beta=BETA)
    reward = linear_reward(DIRECTION)
    fit = policy_fit(Networks(model, reward), method, ["", ""], seed=3, batch=50, trajectories=200)
    assert fit is not None
    return fit, asked


@pytest.mark.parametrize("followed", [0.0, 0.5, 1.0])
def test_every_step_counts_where_there_are_few(followed: float):
    fit, asked = measured(5, followed)
    assert fit.asked.value == pytest.approx(asked, rel=1e-3)
    assert fit.unfollowed.value == pytest.approx((1 - followed) ** 2 * asked, abs=2e-3 * asked)
    assert fit.asked.se < 1e-3 * asked  # a linear reward asks for the same everywhere


def test_steps_that_are_drawn_stand_for_the_others():
    fit, asked = measured(23, 0.5)
    assert abs(fit.asked.value - asked) < 4 * fit.asked.se
    assert abs(fit.unfollowed.value - asked / 4) < 4 * fit.unfollowed.se
    assert 0 < fit.asked.se < 0.05 * asked


@pytest.mark.parametrize(
    "method",
    [
        ResidualNablaDB.published(BETA, 0.0),
        ResidualNablaDB(beta=BETA, step="published", reverse_weight=1.0),
        AdjointMatching(beta=BETA, step="exact"),
    ],
    ids=["published", "flow", "sampled"],
)
def test_a_target_that_is_no_function_of_the_state_has_no_fit(method):
    process = build_process(STABLE_DIFFUSION, "ddim", 5, 1.0, sigma_floor=0.01)
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    networks = Networks(model, linear_reward(DIRECTION))
    found = policy_fit(networks, method, [""], seed=0, batch=8)
    assert found is None


def test_it_repeats():
    assert measured(23, 0.5) == measured(23, 0.5)
