"""Trust in the predicted reward: slopes in closed form on a line, and what becomes of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from nablaflow.errors import UserError
from nablaflow.estimators.measured_gamma import measure_gamma, measured_levels, monotone_slopes
from nablaflow.exact import GaussianMixture
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.process import exact_process
from nablaflow.rewards import NamedReward

N = 4000
WAVE = 1.1


def standard_normal(steps: int) -> MixtureModel:
    prior = GaussianMixture([[0.0]], [[[1.0]]])
    process = exact_process(prior, steps)
    return MixtureModel(prior, process, nn.Identity(), PassCounter())


def trust_of(function, model: MixtureModel) -> Tensor:
    reward = NamedReward("on a line", lambda images, prompts: function(images[:, 0, 0, 0]))
    return measure_gamma(model, reward, [""] * N, list(range(N)), batch=1000)


def test_the_slope_of_a_wave_is_what_its_average_over_the_posterior_keeps() -> None:
    """x_0 given x_k is normal of variance v = 1 - a: E cos w x_0 = cos w x0_hat exp(-w² v / 2)."""
    model = standard_normal(steps=20)
    found = trust_of(lambda x: torch.cos(WAVE * x), model)
    for level in measured_levels(20):
        a = model.process.alpha_bar[level].double() / model.process.alpha_bar[0].double()
        if a < 0.05:
            continue  # the prediction hardly varies, so its slope is hardly known
        wanted = math.exp(-0.5 * WAVE**2 * (1 - a.item()))
        assert found[level].item() == pytest.approx(wanted, abs=0.06), level


def test_a_linear_reward_is_trusted_at_every_level() -> None:
    model = standard_normal(steps=10)
    found = trust_of(lambda x: 3.0 * x - 1.0, model)
    a = model.process.alpha_bar
    error = ((1 - a) / (a * N)).sqrt()  # standard error of a slope
    assert ((found - 1).abs() < 4 * error + 1e-3)[a > 0.05].all()


def test_slopes_are_found_within_prompts_and_do_not_rise_with_noise() -> None:
    end = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    columns = torch.stack([2.0 * end, end, 4.0 * end, torch.zeros(4, dtype=torch.float64)], 1)
    # Slopes 0.5, 1, 0.25, 0, of which the first two meet at a mean that lies between them.
    found = monotone_slopes(end, columns)
    assert found[0] == found[1]
    assert 0.5 < found[0] < 1.0
    assert found[2:].tolist() == pytest.approx([0.25, 0.0], abs=1e-6)


def test_a_constant_reward_is_refused() -> None:
    with pytest.raises(UserError, match=r"reward: on a line gives all .* the same"):
        trust_of(lambda x: torch.zeros_like(x), standard_normal(steps=4))


def test_levels_are_few_and_end_with_the_noisiest() -> None:
    assert measured_levels(4) == [1, 2, 3, 4]
    assert measured_levels(50) == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
