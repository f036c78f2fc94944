"""The laboratory's sampler: so little discretisation error that what is left is the method's.

Noise levels lie where mixtures decide. The log of signal over noise follows a logistic
distribution of scale 1.5 about 0, so that the steps are small between pure noise and near clean
states, and x_K remembers nothing of x_0 (alpha_bar_K of 1e-5), which the tilt needs. The kernels
are DDIM's with eta 1, but with the variance that is best for the prior (Analytic-DPM, arXiv
2201.06503, theorem 1): what x_k leaves open of x_0 is part of it, which DDIM leaves out.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess, build_process, mean_per_x0
from nablaflow.exact.mixture import GaussianMixture

TIMESTEPS = 1000
LOG_SNR_SCALE = 1.5
MOMENT_SAMPLES = 20_000


def _alpha_bar() -> Tensor:
    time = (torch.arange(TIMESTEPS, dtype=torch.float64) + 0.5) / TIMESTEPS
    return torch.sigmoid(-LOG_SNR_SCALE * torch.logit(time))


ALPHA_BAR = _alpha_bar()
"""By timestep, float64."""


def schedule() -> dict[str, object]:
    """As a diffusers scheduler's configuration."""
    before = torch.cat([torch.ones(1, dtype=torch.float64), ALPHA_BAR[:-1]])
    return {
        "num_train_timesteps": TIMESTEPS,
        "trained_betas": (1.0 - ALPHA_BAR / before).tolist(),
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }


def exact_process(prior: GaussianMixture, steps: int) -> ReverseProcess:
    """The sampler for a prior of mean 0 and scale 1.

    Raises:
        UserError: more steps than the schedule's 1,000.
    """
    process = build_process(schedule(), "ddim", steps, 1.0, sigma_floor=1e-6)
    alpha_bar = process.alpha_bar.double()
    open_, generator = torch.zeros(steps + 1), torch.Generator().manual_seed(0)
    for k in range(1, steps + 1):
        open_[k] = posterior_variance(prior, alpha_bar[k], generator)
    per_x0 = mean_per_x0(process)
    variance = process.sigma.double().square() + per_x0.square() * open_
    return replace(process, sigma=variance.sqrt().float())


def posterior_variance(
    prior: GaussianMixture, alpha_bar: Tensor, generator: torch.Generator
) -> float:
    """Mean variance of a coordinate of x_0 given x_k, by `MOMENT_SAMPLES` noised points.

    It is E|x_0 - x0_hat|^2 / dim, of the same relative error at every level. By E|score|^2 alone
    (Tweedie's second formula) the error would be multiplied by (1 - a) / a: 1e5 at pure noise.
    """
    clean = prior.sample(MOMENT_SAMPLES, generator)
    noise = torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
    x = alpha_bar.sqrt() * clean + (1.0 - alpha_bar).sqrt() * noise
    x0_hat = (x + (1.0 - alpha_bar) * prior.score(x, alpha_bar.item())) / alpha_bar.sqrt()
    return (clean - x0_hat).square().mean().item()
