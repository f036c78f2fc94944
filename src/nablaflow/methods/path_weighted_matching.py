"""Path-weighted matching: the shift follows estimates on trajectories weighted to be the tilt's.

    loss = w w_k | (mu_theta - mu_ref)(x_k) / sigma_k^2  -  c_k / sigma_k^2 T_k |^2,
    w proportional to exp(beta r(x_0) - sum_k log p_theta / p_ref (x_{k-1} | x_k)),

with T_k of `nablaflow.estimators.denoising_adjoint`. The weights are those of trajectory balance
(arXiv 2405.20971): equal at the optimum, so that the noise that they bring dies out on the way.
Where they would leave too few trajectories, a power of them is used, which has the same optimum.
A reference whose trajectories are not what its x0_hat foresees is refused, see
`nablaflow.estimators.pull`. Tilt Matching (arXiv 2512.21829) has the same goal and another way.
"""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import DenoisingAdjoint, tempered_weights
from nablaflow.estimators.denoising_adjoint import ADJOINT_ABOVE
from nablaflow.methods.contract import CreditGroup
from nablaflow.methods.groups import Scores
from nablaflow.methods.matching import Matching


@final
class PathWeightedMatching(Matching):
    """Rewards decide between modes, their gradients within them."""

    name: ClassVar[str] = "path-weighted-matching"
    credit_group: ClassVar[CreditGroup | None] = "prompt"
    needs_path_ratio: ClassVar[bool] = True

    adjoint_above: float = ADJOINT_ABOVE
    effective_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="least effective sample size of a prompt's weights, as a share of its images; "
        "1: all equal, which leaves the reward to the adjoint's levels",
    )

    def value_estimator(self) -> DenoisingAdjoint:
        return DenoisingAdjoint(adjoint_above=self.adjoint_above)

    @property
    def weighs_by_reward(self) -> bool:
        return self.effective_share < 1

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        super().check(process, flow=flow, on_policy=on_policy)
        if self.output_regularization > 0:
            raise UserError(
                "method.output_regularization: path-weighted-matching trains on states that "
                "nothing was predicted at before; use method.output_regularization=0"
            )

    def fresh_levels(self, process: ReverseProcess) -> Bool[Tensor, "levels"]:
        return self.value_estimator().rewardless_levels(process)

    def group_credits(self, scores: Scores, log_ratio: Scores | None) -> Scores:
        assert log_ratio is not None
        log_weight = self.beta * scores.to(log_ratio) - log_ratio
        return tempered_weights(log_weight, self.effective_share)
