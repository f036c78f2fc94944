"""Adjoint matching (arXiv 2409.08861): the policy's shift follows the lean adjoint.

    loss = w_k | (mu_theta - mu_ref)(x_k) / sigma_k^2  -  a_{k-1} |^2,   a_0 = beta grad r(x_0),
    a_k = J_ref(x_k)^T a_{k-1}

on trajectories of the policy, with the sampler's own noise. With ``weighting: sigma2`` it is the
paper's loss, equation 37, with the discretised adjoint; its only stationary point is the tilt.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from nablaflow.estimators import Adjoint
from nablaflow.methods.matching import Matching


@final
class AdjointMatching(Matching):
    """No flow network; a backward pass of the reference for each step, or for every few."""

    name: ClassVar[str] = "adjoint-matching"

    stride: int = Field(
        default=1, ge=1, description="most steps that one backward pass of the reference jumps"
    )

    def value_estimator(self) -> Adjoint:
        return Adjoint(stride=self.stride)
