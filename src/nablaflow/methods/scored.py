"""The reward of a state that the policy's parameters lead to, as a function of them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nablaflow.estimators import Networks
from nablaflow.estimators.reference import reward_and_gradient
from nablaflow.typing import Latents


@dataclass(frozen=True)
class ScoredStates:
    """Rewards of a batch of clean states.

    Attributes:
        reward: with the graph of the states.
        gradient: grad r by the states, a constant.
    """

    reward: Float[Tensor, "batch"]
    gradient: Latents


def score(networks: Networks, x0: Latents, prompts: list[str]) -> ScoredStates:
    """r(decode(x0), prompt), whose gradient by ``x0`` is found at once.

    So the graphs of reward and decoder are gone before the policy's are gone through, and a reward
    with a bad gradient is blamed for it by name.

    Raises:
        UserError: the reward or its gradient is not finite.
        FloatingPointError: the state is not.
    """
    if not x0.isfinite().all():
        raise FloatingPointError("a state that the reward is asked about")
    scores, gradient = reward_and_gradient(networks, x0, prompts)
    return ScoredStates(scores + slope(x0, gradient), gradient)


def slope(x: Latents, gradient: Latents) -> Float[Tensor, "batch"]:
    """Zero, with ``gradient`` as its gradient by ``x``."""
    return ((x - x.detach()) * gradient).flatten(1).sum(1)
