"""The divergence of a policy's paths against the closed form of a shifted mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import build_process, sample_trajectories, trajectory_noise
from nablaflow.evaluation.path_kl import PathKL
from nablaflow.models import Condition
from tests.support.gaussian import GaussianModel
from tests.support.schedules import STABLE_DIFFUSION

SHIFT = torch.tensor([0.3, -0.2], dtype=torch.float64)


class Shifted(nn.Module):
    """Adds the same to the noise prediction everywhere."""

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return SHIFT.expand_as(x)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_a_shift_that_is_the_same_everywhere(eta: float):
    process = build_process(STABLE_DIFFUSION, "ddim", 5, eta, 0.01)
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    model = GaussianModel(process, mean, covariance, Shifted())
    kl = PathKL(model, Condition(), 3)
    found = sample_trajectories(
        kl, process, model.state_shape, trajectory_noise([1, 2, 3]), model.device
    )
    # epsilon + d moves x0_hat by -sqrt(1 / alpha_bar - 1) d, and with it the kernel's mean.
    alpha_bar = process.alpha_bar.double()[1:]
    per_noise = process.from_epsilon.double()[1:] - process.from_x0.double()[1:] * (
        (1 / alpha_bar - 1).sqrt()
    )
    rates = 0.5 * (per_noise / process.sigma.double()[1:]).square()
    wanted = (rates.sum() * SHIFT.square().sum()).item()
    assert wanted > 0.01
    assert kl.total.tolist() == pytest.approx([wanted] * 3, rel=1e-4)
    assert found.x0.shape == (3, 1, 1, 2)


def test_no_shift_is_no_divergence():
    class Still(nn.Module):
        def forward(self, x: Tensor, k: Tensor) -> Tensor:
            return torch.zeros_like(x)

    process = build_process(STABLE_DIFFUSION, "ddim", 4, 1.0, 0.01)
    model = GaussianModel(process, torch.ones(1).double(), torch.eye(1).double(), Still())
    kl = PathKL(model, Condition(), 2)
    sample_trajectories(kl, process, model.state_shape, trajectory_noise([1, 2]), model.device)
    assert kl.total.tolist() == [0.0, 0.0]
