"""The published step without training, its gradient at the kernel's mean: as it is right on a line.

    python benchmarks/gradient_at_mean.py warmth preference hue digits patches

In kernel_shape.py the step sigma_k^2 grad V_{k-1} is right where V is, and its gradient is that at
the next state. Guided sampling, and so the error budget, takes it at x_k. Here the reference's
kernels are moved by the forward-looking gradient a level further down, at their own mean.
"""

from __future__ import annotations

import argparse

import torch
from diffusers.utils.torch_utils import randn_tensor
from error_budget import CASES, Judge, prepared, show
from torch import Tensor

from nablaflow.diffusion import Noise, trajectory_noise
from nablaflow.diffusion.process import at
from nablaflow.estimators import Networks, forward_looking
from nablaflow.estimators.reference import reference_step, reward_gradient

AT_ONCE = 64


@torch.no_grad()
def sample(networks: Networks, beta: float, prompts: list[str], noise: Noise) -> Tensor:
    """Clean states, one for each prompt."""
    model, process = networks.model, networks.model.process
    condition, shape = model.condition(prompts), (len(prompts), *model.state_shape)
    strength = torch.full((process.steps + 1,), beta)

    def drawn() -> Tensor:
        return randn_tensor(shape, noise, model.device, torch.float32)

    def gradient(x: Tensor, level: int) -> Tensor:
        if level == 0:
            return beta * reward_gradient(networks, x, prompts)
        k = torch.full((len(prompts),), level)
        with reference_step(model, x, k, k - 1, condition) as step:
            x0_hat = step.prediction.x0_hat
            return forward_looking(networks, x0_hat, step.x, k, prompts, strength)

    x = drawn()
    for level in range(process.steps, 0, -1):
        k = torch.full((len(prompts),), level)
        with reference_step(model, x, k, k - 1, condition) as step:
            mean = step.mean.detach()
        sigma = at(process.sigma, k, x)
        x = mean + sigma.square() * gradient(mean, level - 1) + sigma * drawn()
    return x


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--n", type=int, default=256)
    given = parser.parse_args()
    for name in given.cases:
        parts = prepared(name, seed=0, updates=1)
        networks, beta = Networks(parts.model, parts.reward), parts.config.method.beta
        states = []
        for first in range(0, given.n, AT_ONCE):
            rows = range(first, min(given.n, first + AT_ONCE))
            prompts = [parts.evaluated[row % len(parts.evaluated)] for row in rows]
            states.append(sample(networks, beta, prompts, trajectory_noise(list(rows))))
        show(name, {"at the mean": Judge.of(parts).figures(torch.cat(states))})


if __name__ == "__main__":
    main()
