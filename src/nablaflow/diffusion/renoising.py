"""Transitions noised afresh: of the noising process from a clean state, not of the sampler."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.diffusion.trajectory import Noise, Trajectories
from nablaflow.typing import Latents, Steps


def noised_afresh(
    process: ReverseProcess,
    trajectories: Trajectories,
    levels: Bool[Tensor, "levels"],
    generators: Noise,
) -> Trajectories:
    """The same, but the kept transitions at ``levels`` are q(x_{k-1} | x_0) q(x_k | x_{k-1}).

    Their ``epsilon`` and ``mean``, which nobody has predicted, are NaN.

    Args:
        levels: by k.
        generators: one for each trajectory, or one for all.
    """
    t, x0 = trajectories.transitions, trajectories.x0
    x, x_next, epsilon = t.x.clone(), t.x_next.clone(), t.epsilon.clone()
    mean = None if t.mean is None else t.mean.clone()
    alpha_bar = process.alpha_bar.to(x0.device)
    for k in levels.nonzero()[:, 0].tolist():
        noise, further = (
            randn_tensor(x0.shape, generator=generators, device=x0.device, dtype=x0.dtype)
            for _ in range(2)
        )
        following = _noised(x0, noise, alpha_bar[k - 1] / alpha_bar[0])
        here = _noised(following, further, alpha_bar[k] / alpha_bar[k - 1])
        rows = t.k == k
        x[rows], x_next[rows] = here[t.trajectory[rows]], following[t.trajectory[rows]]
        epsilon[rows] = torch.nan
        if mean is not None:
            mean[rows] = torch.nan
    fresh = replace(t, x=x, x_next=x_next, epsilon=epsilon, mean=mean)
    return replace(trajectories, transitions=fresh)


def noised(process: ReverseProcess, x0: Latents, k: Steps, noise: Latents) -> Latents:
    """x_k of q(x_k | x_0), made of unit noise."""
    return _noised(x0, noise, at(process.alpha_bar / process.alpha_bar[0], k, x0))


def _noised(x: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Where ``kept`` of the signal's power is left."""
    return kept.sqrt() * x + (1.0 - kept).clamp_min(0.0).sqrt() * noise
