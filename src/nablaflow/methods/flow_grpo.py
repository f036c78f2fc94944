"""Flow-GRPO (arXiv 2505.05470): PPO's policy gradient with advantages of a prompt's group, and KL.

    A_i = (r_i - mean r) / std r,                                        over the images of a prompt
    loss = max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + w KL(p_theta || p_ref)(x_k),
    ratio = p_theta / p_rollout (x_{k-1} | x_k)

(equations 4 and 5). Flow matching samples by an ODE, which has no such ratio; the paper takes steps
of an SDE of the same marginals in its place, ``sampler.name: flow-grpo``. The loss asks nothing of
the noise but that there is some. Log probabilities and KL are means over a state's values, see
`nablaflow.methods.policy_gradient`.

Nothing here is the tilt's: advantages have no unit, so that beta has no part in the loss; the KL is
that of the step alone, as in DPOK (see `nablaflow.methods.ddpo`); and under that noise the image
still depends on the x_K that it began with, which no kernel can reweigh.
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from nablaflow.methods.contract import CreditGroup
from nablaflow.methods.groups import Deviation, Scores, standardized_by_prompt
from nablaflow.methods.policy_gradient import PolicyGradient


@final
class FlowGRPO(PolicyGradient):
    """As published; beta only says which tilt the result is measured against."""

    name: ClassVar[str] = "flow-grpo"
    credit_group: ClassVar[CreditGroup | None] = "prompt"

    deviation: Deviation = Field(
        default="prompt",
        description="whose standard deviation divides a score less its prompt's mean: the prompt's "
        "(the paper's), or all the rollout's (its code's)",
    )
    kl_weight: float = Field(
        default=0.04,
        ge=0,
        description="of the kernels' KL divergence to the reference's (published: 0.04, and 0.01 "
        "for PickScore)",
    )

    def credits(
        self, scores: Scores, prompts: list[str], log_ratio: Scores | None = None
    ) -> Scores:
        return self.bounded(standardized_by_prompt(scores, prompts, self.deviation))
