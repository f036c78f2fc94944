"""∇-TD(lambda): temporal differences of the value gradient; see `nablaflow.estimators.nabla_td`.

    T_j = (1 - lambda) (beta gamma_j grad r(x0_hat(x_j)) + g_phi(x_j, j))
          + lambda J_ref(x_j)^T T_{j-1}

    forward   (mu_theta - mu_ref)(x_k) / sigma_k^2           follows  T_{k-1}
    flow      beta gamma_k grad r(x0_hat(x_k)) + g_phi(x_k)  follows  J_ref(x_k)^T T_{k-1}

lambda = 1 is adjoint matching; lambda = 0 bootstraps at each step, as residual ∇-DB does.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from nablaflow import estimators
from nablaflow.estimators import Gamma
from nablaflow.methods.matching import Matching


@final
class NablaTD(Matching):
    """The residual ∇-DB conditions as regressions on constant targets, with traces."""

    name: ClassVar[str] = "nabla-td"

    td_lambda: float = Field(
        default=0.9, ge=0, le=1, description="0: one-step bootstrap; 1: the adjoint"
    )
    gamma: Gamma = Field(
        default="alpha_bar", description="gamma_k, trust in the forward-looking reward; 0: no use"
    )

    def value_estimator(self) -> estimators.TemporalDifference:
        return estimators.TemporalDifference(td_lambda=self.td_lambda, gamma=self.gamma)
