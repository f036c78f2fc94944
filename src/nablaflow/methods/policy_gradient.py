"""What policy gradients on transitions share: PPO's surrogate, and the KL of DPOK beside it.

    loss = max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + w KL(p_theta || p_ref)(x_k),
    ratio = p_theta / p_rollout (x_{k-1} | x_k)

(arXiv 1707.06347, equation 7; arXiv 2305.16381). A log probability is the *mean* over a state's
values, as in the code of DDPO's authors, and so is the KL beside it. That divides the gradient by
their number, which Adam does not see; but `clip_range` so bounds the ratio of densities per value:
1e-4 is 1.6 nats of a latent of 4 x 64 x 64.
"""

from __future__ import annotations

import abc
from typing import ClassVar

from pydantic import Field

from nablaflow.diffusion import kernel_mean
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import Losses, StepwiseMethod, mean_square, norm, sigma_at
from nablaflow.methods.groups import Scores
from nablaflow.methods.likelihood import (
    clip_metrics,
    clipped_surrogate,
    log_ratio,
    reference_mean,
    sampled_mean,
)
from nablaflow.typing import Batch


class PolicyGradient(StepwiseMethod, abc.ABC):
    """A method whose credits are the advantages of its transitions."""

    needs_reward_gradient: ClassVar[bool] = False

    max_advantage: float | None = Field(
        default=5.0, gt=0, description="largest size of an advantage; null does not clip"
    )
    clip_range: float = Field(
        default=1e-4, gt=0, lt=1, description="of the importance ratio about 1, per value"
    )
    kl_weight: float = Field(
        default=0.0, ge=0, description="of the kernels' KL divergence to the reference's"
    )

    @property
    def uses_flow(self) -> bool:
        return False

    def bounded(self, advantage: Scores) -> Scores:
        """By `max_advantage`."""
        most = self.max_advantage
        return advantage if most is None else advantage.clamp(-most, most)

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        model, t = networks.model, batch.transitions
        sigma = sigma_at(model.process, t)
        mean = kernel_mean(model.process, t.x, model.predict(t.x, t.k, batch.condition), t.k)
        moved = log_ratio(t.x_next, mean, sampled_mean(t), sigma).flatten(1).mean(1)
        advantage = self.advantages(batch, networks)
        terms = {"policy": self.surrogate(moved, advantage)}
        metrics = {"advantage_size": advantage.abs(), **clip_metrics(moved, self.clip_range)}
        if self.kl_weight > 0:
            shift = (mean - reference_mean(model, t.x, t.k, batch.condition)) / sigma
            terms["kl"] = self.kl_weight * 0.5 * mean_square(shift)
            metrics["kl"] = 0.5 * norm(shift).square()
        return Losses(terms, metrics)

    def advantages(self, batch: TrainingBatch, networks: Networks) -> Batch:
        """A, of each transition."""
        assert batch.credit is not None
        return batch.credit

    def surrogate(self, log_ratio: Batch, advantage: Batch) -> Batch:
        """What falls along the policy gradient, from the log of the importance ratio."""
        return clipped_surrogate(log_ratio, advantage, self.clip_range)
