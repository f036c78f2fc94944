"""The forward-looking value gradient, beta gamma_k grad r(x0_hat(x_k)), of arXiv 2412.07775."""

from __future__ import annotations

import math
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

Gamma = Literal["alpha_bar", "sqrt_alpha_bar", "one"] | float | list[float]
"""Trust in x0_hat at step k: a named schedule, a number for k > 0, or K + 1 for k = 0, ..., K."""


def gamma_table(
    gamma: str | float | Sequence[float], process: ReverseProcess
) -> Float[Tensor, "levels"]:
    """gamma_k for k = 0, ..., K; gamma_0 is 1, for there x0_hat is the state itself.

    Raises:
        UserError: a list of another length than the sampler's levels, of other values than
            finite ones from 0 on, or one that does not begin with 1.
    """
    if isinstance(gamma, int | float):
        gamma = [1.0, *[gamma] * process.steps]
    if not isinstance(gamma, str):
        if len(gamma) != process.steps + 1:
            raise UserError(
                f"method.gamma: {len(gamma)} values for {process.steps + 1} levels; "
                "give one for each k = 0, ..., sampler.steps"
            )
        if not all(math.isfinite(value) and value >= 0 for value in gamma) or gamma[0] != 1:
            raise UserError(
                "method.gamma: give finite values of at least 0, the first of them 1: x_0 is exact"
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
) -> Latents:
    """strength_k grad_x r(decode(x0_hat(x)), prompt), detached, float32.

    Args:
        x0_hat: prediction of the clean state, with its graph from ``x``. The prompts are those of
            its own rows.
        x: leaf states that require a gradient.
        strength: beta gamma_k by k, see `gamma_table`.

    The graph of ``x0_hat`` is kept.

    Raises:
        UserError: the reward's gradient is not finite.
        FloatingPointError: it is, and what the network makes of it is not.
    """
    leaf = x0_hat.detach().requires_grad_()
    scores = reward(model.decode(leaf), prompts)
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    check_finite(reward.name, gradient, "gradient")
    scale = _power_of_two(gradient)
    (pulled,) = torch.autograd.grad(x0_hat, x, gradient * scale, retain_graph=True)
    if not pulled.isfinite().all():
        raise FloatingPointError("the reward's gradient, taken through the network,")
    return at(strength, k, x) * (pulled / scale)


def _power_of_two(gradient: Latents) -> Tensor:
    """Brings each row's largest value near 1: exact, and a network in fp16 keeps its digits."""
    largest = gradient.flatten(1).abs().amax(1)
    exponent = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
    exponent = exponent.clamp(min=-126)  # float32 has no larger power
    return torch.ldexp(torch.ones_like(largest), -exponent).reshape(-1, *[1] * (gradient.ndim - 1))
