"""DAG-DB (arXiv 2406.00633): the squared residual of detailed balance.

    loss = (log p_theta(x_{k-1} | x_k) - log p_ref(x_{k-1} | x_k) + V_k(x_k) - V_{k-1}(x_{k-1}))^2

trains policy and flow network together. It is 0 for all transitions at the tilt alone, if kernels
of fixed variance can be the tilt's (V affine); else the least is above 0, by O(1 / K).
"""

from __future__ import annotations

from typing import ClassVar, final

from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import Losses, noise_prediction_change
from nablaflow.methods.detailed_balance import DetailedBalance


@final
class DagDB(DetailedBalance):
    """Any transitions will do, on-policy or not."""

    name: ClassVar[str] = "dag-db"

    @staticmethod
    def published(beta: float, output_regularization: float) -> DagDB:
        """The authors' choices of the settings (docs/methods/dag_db.md has what deviates)."""
        return DagDB(
            beta=beta,
            output_regularization=output_regularization,
            forward_looking_predictor="policy",
            next_flow="attached",
        )

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        found = self.balance(batch, networks)
        residual = found.log_ratio + found.value - found.value_next
        terms = {"balance": residual.square()}
        if self.output_regularization > 0:
            change = noise_prediction_change(found.policy, batch.transitions)
            terms["output_regularization"] = self.output_regularization * change
        return Losses(terms, found.metrics)
