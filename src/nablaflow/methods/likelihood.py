"""Densities of sampled transitions under two kernels, and PPO's surrogate of a policy gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import Transitions, kernel_mean
from nablaflow.diffusion.process import at
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.models import Condition, DiffusionModel
from nablaflow.typing import Batch, Latents, Steps


def log_ratio(x_next: Latents, mean: Latents, other: Latents, sigma: Tensor) -> Latents:
    """Log N(x_{k-1}; mean, sigma^2) - log N(x_{k-1}; other, sigma^2), for each value of a state."""
    return (mean - other) * (x_next - 0.5 * (mean + other)) / sigma.square()


@torch.no_grad()
def reference_mean(model: DiffusionModel, x: Latents, k: Steps, condition: Condition) -> Latents:
    """Mean of p_ref(x_{k-1} | x_k)."""
    with model.reference():
        return kernel_mean(model.process, x, model.predict(x, k, condition), k)


def sampled_mean(transitions: Transitions) -> Latents:
    """Mean of the kernel that each transition was sampled from, whatever the policy is now."""
    assert transitions.mean is not None
    return transitions.mean


def clipped_surrogate(log_ratio: Batch, advantage: Batch, clip_range: float) -> Batch:
    """PPO's loss (arXiv 1707.06347, equation 7), from the log of the importance ratio.

    Its gradient is -advantage ratio d log_ratio, and 0 where the ratio has left 1 +- clip_range in
    the direction that the advantage asks for.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def clip_metrics(log_ratio: Batch, clip_range: float) -> dict[str, Batch]:
    """How far the policy is from the one that sampled, as PPO's implementations log it."""
    outside = (log_ratio.exp() - 1.0).abs() > clip_range
    return {"clip_fraction": outside.float(), "approximate_kl": 0.5 * log_ratio.square()}


@torch.no_grad()
def divergence_along_path(
    batch: TrainingBatch, networks: Networks
) -> Float[Tensor, "levels batch"]:
    """KL(p_theta(. | x_k) || p_ref(. | x_k)), nats, along each transition's own trajectory.

    By k, 0 for k = 0. Costs K passes of policy and reference for each trajectory.
    """
    assert batch.states is not None
    model, process = networks.model, networks.model.process
    own, index = batch.transitions.trajectory.unique(return_inverse=True)
    rows = (index[None] == torch.arange(len(own), device=index.device)[:, None]).long().argmax(1)
    states, condition = batch.states[:, rows], batch.conditions[own]
    divergence = states.new_zeros(len(states), len(rows))
    for step in range(1, process.steps + 1):
        x, k = states[step], torch.full_like(rows, step)
        mean = kernel_mean(process, x, model.predict(x, k, condition), k)
        reference = reference_mean(model, x, k, condition)
        sigma = at(process.sigma, k, x)
        divergence[step] = 0.5 * ((mean - reference) / sigma).square().flatten(1).sum(1)
    return divergence[:, index]
