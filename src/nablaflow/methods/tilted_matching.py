"""Tilted matching: the shift follows estimates on trajectories that are weighted to be the tilt's.

    loss = w w_k | (mu_theta - mu_ref)(x_k) / sigma_k^2  -  c_k / sigma_k^2 T_k |^2,
    w proportional to exp(beta r(x_0) - sum_k log p_theta / p_ref (x_{k-1} | x_k)),

with T_k of `nablaflow.guidance.denoising_adjoint`. The weights are those of trajectory balance
(arXiv 2405.20971): equal at the optimum, so that the noise that they bring dies out on the way.
Where they would leave too few trajectories, a power of them is used, which has the same optimum.
"""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.guidance import DenoisingAdjoint, tempered_weights
from nablaflow.methods.groups import by_prompt
from nablaflow.methods.matching import Matching


@final
class TiltedMatching(Matching):
    """Rewards decide between modes, their gradients within them."""

    name: ClassVar[str] = "tilted-matching"
    needs_group: ClassVar[bool] = True
    needs_path_ratio: ClassVar[bool] = True

    power: float = Field(
        default=8.0, ge=0, description="the adjoint's share is alpha_bar to this power; 0: it alone"
    )
    effective_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="least effective sample size of a prompt's weights, as a share of its images; "
        "1: no weights",
    )

    def value_estimator(self) -> DenoisingAdjoint:
        return DenoisingAdjoint(power=self.power)

    def credits(
        self,
        scores: Float[Tensor, "trajectory"],
        prompts: list[str],
        log_ratio: Float[Tensor, "trajectory"] | None = None,
    ) -> Float[Tensor, "trajectory"]:
        assert log_ratio is not None
        log_weight = self.beta * scores.to(log_ratio) - log_ratio
        weights = by_prompt(
            lambda own: tempered_weights(own, self.effective_share).to(own), log_weight, prompts
        )
        return weights.float()
