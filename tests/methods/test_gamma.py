"""Gamma, how far a forward-looking gradient is trusted: by name, by number, by level."""

import pytest
import torch

from nablaflow.diffusion import build_process
from nablaflow.errors import UserError
from nablaflow.estimators import gamma_table
from nablaflow.methods import Networks
from tests.support.gaussian import GaussianModel, SmallNetwork, any_transitions, linear_reward
from tests.support.paper import paper
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.5


def flat_model(steps: int) -> GaussianModel:
    """So wide a prior that the noise prediction is 0: dx0_hat / dx is 1 / sqrt(alpha_bar)."""
    process = build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)
    wide = 1e12 * torch.eye(2, dtype=torch.float64)
    policy = SmallNetwork(steps, 2, seed=1)
    policy.second.data.zero_()
    return GaussianModel(process, torch.zeros(2, dtype=torch.float64), wide, policy)


@pytest.mark.parametrize(
    ("gamma", "power"), [("one", -0.5), ("sqrt_alpha_bar", 0.0), ("alpha_bar", 0.5)]
)
def test_gamma_tames_the_forward_looking_gradient_at_high_noise(gamma: str, power: float) -> None:
    model = flat_model(20)
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)
    networks = Networks(model, linear_reward(direction))
    batch = any_transitions(model)
    found = paper(beta=BETA, gamma=gamma).losses(batch, networks).metrics
    alpha_bar = torch.cat([torch.ones(1), model.process.alpha_bar[1:-1]]).double()
    expected = 5.0 * BETA * alpha_bar**power
    torch.testing.assert_close(found["value_gradient_norm"], expected, rtol=1e-5, atol=1e-8)
    noisiest = float(found["value_gradient_norm"][-1]) / (5.0 * BETA)
    assert noisiest > 8 if gamma == "one" else noisiest < 1.001


def test_a_users_own_gamma_is_used_as_it_stands() -> None:
    model = flat_model(3)
    direction = torch.tensor([0.0, 1.0], dtype=torch.float64)
    networks = Networks(model, linear_reward(direction))
    method = paper(beta=1.0, gamma=[1.0, 0.5, 0.25, 0.0])
    found = method.losses(any_transitions(model), networks).metrics["value_gradient_norm"]
    alpha_bar = model.process.alpha_bar.double()
    later = [float(gamma / alpha_bar[k].sqrt()) for k, gamma in ((1, 0.5), (2, 0.25))]
    expected = torch.tensor([1.0, *later], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_a_single_gamma_holds_for_every_noisy_state() -> None:
    assert gamma_table(1.5, flat_model(3).process).tolist() == [1.0, 1.5, 1.5, 1.5]
    assert paper(beta=1.0, gamma=1.5).gamma == 1.5


def test_a_gamma_of_the_wrong_length_is_refused() -> None:
    process = flat_model(3).process
    with pytest.raises(UserError, match=r"method\.gamma: 2 values for 4 levels"):
        gamma_table([1.0, 0.5], process)
    for wrong in ([0.5, 0.5, 0.2, 0.1], [1.0, -0.5, 0.2, 0.1], [1.0, float("nan"), 0.2, 0.1]):
        with pytest.raises(UserError, match=r"method\.gamma: give finite values"):
            gamma_table(wrong, process)
    assert gamma_table([1.0, 0.5, 0.2, 0.1], process).tolist() == pytest.approx([1, 0.5, 0.2, 0.1])
