"""DAG-KL (arXiv 2406.00633): the policy minimises a KL divergence to the flow's kernel.

With D = log p_theta - log p_ref + V_k(x_k) - V_{k-1}(x_{k-1}) the residual of detailed balance,

    gradient of KL(p_theta(. | x_k) || p_ref(. | x_k) exp(V_{k-1} - V_k))  =  E[D grad log p_theta]

where E is over x_{k-1} of the policy: a policy gradient with the reward -D, whose baseline is V_k.
The flow network is trained by D^2, in which the policy is a constant. At the tilt D is 0 for every
transition, and so is the variance of both, as far as kernels of fixed variance can be the tilt's:
exactly for an affine V, else up to O(1 / K).
"""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field

from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import Losses, noise_prediction_change, sigma_at
from nablaflow.methods.detailed_balance import DetailedBalance
from nablaflow.methods.likelihood import clip_metrics, clipped_surrogate, log_ratio, sampled_mean


@final
class DagKL(DetailedBalance):
    """Policy gradients of the KL divergence, with PPO's clipping as in `DDPO`."""

    name: ClassVar[str] = "dag-kl"

    policy_weight: float = Field(default=1.0, gt=0, description="of the policy's term")
    clip_range: float = Field(
        default=1e-4, gt=0, lt=1, description="of the importance ratio about 1, per value"
    )
    max_advantage: float | None = Field(
        default=None, gt=0, description="largest size of -D for the policy, nats; null: no clipping"
    )

    @staticmethod
    def published(beta: float, output_regularization: float) -> DagKL:
        """The authors' choices of the settings (docs/methods/dag_kl.md has what deviates)."""
        return DagKL(
            beta=beta,
            output_regularization=output_regularization,
            forward_looking_predictor="policy",
            next_flow="attached",
        )

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        found, t = self.balance(batch, networks), batch.transitions
        process = networks.model.process
        residual = found.log_ratio.detach() + found.value - found.value_next
        advantage = -residual.detach()
        if self.max_advantage is not None:
            advantage = advantage.clamp(-self.max_advantage, self.max_advantage)
        sampled, sigma = sampled_mean(t), sigma_at(process, t)
        moved = log_ratio(t.x_next, found.policy_mean, sampled, sigma).flatten(1).mean(1)
        surrogate = clipped_surrogate(moved, advantage, self.clip_range)
        terms = {"balance": residual.square(), "policy": self.policy_weight * surrogate}
        if self.output_regularization > 0:
            change = noise_prediction_change(found.policy, t)
            terms["output_regularization"] = self.output_regularization * change
        return Losses(terms, {**found.metrics, **clip_metrics(moved, self.clip_range)})
