"""Forward-looking with flow score, the value gradient of arXiv 2412.07775.

The flow score learns from the reverse condition, d/dx_k [log p_theta - log p_ref] = -grad V_k, as
published; here the policy's side is a constant, so that the residual trains the flow score alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import kernel_mean, score_of_state
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.estimators.bootstrap import bootstrap, looked_ahead
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.forward_looking import (
    Gamma,
    Predictor,
    check_gamma,
    check_gamma_counts,
    gamma_table,
)
from nablaflow.estimators.path import Path, TrainingBatch, ValueGradients
from nablaflow.typing import Latents


@final
class ForwardLookingFlow(Estimator):
    """One step of bootstrap; g_phi follows the log ratio of the kernels at the sampled x_{k-1}."""

    name: Literal["forward-looking-flow"] = "forward-looking-flow"
    uses_flow: ClassVar[bool] = True
    reads_kernels: ClassVar[bool] = True

    gamma: Gamma = Field(
        default="alpha_bar", description="gamma_k, trust in the forward-looking reward"
    )
    predictor: Predictor = Field(
        default="reference", description="whose x0_hat the reward sees (published: policy)"
    )

    def check(self, process: ReverseProcess) -> None:
        check_gamma(self.gamma, process)

    def check_reward_counts(self, process: ReverseProcess, levels: Int[Tensor, "steps"]) -> None:
        """The flow network learns of the reward by the policy alone, which must have it first."""
        check_gamma_counts(self.gamma, process, levels)

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        strength = beta * gamma_table(self.gamma, networks.model.process, networks.measured_gamma)
        parts = []
        for part in path.parts():
            t, rest = part.transitions, (part.condition, part.prompts, strength)
            target = bootstrap(networks, part.state, part.level, *rest, self.predictor)
            looked = looked_ahead(networks, t.x, t.k, *rest, self.predictor)
            parts.append(ValueGradients(target, -reverse_score(part, networks) - looked))
        return ValueGradients.concatenate(parts)


def reverse_score(batch: TrainingBatch, networks: Networks) -> Latents:
    """d/dx_k [log p_theta - log p_ref](x_{k-1} | x_k), detached."""
    model, t = networks.model, batch.transitions
    x = t.x.detach().requires_grad_()
    sigma = at(model.process.sigma, t.k, t.x)

    def score() -> Latents:
        mean = kernel_mean(model.process, x, model.predict(x, t.k, batch.condition), t.k)
        return score_of_state(t.x_next, mean, sigma, x, create_graph=False)

    with torch.enable_grad():
        with model.reference():
            reference = score()
        return score() - reference
