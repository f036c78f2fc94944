"""The laboratory's sampler: DDIM's kernels with eta 1, at noise levels where mixtures decide.

The log of signal over noise follows a logistic distribution of scale 1.5 about 0, so that the steps
are small between pure noise and near clean states, and x_K remembers nothing of x_0 (alpha_bar_K of
1e-5), which the tilt needs. The kernels' variance is one of `nablaflow.diffusion.variance`, as an
image model's is; with `analytic` the sampler's own error is below what 8,000 samples show with 50
steps, and what is left is the method's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow.diffusion import (
    Prediction,
    ReverseProcess,
    build_process,
    left_open,
    predict_from,
    squared_errors,
)
from nablaflow.exact.mixture import GaussianMixture

TIMESTEPS = 1000
LOG_SNR_SCALE = 1.5
MOMENT_SAMPLES = 20_000
SIGMA_FLOOR = 0.01  # as image models have by default; q(x_0 | x_1, x_0) has no variance


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


def exact_process(prior: GaussianMixture, steps: int, variance: str = "analytic") -> ReverseProcess:
    """The sampler for a prior of mean 0 and scale 1.

    Raises:
        UserError: more steps than the schedule's 1,000.
    """
    process = build_process(schedule(), "ddim", steps, 1.0, SIGMA_FLOOR)
    if variance == "posterior":
        return process
    open_ = left_open(process, _errors(prior, process))
    return build_process(schedule(), "ddim", steps, 1.0, SIGMA_FLOOR, open_)


def _errors(prior: GaussianMixture, process: ReverseProcess) -> Tensor:
    """Of the exact posterior mean, by `MOMENT_SAMPLES` points of the prior at every level."""
    generator = torch.Generator().manual_seed(0)
    x0 = prior.sample(MOMENT_SAMPLES, generator).reshape(-1, 1, 1, prior.dim)

    def predict(x: Tensor, k: Tensor) -> Prediction:
        alpha_bar = process.alpha_bar.double()[k[0]]
        score = prior.score(x.flatten(1), alpha_bar.item()).reshape(x.shape)
        return predict_from(-(1.0 - alpha_bar).sqrt() * score, x, alpha_bar, "epsilon")

    return squared_errors(process, x0, predict, generator)
