"""A bent problem with small networks, for what is true of any: derivatives, passes, refusals."""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow.diffusion import build_process
from nablaflow.methods import Networks
from nablaflow.rewards import NamedReward
from tests.support.gaussian import GaussianModel, NetworkFlow, SmallNetwork
from tests.support.schedules import STABLE_DIFFUSION

STEPS = 4


def bent_networks() -> Networks:
    """A Gaussian with a bend, a policy, a bent reward, a flow network and its average; float64."""
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    mean = torch.tensor([0.3, -0.5], dtype=torch.float64)
    covariance = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
    model = GaussianModel(process, mean, covariance, SmallNetwork(STEPS, 2, seed=1), bend=0.3)
    flow, target = (NetworkFlow(process, SmallNetwork(STEPS, 2, seed=seed)) for seed in (2, 3))
    return Networks(model, NamedReward("bent", bent_reward), flow, target)


def bent_reward(images: Tensor, prompts: list[str]) -> Tensor:
    return torch.sin(1.4 * images[:, 0]).flatten(1).sum(1) + images[:, 1].square().sum((1, 2))
