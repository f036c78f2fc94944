"""Denoising where modes are chosen, the adjoint near the image.

Under the tilt, two estimates of grad V_k(x_k) are unbiased. One is of order one, the lean adjoint
A_k (see `nablaflow.estimators.adjoint`); one of order zero, the difference of two scores,

    D_k = sqrt(a) / (1 - a) (x_0 - E_ref[x_0 | x_k]),       a = alpha_bar_k / alpha_bar_0,

since the tilt's score is that of its noised samples. D_k says nothing about the reward: the
trajectories must be the tilt's, or weighted to be (`nablaflow.methods.path_weighted_matching`). The
adjoint's tails are heavy between modes, at high noise, where D_k's are light; near the image D_k's
noise drowns the reward and the adjoint has hardly any. So a level decides which of them it is.

A tilt moves the mean of p(x_{k-1} | x_k) by c_k grad V_k(x_k) exactly, with c_k of
`mean_per_score`, whereas a kernel of variance sigma_k^2 that follows grad V_{k-1}(x_{k-1}) is off
by O(1 / K), and so is D_k at an x_k that the sampler came through: it is best noised afresh
(`nablaflow.diffusion.noised_afresh`). To the published step it is handed on times c_k / sigma_k^2.
Where alpha_bar_k is 0, c_k is infinite and D_k is 0; their product is neither.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import has_posterior_means, jump_mean, mean_per_score, mean_per_x0
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.estimators.reference import reference_step, reward_gradient
from nablaflow.models import Condition, DiffusionModel
from nablaflow.typing import Latents, Steps

ADJOINT_ABOVE = Field(
    default=0.9,
    ge=0,
    le=1,
    description="alpha_bar above which the estimate is the adjoint; 0: everywhere, 1: nowhere",
)


@final
class DenoisingAdjoint(Estimator):
    """Light tails at every level; unbiased on trajectories that are weighted to be the tilt's."""

    name: Literal["denoising-adjoint"] = "denoising-adjoint"
    needs_states: ClassVar[bool] = True

    adjoint_above: float = ADJOINT_ABOVE

    def check(self, process: ReverseProcess) -> None:
        if not has_posterior_means(process):
            raise UserError(
                "sampler: denoising-adjoint compares x_0 with the x_k that it came from, which "
                "needs the noise of the noising process; set sampler.name=ddim and sampler.eta=1"
            )

    def check_reward_counts(self, process: ReverseProcess, levels: Int[Tensor, "steps"]) -> None:
        """On trajectories without weights."""
        if self.rewardless_levels(process)[1:].all():
            raise UserError(
                "method.adjoint_above: no step has the adjoint, so that the reward is left out and "
                f"the policy would stay the reference; set method.adjoint_above={_below(process)}"
            )

    def rewardless_levels(self, process: ReverseProcess) -> Bool[Tensor, "levels"]:
        levels = (kept_signal(process) <= self.adjoint_above) & (self.adjoint_above > 0)
        levels[0] = False
        return levels

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        process, t = networks.model.process, path.transitions
        found = self._adjoints(path, networks, beta)
        levels = self.rewardless_levels(process)
        chosen = levels.to(t.k.device)[t.k].nonzero()[:, 0]
        for rows in chosen.split(max(1, len(path))) if len(chosen) else ():
            own = t.trajectory[rows]
            x0, condition = path.x0[own], path.condition[own]
            found[rows] = left_over(networks.model, x0, t.x[rows], t.k[rows], condition)
        exact = (path.level == t.k).reshape(-1, *[1] * (t.x.ndim - 1))
        here = at(torch.where(levels, per_left_over(process), 1.0), t.k, t.x)
        published = at(_gain(process, levels), t.k, t.x)
        return ValueGradients(torch.where(exact, here, published) * found)

    def _adjoints(self, path: Path, networks: Networks, beta: float) -> Latents:
        """A_k at the transitions whose estimate it is; 0 at the others."""
        t, found = path.transitions, torch.zeros_like(path.transitions.x)
        levels = self.rewardless_levels(networks.model.process).to(t.k.device)
        wanted = t.k[~levels[t.k]]
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
            found[here] = carried[t.trajectory[here]].to(found)
        return found


def _below(process: ReverseProcess) -> float:
    """A share with two digits that is less than the most signal that a step keeps."""
    return round(max(0.0, math.ceil(100 * float(kept_signal(process)[1])) / 100 - 0.01), 2)


def kept_signal(process: ReverseProcess) -> Float[Tensor, "levels"]:
    """Of the signal's power in x_0, by k; float64."""
    return process.alpha_bar.double() / process.alpha_bar[0].double()


def _gain(process: ReverseProcess, denoising: Bool[Tensor, "levels"]) -> Float[Tensor, "levels"]:
    """c_k / sigma_k^2; where the estimate is D_k, times what x_0 - E_ref[x_0 | x_k] counts."""
    kept = kept_signal(process)
    noise = 1.0 - process.alpha_bar.double()
    # c_k sqrt(a) / (1 - a), with a = alpha_bar_k / alpha_bar_0.
    per_x0 = mean_per_x0(process) * noise / (1.0 - kept).clamp_min(1e-12)
    scale = torch.where(
        denoising, per_x0 / process.alpha_bar[0].double().sqrt(), mean_per_score(process)
    )
    return (scale / process.sigma.double().square()).float()


@torch.no_grad()
def left_over(
    model: DiffusionModel, x0: Latents, x: Latents, k: Steps, condition: Condition
) -> Latents:
    """x_0 - E_ref[x_0 | x_k], of an x_k that was noised from x_0."""
    with model.reference():
        prediction = model.predict(x, k, condition)
    return x0 - jump_mean(model.process, x, prediction, k, torch.zeros_like(k))


def per_left_over(process: ReverseProcess) -> Float[Tensor, "levels"]:
    """D_k over `left_over`, by k."""
    kept = kept_signal(process)
    return kept.sqrt() / (1.0 - kept).clamp_min(1e-12)
