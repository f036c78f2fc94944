"""The forward-looking value gradient, beta gamma_k grad r(x0_hat(x_k)), of arXiv 2412.07775."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.models.contract import DiffusionModel
from nablaflow.rewards import NamedReward, check_finite
from nablaflow.typing import Latents, Steps

Gamma = Literal["alpha_bar", "sqrt_alpha_bar", "one"] | list[float]
"""Trust in x0_hat at step k: a named schedule, or K + 1 values for k = 0, ..., K."""


def gamma_table(gamma: str | Sequence[float], process: ReverseProcess) -> Float[Tensor, "levels"]:
    """gamma_k for k = 0, ..., K; gamma_0 is 1, for there x0_hat is the state itself.

    Raises:
        UserError: a list of another length than the sampler's levels.
    """
    if not isinstance(gamma, str):
        if len(gamma) != process.steps + 1:
            raise UserError(
                f"method.gamma: {len(gamma)} values for {process.steps + 1} levels; "
                "give one for each k = 0, ..., sampler.steps"
            )
        return torch.tensor(gamma, dtype=torch.float32)
    named = {
        "alpha_bar": process.alpha_bar,
        "sqrt_alpha_bar": process.alpha_bar.sqrt(),
        "one": torch.ones_like(process.alpha_bar),
    }
    return torch.cat([torch.ones(1), named[gamma][1:]])


def forward_looking(
    model: DiffusionModel,
    reward: NamedReward,
    x0_hat: Latents,
    x: Latents,
    k: Steps,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
    *,
    retain_graph: bool = False,
) -> Latents:
    """strength_k grad_x r(decode(x0_hat(x)), prompt), detached, float32.

    Args:
        x0_hat: prediction of the clean state, with its graph from ``x``. The prompts are those of
            its own rows.
        x: leaf states that require a gradient.
        strength: beta gamma_k by k, see `gamma_table`.
        retain_graph: keep the graph of ``x0_hat`` for further use.

    Raises:
        UserError: the gradient is not finite.
    """
    scores = reward(model.decode(x0_hat), prompts)
    (gradient,) = torch.autograd.grad(scores.sum(), x, retain_graph=retain_graph)
    check_finite(reward.name, gradient, "gradient")
    return at(strength, k, x) * gradient
