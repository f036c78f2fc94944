"""The forward-looking value gradient, beta gamma_k grad r(x0_hat(x_k)), of arXiv 2412.07775."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.estimators.reference import reward_gradient, vector_jacobian
from nablaflow.models import Condition
from nablaflow.typing import Latents, Steps

Gamma = Literal["measured", "alpha_bar", "sqrt_alpha_bar", "one"] | float | list[float]
"""Trust in x0_hat at step k: measured on the reference (`nablaflow.estimators.measured_gamma`),
a named schedule, a number for k > 0, or K + 1 numbers for k = 0, ..., K."""
Predictor = Literal["policy", "reference"]


def gamma_table(
    gamma: str | float | Sequence[float],
    process: ReverseProcess,
    measured: Float[Tensor, "levels"] | None = None,
) -> Float[Tensor, "levels"]:
    """gamma_k for k = 0, ..., K; gamma_0 is 1, for there x0_hat is the state itself.

    Args:
        measured: `Networks.measured_gamma`, where ``gamma`` is ``measured``.

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
    if gamma == "measured":
        assert measured is not None, "nothing has measured it"
        return measured
    named = {
        "alpha_bar": process.alpha_bar,
        "sqrt_alpha_bar": process.alpha_bar.sqrt(),
        "one": torch.ones_like(process.alpha_bar),
    }
    return torch.cat([torch.ones(1), named[gamma][1:]])


def check_gamma(gamma: str | float | Sequence[float], process: ReverseProcess) -> None:
    """Raise `UserError` where gamma does not fit the sampler."""
    if gamma != "measured":
        gamma_table(gamma, process)


def check_gamma_counts(
    gamma: str | float | Sequence[float], process: ReverseProcess, levels: Int[Tensor, "steps"]
) -> None:
    """Raise `UserError` where gamma leaves the reward out.

    Args:
        levels: of the states that the reward is looked ahead from.
    """
    if gamma != "measured" and not gamma_table(gamma, process)[levels].any():
        raise UserError(
            "method.gamma: 0 at every step leaves the reward out, and the policy would stay the "
            "reference; set method.gamma=one"
        )


def forward_looking(
    networks: Networks,
    x0_hat: Latents,
    x: Latents,
    k: Steps,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
) -> Latents:
    """strength_k grad_x r(decode(x0_hat(x)), prompt), detached, float32.

    Args:
        x0_hat: prediction of the clean state, with its graph from ``x``, which is kept. The
            prompts are those of its own rows.
        x: leaf states that require a gradient.
        strength: beta gamma_k by k, see `gamma_table`.

    Raises:
        UserError: the reward's gradient is not finite.
        FloatingPointError: it is, and what the network makes of it is not.
    """
    gradient = reward_gradient(networks, x0_hat, prompts)
    return at(strength, k, x) * vector_jacobian(x0_hat, x, gradient, "the reward's gradient")


def look_ahead(
    networks: Networks,
    x: Latents,
    k: Steps,
    condition: Condition,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
    predictor: Predictor,
) -> Latents:
    """The forward-looking gradient at any states.

    At x_0 it is beta grad r, which is exact: there is no network on the way, and none is asked.
    """
    rows = (k > 0).nonzero()[:, 0]
    with networks.model.reference() if predictor == "reference" else nullcontext():
        leaf, reached, x0_hat = x[rows].detach(), x.detach().clone(), None
        if len(rows):
            with torch.enable_grad():
                leaf.requires_grad_()
                x0_hat = networks.model.predict(leaf, k[rows], condition[rows]).x0_hat
            reached[rows] = x0_hat.detach().to(reached.dtype)
        gradient = reward_gradient(networks, reached, prompts)
        if x0_hat is not None:
            gradient[rows] = vector_jacobian(
                x0_hat, leaf, gradient[rows], "the reward's gradient", keep_graph=False
            )
    return at(strength, k, x) * gradient


@final
class ForwardLooking(Estimator):
    """Biased where the reward bends within what x_k leaves open, exact at k = 0."""

    name: Literal["forward-looking"] = "forward-looking"
    gamma: Gamma = Field(
        default="alpha_bar", description="gamma_k, trust in the forward-looking reward"
    )
    predictor: Predictor = Field(
        default="policy", description="whose x0_hat the reward sees (published: policy)"
    )

    def check(self, process: ReverseProcess) -> None:
        check_gamma(self.gamma, process)

    def check_reward_counts(self, process: ReverseProcess, levels: Int[Tensor, "steps"]) -> None:
        check_gamma_counts(self.gamma, process, levels)

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        strength = beta * gamma_table(self.gamma, networks.model.process, networks.measured_gamma)
        parts = [
            look_ahead(
                networks,
                part.state,
                part.level,
                part.condition,
                part.prompts,
                strength,
                self.predictor,
            )
            for part in path.parts()
        ]
        return ValueGradients(torch.cat(parts))
