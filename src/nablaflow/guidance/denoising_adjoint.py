"""Denoising where modes are chosen, the adjoint near the image.

Under the tilt, two estimates of grad V_k(x_k) are unbiased. One is of order one, the lean adjoint
A_k (see `nablaflow.guidance.adjoint`); one of order zero, the difference of two scores,

    D_k = sqrt(a) / (1 - a) (x_0 - E_ref[x_0 | x_k]),       a = alpha_bar_k / alpha_bar_0,

since the tilt's score is that of its noised samples. D_k says nothing about the reward: the
trajectories must be the tilt's, or weighted to be (`nablaflow.methods.tilted_matching`). The
adjoint's tails are heavy between modes, at high noise, where D_k's are light; near the image D_k's
noise drowns the reward and the adjoint has hardly any. Hence

    T_k = a^power A_k + (1 - a^power) D_k.

A tilt moves the mean of p(x_{k-1} | x_k) by c_k grad V_k(x_k) exactly, with c_k of
`mean_per_score`, whereas a kernel of variance sigma_k^2 that follows grad V_{k-1}(x_{k-1}) is off
by O(1 / K). So T_k is handed on as c_k / sigma_k^2 T_k.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import has_posterior_means, jump_mean, mean_per_score
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.guidance.contract import (
    Estimator,
    Networks,
    Path,
    TrainingBatch,
    ValueGradients,
)
from nablaflow.guidance.reference import reference_step, reward_gradient
from nablaflow.typing import Latents

_NOTHING = 1e-3  # a share of the adjoint not worth a backward pass


@final
class DenoisingAdjoint(Estimator):
    """Light tails at every level; unbiased on trajectories that are weighted to be the tilt's."""

    name: Literal["denoising-adjoint"] = "denoising-adjoint"
    needs_states: ClassVar[bool] = True

    power: float = Field(
        default=8.0,
        ge=0,
        description="the adjoint's share is alpha_bar to this power; 0: it alone",
    )

    def check(self, process: ReverseProcess) -> None:
        if not has_posterior_means(process):
            raise UserError(
                "sampler.eta: denoising-adjoint compares x_0 with the x_k that it came from, which "
                "needs the noise of the noising process; set sampler.eta=1"
            )

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        process = networks.model.process
        kept = process.alpha_bar.double() / process.alpha_bar[0].double()
        share = kept.pow(self.power).float()
        gain = (mean_per_score(process) / process.sigma.double().square()).float()
        k, x = path.transitions.k, path.transitions.x
        adjoint = self._adjoints(path, networks, beta, share)
        denoising = torch.cat([_denoising(path, networks, kept, part) for part in path.parts()])
        mixed = torch.lerp(denoising, adjoint, at(share, k, x))
        return ValueGradients(at(gain, k, x) * mixed)

    def _adjoints(
        self, path: Path, networks: Networks, beta: float, share: Float[Tensor, "levels"]
    ) -> Latents:
        """A_k at the transitions, as far up as it has a share; 0 above."""
        t, found = path.transitions, torch.zeros_like(path.transitions.x)
        wanted = t.k[share.to(t.k.device)[t.k] > _NOTHING]
        if len(wanted) == 0:
            return found
        assert path.states is not None
        carried = beta * reward_gradient(networks, path.x0, path.prompts)
        for level in range(1, int(wanted.max()) + 1):
            k = torch.full((len(path),), level, device=carried.device)
            x = path.states[level]
            with reference_step(networks.model, x, k, k - 1, path.condition) as step:
                carried = step.pull(carried)
            here = t.k == level
            found[here] = carried[t.trajectory[here]]
        return found


@torch.no_grad()
def _denoising(
    path: Path, networks: Networks, kept: Float[Tensor, "levels"], part: TrainingBatch
) -> Latents:
    """D_k."""
    model, t = networks.model, part.transitions
    with model.reference():
        prediction = model.predict(t.x, t.k, part.condition)
    expected = jump_mean(model.process, t.x, prediction, t.k, torch.zeros_like(t.k))
    per_x0 = (kept.sqrt() / (1.0 - kept).clamp_min(1e-12)).float()
    return at(per_x0, t.k, t.x) * (path.x0[t.trajectory] - expected)
