"""The laboratory's sampler: kernels with the variance that the exact reference has.

The kernels' variance is one of `nablaflow.diffusion.variance`, as an image model's is; with
`analytic` the sampler's own error is below what 8,000 samples show with 50 steps, and what is left
is the method's.
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
from nablaflow.exact.paths import PATHS

MOMENT_SAMPLES = 20_000
AT_ONCE = 2_000  # of them: what many of high dimension need beside them is slow to reach
SIGMA_FLOOR = 0.01  # as image models have by default; q(x_0 | x_1, x_0) has no variance


def bare_process(steps: int, path: str = "diffusion", sampler: str | None = None) -> ReverseProcess:
    """The sampler with its own variance, for any prior.

    Raises:
        UserError: more steps than the schedule's 1,000.
    """
    found = PATHS[path]
    name = found.samplers[0] if sampler is None else sampler
    return build_process(found.schedule(), name, steps, 1.0, SIGMA_FLOOR)


def exact_process(
    prior: GaussianMixture,
    steps: int,
    variance: str = "analytic",
    path: str = "diffusion",
    sampler: str | None = None,
) -> ReverseProcess:
    """The sampler for a prior of mean 0 and scale 1.

    Raises:
        UserError: more steps than the schedule's 1,000.
    """
    process = bare_process(steps, path, sampler)
    if variance == "posterior":
        return process
    found = PATHS[path]
    name = found.samplers[0] if sampler is None else sampler
    open_ = left_open(process, _errors(prior, process))
    return build_process(found.schedule(), name, steps, 1.0, SIGMA_FLOOR, open_)


def _errors(prior: GaussianMixture, process: ReverseProcess) -> Tensor:
    """Of the exact posterior mean, by `MOMENT_SAMPLES` points of the prior at every level."""
    generator = torch.Generator().manual_seed(0)
    x0 = prior.sample(MOMENT_SAMPLES, generator).reshape(-1, 1, 1, prior.dim)

    def predict(x: Tensor, k: Tensor) -> Prediction:
        alpha_bar = process.alpha_bar.double()[k[0]]
        parts = x.flatten(1).split(AT_ONCE)
        x0_hat = torch.cat([prior.posterior_mean(part, alpha_bar.item()) for part in parts])
        return predict_from(x0_hat.reshape(x.shape), x, alpha_bar, "sample")

    return squared_errors(process, x0, predict, generator)
