"""The variance of reverse kernels: the sampler's own, or that of x_{k-1} given x_k.

A kernel p(x_{k-1} | x_k) is q(x_{k-1} | x_k, x_0) with x0_hat in place of x_0, and a sampler gives
it the variance that q has there, betatilde_k. But x_k leaves x_0 open, and the normal kernel that
is nearest to the true one in divergence has what is open as well (Analytic-DPM, arXiv 2201.06503,
theorem 1; for a network that is not the posterior mean arXiv 2206.07309):

    sigma_k^2 = betatilde_k + B_k^2 E|x_0 - x0_hat(x_k)|^2 / d,      B_k = `mean_per_x0`.

The paper writes the expectation as (1 - a) / a (1 - (1 - a) E|score(x_k)|^2 / d), by Tweedie's
formula, which is the same where the score is exact. From samples its error would be multiplied by
(1 - a) / a, 200 at Stable Diffusion's last level; a mean of squares has the same relative error at
every level, and no sign to lose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.kernels import mean_per_x0
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.trajectory import Noise, Predict
from nablaflow.errors import UserError, nearest
from nablaflow.typing import Latents

Variance = Literal["posterior", "analytic"]
"""`posterior`: of q(x_{k-1} | x_k, x_0), or what the scheduler names; `analytic`: see above."""


def check_variance(name: str, field: str) -> None:
    """Raise `UserError` unless it is the name of a variance."""
    if name not in get_args(Variance):
        known = nearest(name, get_args(Variance))
        raise UserError(f"{field}: no variance {name!r}; {known}")


def widened(process: ReverseProcess, left_open: Float[Tensor, "levels"]) -> ReverseProcess:
    """The process with kernels of the variance of x_{k-1} given x_k.

    Args:
        process: its kernels have means and variances of q(x_{k-1} | x_k, x_0).
        left_open: mean variance of a coordinate of x_0 given x_k, by k; entry 0 is unused.
    """
    variance = process.sigma.double().square() + mean_per_x0(process).square() * left_open.double()
    return replace(process, sigma=variance.sqrt().to(process.sigma))


@torch.no_grad()
def squared_errors(
    process: ReverseProcess,
    x0: Latents,
    predict: Predict,
    generators: Noise,
) -> Float[Tensor, "levels"]:
    """Mean square of a coordinate of x_0 - E[x_0 | x_k] by k, for samples that are noised afresh.

    x_0 is a generated state, of the level alpha_bar_0; the expectation is the mean of
    q(x_0 | x_k, clean) with x0_hat for the clean state. Float64; entry 0 is 0.

    Args:
        generators: one for each sample, or one for all.
    """
    found = torch.zeros(process.steps + 1, dtype=torch.float64)
    for step in range(1, process.steps + 1):
        per_x, per_x0 = _end(process, step)
        kept = (process.alpha_bar[step].double() / process.alpha_bar[0].double()).item()
        noise = randn_tensor(x0.shape, generator=generators, device=x0.device, dtype=x0.dtype)
        x = kept**0.5 * x0 + (1.0 - kept) ** 0.5 * noise
        k = torch.full((len(x0),), step, device=x0.device)
        error = x0 - per_x * x - per_x0 * predict(x, k).x0_hat
        found[step] = error.square().flatten(1).mean(1).mean().item()
    return found


def left_open(process: ReverseProcess, errors: Float[Tensor, "levels"]) -> Float[Tensor, "levels"]:
    """E|clean - x0_hat(x_k)|^2 / d by k, from the `squared_errors` of generated states.

    Those are the variance of q(x_0 | x_k, clean), which is 0 where alpha_bar_0 is 1, plus what is
    left open times the square of the mean's slope. Never below 0, whatever the noise of ``errors``.
    """
    found = torch.zeros_like(errors)
    start = process.alpha_bar[0].double()
    for step in range(1, process.steps + 1):
        here = process.alpha_bar[step].double()
        variance = (1.0 - start) / (1.0 - here) * (1.0 - here / start)
        found[step] = (errors[step] - variance) / _end(process, step)[1] ** 2
    return found.clamp_min(0.0)


def _end(process: ReverseProcess, step: int) -> tuple[float, float]:
    """The mean of q(x_0 | x_k, clean) by x_k and by the clean state (arXiv 2006.11239, eq. 7)."""
    start, here = process.alpha_bar[0].item(), process.alpha_bar[step].item()
    kept = here / start
    return kept**0.5 * (1.0 - start) / (1.0 - here), start**0.5 * (1.0 - kept) / (1.0 - here)
