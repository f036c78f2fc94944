"""How much likelier a trajectory is under the policy than under the reference."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import kernel_mean
from nablaflow.diffusion.process import at
from nablaflow.estimators.path import Path
from nablaflow.models import DiffusionModel
from nablaflow.typing import Batch


@torch.no_grad()
def path_log_ratio(path: Path, model: DiffusionModel) -> Float[Tensor, "trajectory"]:
    """Sum over k of log p_theta - log p_ref of x_{k-1} given x_k, nats, for each trajectory.

    Under the optimal policy beta r(x_0) less this is log Z, the same for all trajectories of a
    prompt (trajectory balance, arXiv 2405.20971, equation 8). Costs K passes of the reference.
    """
    assert path.states is not None and path.log_prob is not None
    ratio = path.log_prob.clone()
    with model.reference():
        for step in range(1, model.process.steps + 1):
            x, k = path.states[step], torch.full((len(path),), step, device=ratio.device)
            mean = kernel_mean(model.process, x, model.predict(x, k, path.condition), k)
            noise = (path.states[step - 1] - mean) / at(model.process.sigma, k, x)
            ratio += 0.5 * noise.to(ratio).square().flatten(1).sum(1)
    return ratio


def tempered_weights(log_weight: Batch, effective_share: float) -> Batch:
    """exp(power log_weight) of mean 1, with the largest power up to 1 that leaves a sample of size.

    Weights are equal at the optimal policy, whatever the power, so tempering moves no fixed point;
    it keeps a few trajectories from having it all on the way there.

    Args:
        effective_share: least effective sample size, (sum w)^2 / sum w^2, over the number of
            weights.
    """
    log_weight = log_weight.cpu().double()  # not all accelerators have it
    log_weight = log_weight - log_weight.max()
    low, high = 0.0, 1.0
    if _effective_share(log_weight) < effective_share:
        for _ in range(30):
            middle = 0.5 * (low + high)
            enough = _effective_share(middle * log_weight) >= effective_share
            low, high = (middle, high) if enough else (low, middle)
        log_weight = low * log_weight
    weight = log_weight.exp()
    return (weight / weight.mean()).float()


def _effective_share(log_weight: Batch) -> float:
    weight = log_weight.exp()
    return (weight.mean().square() / weight.square().mean()).item()
