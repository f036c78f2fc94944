"""∇-TD(lambda): between one-step bootstrap and the adjoint.

With b_j the value gradient that forward-looking and flow score give at x_j, and J_ref the Jacobian
of the reference kernel's mean,

    T_0 = beta grad r(x_0)          T_j = (1 - lambda) b_j(x_j) + lambda J_ref(x_j)^T T_{j-1}

The policy's shift follows T_{k-1}, or T_k by the exact step, and the flow score follows
J_ref(x_k)^T T_{k-1} less the forward-looking part at x_k. lambda = 1 is adjoint matching;
lambda = 0 is the expectation of the reverse residual over the kernel's noise, where the forward
condition holds.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.estimators.bootstrap import target_flow
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.forward_looking import Gamma, check_gamma, forward_looking, gamma_table
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.estimators.reference import ReferenceStep, reference_step, reward_gradient
from nablaflow.typing import Latents


@final
class TemporalDifference(Estimator):
    """Bias of the bootstrap against variance of the adjoint, by one number."""

    name: Literal["nabla-td"] = "nabla-td"
    needs_states: ClassVar[bool] = True
    uses_flow: ClassVar[bool] = True

    td_lambda: float = Field(
        default=0.9, ge=0, le=1, description="0: one-step bootstrap; 1: the adjoint"
    )
    gamma: Gamma = Field(
        default="alpha_bar", description="gamma_k, trust in the forward-looking reward; 0: no use"
    )

    def check(self, process: ReverseProcess) -> None:
        check_gamma(self.gamma, process)

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        t = path.transitions
        strength = beta * gamma_table(self.gamma, networks.model.process, networks.measured_gamma)
        target = beta * reward_gradient(networks, path.x0, path.prompts)
        found, flow = torch.empty_like(t.x), torch.empty_like(t.x)
        last, highest = int(t.k.max()), int(path.level.max())
        at_end = path.level == 0
        found[at_end] = target[t.trajectory[at_end]]
        for k in range(1, last + 1):
            here = t.k == k
            pulled, looked = self._step(path, networks, k, target, strength)
            flow[here] = (pulled - looked)[t.trajectory[here]]
            if k <= highest:
                target = self._mix(path, networks, k, pulled, looked)
                wanted = path.level == k
                found[wanted] = target[t.trajectory[wanted]]
        return ValueGradients(found, flow)

    def _step(
        self,
        path: Path,
        networks: Networks,
        k: int,
        target: Latents,
        strength: Float[Tensor, "levels"],
    ) -> tuple[Latents, Latents]:
        """J_ref(x_k)^T target, and the forward-looking part at x_k, by one pass."""
        assert path.states is not None
        steps = torch.full((len(path),), k, device=target.device)
        model = networks.model
        with reference_step(model, path.states[k], steps, steps - 1, path.condition) as step:
            pulled = step.pull(target)
            if strength[k] == 0:
                return pulled, torch.zeros_like(pulled)
            return pulled, _looked(step, networks, steps, path.prompts, strength)

    def _mix(
        self, path: Path, networks: Networks, k: int, pulled: Latents, looked: Latents
    ) -> Latents:
        """T_k."""
        if self.td_lambda == 1.0:
            return pulled
        assert path.states is not None
        steps = torch.full((len(path),), k, device=pulled.device)
        flow = target_flow(networks, path.states[k], steps, path.condition)
        return torch.lerp(looked + flow, pulled, self.td_lambda)


def _looked(
    step: ReferenceStep,
    networks: Networks,
    k: Tensor,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
) -> Latents:
    x0_hat = step.prediction.x0_hat
    return forward_looking(networks, x0_hat, step.x, k, prompts, strength)
