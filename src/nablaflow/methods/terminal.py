"""The pruned first-order form of Reward Score Matching (arXiv 2604.17415).

    loss = w_k | (mu_theta - mu_ref)(x_k) / sigma_k^2  -  s_{k-1} beta grad r(x_0) |^2

One reward gradient, at the clean state, serves all steps of its trajectory. Published are s = 1 and
w_k = sigma_k^2: the authors multiply both scores and the reward's gradient by sigma_k.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from nablaflow.estimators import Terminal
from nablaflow.estimators.terminal import Scale
from nablaflow.methods.matching import Matching


@final
class TerminalMatching(Matching):
    """The cheapest method: no flow network, and no pass of the reference but the kernel's."""

    name: ClassVar[str] = "terminal"

    scale: Scale = Field(default="sqrt_alpha_bar", description="s_k (published: one)")

    def value_estimator(self) -> Terminal:
        return Terminal(scale=self.scale)
