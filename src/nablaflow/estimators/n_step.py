"""The adjoint over n steps, with a bootstrap at its end instead of the reward at x_0.

grad V_{k-1}(x_{k-1}) ~ J_ref(x_{k-1})^T ... J_ref(x_{j+1})^T b_j(x_j) with j = max(k - 1 - n, 0),
where b is what forward-looking and flow score give. n = 0 is ∇-TD(0), n = K the adjoint. The exact
step takes it one step further, to x_k.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.estimators.adjoint import carry
from nablaflow.estimators.bootstrap import bootstrap, looked_ahead
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.forward_looking import Gamma, check_gamma, gamma_table
from nablaflow.estimators.path import Path, TrainingBatch, ValueGradients
from nablaflow.typing import Latents


@final
class NStep(Estimator):
    """n backward passes for each transition, however long its trajectory is."""

    name: Literal["n-step"] = "n-step"
    needs_states: ClassVar[bool] = True
    uses_flow: ClassVar[bool] = True

    n: int = Field(default=5, ge=0, description="steps of the adjoint before the bootstrap")
    gamma: Gamma = Field(
        default="alpha_bar", description="gamma_k, trust in the forward-looking reward; 0: no use"
    )

    def check(self, process: ReverseProcess) -> None:
        check_gamma(self.gamma, process)

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        strength = beta * gamma_table(self.gamma, networks.model.process, networks.measured_gamma)
        parts = []
        for part in path.parts():
            t, rest = part.transitions, (part.condition, part.prompts, strength)
            start = (t.k - 1 - self.n).clamp_min(0)
            value = bootstrap(networks, path.states_at(t.trajectory, start), start, *rest)
            following = self._carried(path, part, networks, start, value)
            pulled = carry(path, networks, t.trajectory, t.k - 1, t.k, following)
            looked = looked_ahead(networks, t.x, t.k, *rest, "reference")
            here = (part.level == t.k).reshape(-1, *[1] * (t.x.ndim - 1))
            parts.append(ValueGradients(torch.where(here, pulled, following), pulled - looked))
        return ValueGradients.concatenate(parts)

    def _carried(
        self,
        path: Path,
        part: TrainingBatch,
        networks: Networks,
        level: torch.Tensor,
        value: Latents,
    ) -> Latents:
        """``value`` at x_level, taken back to x_{k-1} step by step."""
        t = part.transitions
        for _ in range(self.n):
            rows = (level < t.k - 1).nonzero()[:, 0]
            if len(rows) == 0:
                break
            here, stop = level[rows], level[rows] + 1
            value, level = value.clone(), level.clone()
            value[rows] = carry(path, networks, t.trajectory[rows], here, stop, value[rows])
            level[rows] = stop
        return value
