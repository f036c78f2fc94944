"""DDPO (arXiv 2305.13301): policy gradients on the transitions; KL to the reference as in DPOK.

    gradient of E r  =  E[ sum_k A  grad log p_theta(x_{k-1} | x_k) ],     A = advantage of x_0

by PPO's clipped importance ratio (DDPO-IS) or as it stands (DDPO-SF). Without a KL term there is no
tilt: the longer it trains, the nearer it comes to the best image alone. With R = beta r and DPOK's
KL (arXiv 2305.16381) the objective is J = E[R - sum_k KL_k(x_k)], whose maximum over all paths is
p_ref exp(R), the tilt, with the gradient

    E[ sum_k (R - sum_{j<k} KL_j(x_j)) grad log p_theta(x_{k-1} | x_k)  -  grad KL_k(x_k) ].

DPOK leaves the inner sum out, the price of what a step leads to; then the kernels follow the
gradient of E[R | x] instead of that of log E_ref[exp R | x]. `kl_to_go` puts it back.

Log probabilities and KL are means over a state's values, see `nablaflow.methods.policy_gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, final

from pydantic import Field

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.contract import CreditGroup
from nablaflow.methods.groups import Scores, less_the_others, standardized
from nablaflow.methods.likelihood import divergence_along_path
from nablaflow.methods.policy_gradient import PolicyGradient
from nablaflow.typing import Batch


@final
class DDPO(PolicyGradient):
    """The published form by default; `tilted` is the one whose optimum is the tilt."""

    name: ClassVar[str] = "ddpo"

    form: Literal["importance-sampling", "score-function"] = Field(
        default="importance-sampling", description="DDPO-IS, or DDPO-SF, which must be on-policy"
    )
    advantage: Literal["prompt", "batch", "centred"] = Field(
        default="prompt",
        description="scores standardized by prompt or over the rollout, without use for beta; or "
        "beta times (score less the mean of the prompt's others)",
    )
    kl_to_go: bool = Field(
        default=False, description="take the KL of the steps that follow off the advantage"
    )

    @staticmethod
    def tilted(beta: float, clip_range: float = 1e-4) -> DDPO:
        """The form whose optimum is the tilt by beta."""
        return DDPO(
            beta=beta,
            advantage="centred",
            max_advantage=None,
            clip_range=clip_range,
            kl_weight=1.0,
            kl_to_go=True,
        )

    @property
    def aims_at_tilt(self) -> bool:
        bounded = self.max_advantage is not None
        return (
            self.advantage == "centred" and self.kl_weight == 1.0 and self.kl_to_go and not bounded
        )

    @property
    def needs_states(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.kl_to_go

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        if self.form == "score-function" and not on_policy:
            raise UserError(
                "method.form: score-function is a gradient on-policy only; use importance-sampling,"
                " or training.data=on-policy training.steps_per_rollout=1"
            )
        if self.kl_to_go and self.kl_weight == 0:
            raise UserError(
                "method.kl_to_go: without a KL term there is nothing to take off; set "
                "method.kl_weight=1 or method.kl_to_go=false"
            )

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        if self.form == "score-function":
            yield "clip_range", "there is no ratio to clip; set method.form=importance-sampling"

    @property
    def credit_group(self) -> CreditGroup:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "batch" if self.advantage == "batch" else "prompt"

    def group_credits(self, scores: Scores, log_ratio: Scores | None) -> Scores:
        if self.advantage == "centred":
            return self.bounded(self.beta * less_the_others(scores))
        return self.bounded(standardized(scores))

    def advantages(self, batch: TrainingBatch, networks: Networks) -> Batch:
        credit = super().advantages(batch, networks)
        if not self.kl_to_go:
            return credit
        divergence = divergence_along_path(batch, networks)
        before = (batch.transitions.k - 1)[None]
        to_go = divergence.cumsum(0).gather(0, before)[0]
        return credit - self.kl_weight * to_go

    def surrogate(self, log_ratio: Batch, advantage: Batch) -> Batch:
        if self.form == "score-function":
            return -advantage * log_ratio
        return super().surrogate(log_ratio, advantage)
