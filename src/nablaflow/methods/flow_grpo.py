"""Flow-GRPO (arXiv 2505.05470): PPO's policy gradient with advantages of a prompt's group, and KL.

    A_i = (r_i - mean r) / std r,                                        over the images of a prompt
    loss = max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + w KL(p_theta || p_ref)(x_k),
    ratio = p_theta / p_rollout (x_{k-1} | x_k)

(equations 4 and 5). Flow matching samples by an ODE, which has no such ratio; the paper takes steps
of an SDE of the same marginals in its place, ``sampler.name: flow-grpo``. The loss asks nothing of
the noise but that there is some. Log probabilities and KL are means over a state's values.

Nothing here is the tilt's: advantages have no unit, so that beta has no part in the loss; the KL is
that of the step alone, as in DPOK (see `nablaflow.methods.ddpo`); and under that noise the image
still depends on the x_K that it began with, which no kernel can reweigh.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

from pydantic import Field

from nablaflow.diffusion import kernel_mean
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import (
    CreditGroup,
    Losses,
    StepwiseMethod,
    mean_square,
    norm,
    sigma_at,
)
from nablaflow.methods.groups import EPSILON, Scores, standardized
from nablaflow.methods.likelihood import (
    clip_metrics,
    clipped_surrogate,
    log_ratio,
    reference_mean,
    sampled_mean,
)


@final
class FlowGRPO(StepwiseMethod):
    """As published; beta only says which tilt the result is measured against."""

    name: ClassVar[str] = "flow-grpo"
    needs_reward_gradient: ClassVar[bool] = False
    credit_group: ClassVar[CreditGroup | None] = "prompt"

    deviation: Literal["prompt", "batch"] = Field(
        default="prompt",
        description="whose standard deviation divides a score less its prompt's mean: the prompt's "
        "(the paper's), or all the rollout's (its code's)",
    )
    max_advantage: float | None = Field(
        default=5.0, gt=0, description="largest size of an advantage; null does not clip"
    )
    clip_range: float = Field(
        default=1e-4, gt=0, lt=1, description="of the importance ratio about 1, per value"
    )
    kl_weight: float = Field(
        default=0.04,
        ge=0,
        description="of the kernels' KL divergence to the reference's (published: 0.04, and 0.01 "
        "for PickScore)",
    )

    @property
    def uses_flow(self) -> bool:
        return False

    def group_credits(self, scores: Scores, log_ratio: Scores | None) -> Scores:
        return standardized(scores) if self.deviation == "prompt" else scores - scores.mean()

    def credits(
        self, scores: Scores, prompts: list[str], log_ratio: Scores | None = None
    ) -> Scores:
        found = super().credits(scores, prompts)
        assert found is not None
        if self.deviation == "batch":
            found = found / (scores.std(correction=0) + EPSILON)
        most = self.max_advantage
        return found if most is None else found.clamp(-most, most)

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        assert batch.credit is not None
        model, t = networks.model, batch.transitions
        sigma = sigma_at(model.process, t)
        mean = kernel_mean(model.process, t.x, model.predict(t.x, t.k, batch.condition), t.k)
        moved = log_ratio(t.x_next, mean, sampled_mean(t), sigma).flatten(1).mean(1)
        terms = {"policy": clipped_surrogate(moved, batch.credit, self.clip_range)}
        metrics = {"advantage_size": batch.credit.abs(), **clip_metrics(moved, self.clip_range)}
        if self.kl_weight > 0:
            shift = (mean - reference_mean(model, t.x, t.k, batch.condition)) / sigma
            terms["kl"] = self.kl_weight * 0.5 * mean_square(shift)
            metrics["kl"] = 0.5 * norm(shift).square()
        return Losses(terms, metrics)
