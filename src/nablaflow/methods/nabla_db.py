"""∇-DB: detailed balance with the noising kernel as backward policy, differentiated at both ends.

arXiv 2412.07775, section 3.1. With F_k the flow and q(x_k | x_{k-1}) the noising kernel,

    forward   d/dx_{k-1} [log p_theta(x_{k-1} | x_k) - log q(x_k | x_{k-1})]  =   grad log F_{k-1}
    reverse   d/dx_k     [log p_theta(x_{k-1} | x_k) - log q(x_k | x_{k-1})]  =  -grad log F_k
    terminal  grad log F_0 = grad log R = beta grad r

The reference enters only as the policy's starting point: the target is R, not the tilt of p_ref.
R of a bounded reward has no integral. What solves the conditions then is, from a start x_K, R times
the normal N(x_K / sqrt(alpha_bar_K), (1 - alpha_bar_K) / alpha_bar_K I), far wider than the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from nablaflow.diffusion import kernel_mean, noising_scores, score_of_next, score_of_state
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch, Weighting, step_weight
from nablaflow.estimators.bootstrap import target_flow
from nablaflow.estimators.reference import reward_gradient
from nablaflow.methods.contract import (
    Losses,
    StepwiseMethod,
    check_output_regularization,
    check_residuals,
    flow_scores,
    mean_square,
    noise_prediction_change,
    norm,
    sigma_at,
)
from nablaflow.typing import Latents


@final
class NablaDB(StepwiseMethod):
    """Plain ∇-DB; the flow score is all of grad log F but at the end, where the reward gives it."""

    name: ClassVar[str] = "nabla-db"
    needs_reward_gradient: ClassVar[bool] = True

    forward_weight: float = Field(default=1.0, ge=0, description="of the forward residual")
    reverse_weight: float = Field(
        default=1.0, ge=0, description="of the reverse residual; 0: not computed"
    )
    reverse_policy_graph: bool = Field(
        default=False,
        description="train the policy by the reverse residual too; off, it trains only the flow",
    )
    forward_flow: Literal["attached", "detached-ema"] = Field(
        default="detached-ema",
        description="flow score in the forward target: trained by it (published), or a constant",
    )
    output_regularization: float = Field(
        default=0.0, ge=0, description="weight of the squared change of the noise since the rollout"
    )
    weighting: Weighting = Field(default="sigma2", description="of a step's squared residuals")
    terminal_weight: float = Field(default=1.0, ge=0, description="of g_phi(x_0, 0) = beta grad r")

    @property
    def needs_second_derivatives(self) -> bool:
        return self.reverse_weight > 0 and self.reverse_policy_graph

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        check_output_regularization(self.output_regularization, on_policy)
        check_residuals(self.forward_weight, self.reverse_weight, self.reverse_policy_graph)
        if not flow:
            raise UserError("flow: nabla-db has no other estimate of grad log F; switch it on")
        if process.alpha_bar[1] == process.alpha_bar[0]:
            raise UserError(
                "sampler: x_1 and x_0 have the same noise, so the noising kernel between them has "
                "no density; set steps_offset to 1 or set_alpha_to_one in the model's scheduler"
            )

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        if self.forward_weight == 0:
            yield "forward_flow", "there is no forward residual; set method.forward_weight=1"

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        assert networks.flow is not None
        process, transitions = networks.model.process, batch.transitions
        x = transitions.x.detach().requires_grad_(self.reverse_weight > 0)
        policy = networks.model.predict(x, transitions.k, batch.condition)
        mean = kernel_mean(process, x, policy, transitions.k)
        sigma = sigma_at(process, transitions)
        noising_next, noising_here = noising_scores(
            process, transitions.x, transitions.x_next, transitions.k
        )
        flow_here, flow_next = flow_scores(networks.flow, process, batch)
        last = transitions.k == 1
        terminal = self._terminal_score(batch, networks)
        target = self._forward_target(flow_next, terminal, batch, networks)

        weight = step_weight(self.weighting, process, transitions.k)
        forward = score_of_next(transitions.x_next, mean, sigma) - noising_next - target
        terms = {"forward": self.forward_weight * weight * mean_square(forward)}
        if self.reverse_weight > 0:
            graph = self.reverse_policy_graph
            score = score_of_state(transitions.x_next, mean, sigma, x, create_graph=graph)
            reverse = score - noising_here + flow_here
            terms["reverse"] = self.reverse_weight * weight * mean_square(reverse)
        error = mean_square(flow_next - terminal)
        terms["terminal"] = self.terminal_weight * last.float() * weight * error
        if self.output_regularization > 0:
            change = noise_prediction_change(policy, transitions)
            terms["output_regularization"] = self.output_regularization * change
        return Losses(terms, {"flow_score_norm": norm(target)})

    def _terminal_score(self, batch: TrainingBatch, networks: Networks) -> Latents:
        """Grad log R at x_0; 0 in the rows of other transitions."""
        transitions = batch.transitions
        rows = (transitions.k == 1).nonzero()[:, 0]
        score = torch.zeros_like(transitions.x_next)
        if len(rows) == 0:
            return score
        prompts = [batch.prompts[row] for row in rows.tolist()]
        score[rows] = self.beta * reward_gradient(networks, transitions.x_next[rows], prompts)
        return score

    def _forward_target(
        self, flow_next: Latents, terminal: Latents, batch: TrainingBatch, networks: Networks
    ) -> Latents:
        """Grad log F at x_{k-1}: the flow score, or at x_0 the reward's own gradient."""
        used = flow_next
        if self.forward_flow == "detached-ema":
            t = batch.transitions
            used = target_flow(networks, t.x_next, t.k - 1, batch.condition)
        last = (batch.transitions.k == 1).reshape(-1, *[1] * (used.ndim - 1))
        return torch.where(last, terminal, used)
