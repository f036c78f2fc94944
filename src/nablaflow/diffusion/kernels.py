"""The Gaussian kernels of a reverse process and their scores."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.prediction import Prediction
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.typing import Latents, Steps


def clip_x0(process: ReverseProcess, prediction: Prediction) -> Prediction:
    """The prediction with x0_hat clamped, if the process asks for it."""
    if process.clip is None:
        return prediction
    clipped = prediction.x0_hat.clamp(-process.clip, process.clip)
    return Prediction(x0_hat=clipped, epsilon=prediction.epsilon)


def kernel_mean(process: ReverseProcess, x: Latents, prediction: Prediction, k: Steps) -> Latents:
    """Mean of p(x_{k-1} | x_k), in float32 or better."""
    return (
        at(process.from_x, k, x) * x
        + at(process.from_x0, k, x) * prediction.x0_hat
        + at(process.from_epsilon, k, x) * prediction.epsilon
    )


def mean_per_x0(process: ReverseProcess) -> Float[Tensor, "levels"]:
    """How far the kernel's mean moves with x0_hat, at a given x_k; float64, 0 at k = 0."""
    alpha_bar = process.alpha_bar.double()
    ratio = (alpha_bar / (1.0 - alpha_bar).clamp_min(1e-12)).sqrt()
    slope = process.from_x0.double() - process.from_epsilon.double() * ratio
    return torch.where(torch.arange(process.steps + 1) > 0, slope, 0.0)


def mean_per_score(process: ReverseProcess) -> Float[Tensor, "levels"]:
    """How far the kernel's mean moves with the score at x_k: by Tweedie, through x0_hat.

    sigma_k^2 in the limit of many steps. A tilt changes the score by grad V_k, and so the mean of
    p(x_{k-1} | x_k) by this times grad V_k exactly, however long the step, where the kernels' means
    are those of q(x_{k-1} | x_k, x_0). Float64, 0 at k = 0.
    """
    alpha_bar = process.alpha_bar.double()
    return mean_per_x0(process) * (1.0 - alpha_bar) / alpha_bar.sqrt()


def adds_noise(process: ReverseProcess) -> bool:
    """Whether the sampler draws any; without it there are no kernels, but an ODE's steps."""
    return bool((process.sigma > 0).any())


def has_posterior_means(process: ReverseProcess) -> bool:
    """Whether the kernels' means are those of q(x_{k-1} | x_k, x_0) at x0_hat.

    So it is for all samplers here but DDIM with eta below 1, Flow-GRPO's and Euler's.
    """
    alpha_bar = process.alpha_bar.double()
    here, following = alpha_bar[1:], alpha_bar[:-1]
    posterior = following.sqrt() * (1.0 - here / following) / (1.0 - here)
    return torch.allclose(mean_per_x0(process)[1:], posterior, rtol=1e-2, atol=1e-4)


def jump_mean(
    process: ReverseProcess, x: Latents, prediction: Prediction, k: Steps, to: Steps
) -> Latents:
    """Mean of x_j given x_k for any j = ``to`` < k: the kernel's own where j = k - 1.

    Further away it is that of q(x_j | x_k, x_0) with x0_hat for x_0 (arXiv 2006.11239, equation
    7, for levels that are not neighbours).
    """
    here, there = at(process.alpha_bar, k, x), at(process.alpha_bar, to, x)
    ratio = here / there
    far = (
        ratio.sqrt() * (1.0 - there) / (1.0 - here) * x
        + there.sqrt() * (1.0 - ratio) / (1.0 - here) * prediction.x0_hat
    )
    near = (k - to == 1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(near, kernel_mean(process, x, prediction, k), far)


def score_of_next(x_next: Latents, mean: Latents, sigma: Tensor) -> Latents:
    """d/dx_{k-1} log N(x_{k-1}; mean, sigma^2 I)."""
    return (mean - x_next) / sigma.square()


def score_of_state(
    x_next: Latents, mean: Latents, sigma: Tensor, x: Latents, *, create_graph: bool
) -> Latents:
    """d/dx_k log N(x_{k-1}; mean(x_k), sigma^2 I), through the graph from ``x`` to ``mean``.

    The graph of ``mean`` is kept. With ``create_graph`` the result can be differentiated again,
    by the network's parameters; without it, it is a constant.
    """
    log_density = -0.5 * ((x_next - mean) / sigma).square().sum()
    (gradient,) = torch.autograd.grad(log_density, x, retain_graph=True, create_graph=create_graph)
    return gradient


def noising_scores(
    process: ReverseProcess, x: Latents, x_next: Latents, k: Steps
) -> tuple[Latents, Latents]:
    """Scores of the noising kernel q(x_k | x_{k-1}) = N(sqrt(a) x_{k-1}, (1 - a) I).

    Returns:
        d/dx_{k-1} log q and d/dx_k log q, with a = alpha_bar_k / alpha_bar_{k-1}.
    """
    ratio = at(process.alpha_bar, k, x) / at(process.alpha_bar, k - 1, x)
    pull = (x - ratio.sqrt() * x_next) / (1.0 - ratio)
    return ratio.sqrt() * pull, -pull
