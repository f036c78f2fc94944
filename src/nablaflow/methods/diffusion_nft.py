"""DiffusionNFT (arXiv 2509.16117): the forward process, with the bad images pushed away from.

    loss = r |v+ - v|^2 + (1 - r) |v- - v|^2,        v = epsilon - x_0,
    v+ = (1 - b) v_old + b v_theta,                  v- = (1 + b) v_old - b v_theta

(equation 5 and theorem 3.2) at x_s = (1 - s) x_0 + s epsilon, where x_0 is an image of the old
policy, noised afresh, and r in [0, 1] the probability that it is a good one:

    r = 1/2 + 1/2 clip((reward - mean of its prompt) / Z, -1, 1).

There is no likelihood, so any sampler will do. The old policy follows the trained one, slowly once
it has begun to, see `old_policy_decay`. In x_0's units all is the same, for v = (x_s - x0_hat) / s.

For given old images the optimum is v_old + (2 / b) E[r (v - v_old) | x_s]: of all good images, with
more weight than they have. Each round goes on from there, so the iteration has no end but the best
images, as reward-weighted regression has none; beta has no part in it, and the optimum is no tilt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import flow_time
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import (
    CreditGroup,
    Losses,
    SamplerNoise,
    StepwiseMethod,
    mean_square,
)
from nablaflow.methods.groups import Deviation, Scores, standardized_by_prompt
from nablaflow.typing import Batch, Latents


@final
class DiffusionNFT(StepwiseMethod):
    """As published; beta only says which tilt the result is measured against."""

    name: ClassVar[str] = "diffusion-nft"
    needs_reward_gradient: ClassVar[bool] = False
    credit_group: ClassVar[CreditGroup | None] = "prompt"
    sampler_noise: ClassVar[SamplerNoise] = "any"

    policy_share: float = Field(
        default=1.0,
        gt=0,
        description="b, the policy's share in the implicit positive policy; a smaller one goes "
        "further in a round (published: 1, and 0.1 for several rewards)",
    )
    deviation: Deviation = Field(
        default="batch",
        description="whose standard deviation the scores are measured in: the prompt's, or all the "
        "rollout's (published)",
    )
    full_score: float = Field(
        default=5.0, gt=0, description="Z, in standard deviations: from there on r is 0 or 1"
    )
    adaptive_weighting: bool = Field(
        default=True,
        description="divide the squared error of x_0 by its mean size, a constant (published); "
        "off, the error is that of v",
    )
    kl_weight: float = Field(
        default=2e-5,
        ge=0,
        description="of the squared change of v from the reference's (published: 1e-4 beside five "
        "times the loss)",
    )
    decay_flat: int = Field(
        default=0, ge=0, description="updates in which the old policy is the last one"
    )
    decay_rise: float = Field(
        default=1e-3, ge=0, description="by which its decay rises with each update after them"
    )
    decay_most: float = Field(default=0.5, ge=0, lt=1, description="largest decay of it")

    @property
    def uses_flow(self) -> bool:
        return False

    def old_policy_decay(self, update: int) -> float:
        rounds = max(0, update - self.decay_flat)
        return min(self.decay_rise * rounds, self.decay_most)

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        stays = [name for name in ("decay_rise", "decay_most") if getattr(self, name) == 0]
        for zero in stays:
            others = {"decay_flat", "decay_rise", "decay_most"} - set(stays)
            for name in sorted(others):
                yield name, f"the old policy is the last one; set method.{zero} above 0"

    def fresh_levels(self, process: ReverseProcess) -> Bool[Tensor, "levels"]:
        return torch.arange(process.steps + 1) > 0

    def credits(
        self, scores: Scores, prompts: list[str], log_ratio: Scores | None = None
    ) -> Scores:
        """How good each image is: r."""
        found = standardized_by_prompt(scores, prompts, self.deviation)
        return 0.5 + 0.5 * (found / self.full_score).clamp(-1.0, 1.0)

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        assert batch.credit is not None
        assert batch.x0 is not None
        assert networks.old_policy is not None
        model, t = networks.model, batch.transitions
        with networks.old_policy.active(), torch.no_grad():
            old = model.predict(t.x, t.k, batch.condition).x0_hat
        with model.reference(), torch.no_grad():
            reference = model.predict(t.x, t.k, batch.condition).x0_hat
        policy = model.predict(t.x, t.k, batch.condition).x0_hat
        s = flow_time(at(model.process.alpha_bar, t.k, t.x))
        change = self.policy_share * (policy - old)
        positive = self._error(old + change - batch.x0, s)
        negative = self._error(old - change - batch.x0, s)
        from_reference = mean_square((policy - reference) / s)
        terms = {"policy": batch.credit * positive + (1.0 - batch.credit) * negative}
        if self.kl_weight > 0:
            terms["kl"] = self.kl_weight * from_reference
        metrics = {
            "goodness": batch.credit,
            "change_from_old": mean_square((policy - old) / s),
            "change_from_reference": from_reference,
        }
        return Losses(terms, metrics)

    def _error(self, error: Latents, s: Tensor) -> Batch:
        """Of a prediction of x_0."""
        if not self.adaptive_weighting:
            return mean_square(error / s)
        size = error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        return mean_square(error) / size
