"""How far an estimate without a reward in it pulls an untrained policy off the reference.

The target T_k of an estimate of order zero (`Estimator.rewardless_levels`) has mean 0 over the
reference's own trajectories, given any x_k, where x0_hat is the posterior mean of the sampler's
ends. But a sampler of few steps has ends of less contrast than its network foresees, and with
guidance the network is nobody's posterior mean. Then a policy that follows the target moves with
beta = 0 too, by a divergence of its trajectories of at least (Cauchy and Schwarz)

    sum_k  sigma_k^2 / 2  (E T_k . x_k)^2 / E |x_k|^2   nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nablaflow.diffusion import mean_per_score, noised
from nablaflow.diffusion.process import at
from nablaflow.errors import UserError
from nablaflow.estimators.denoising_adjoint import left_over, per_left_over
from nablaflow.estimators.path import Path
from nablaflow.models import DiffusionModel

REPEATS = 4
MOST = 1.0
"""Nats of a whole trajectory."""
ERRORS = 3.0
FEWEST = 8
"""Trajectories: of fewer the standard error is itself not known."""

PullSamples = Float[Tensor, "trajectory levels 2"]
"""T_k . x_k in standard deviations of the kernel, and |x_k|^2: of each trajectory, by k."""


@torch.no_grad()
def pull_samples(
    path: Path,
    model: DiffusionModel,
    levels: Bool[Tensor, "levels"],
    generator: torch.Generator,
) -> PullSamples:
    """What `Pull.of` reads, each the mean over `REPEATS` fresh noises of a trajectory's x_0.

    Args:
        path: trajectories of the reference.
        levels: by k; 0 at the others.
    """
    process, x0 = model.process, path.x0
    per_score = (mean_per_score(process) / process.sigma.double().clamp_min(1e-12)).float()
    found = torch.zeros(len(path), process.steps + 1, 2, dtype=torch.float64)
    levels = levels & (process.alpha_bar > 0)  # pure noise is pulled nowhere
    for level in levels.nonzero()[:, 0].tolist() * REPEATS:
        k = torch.full((len(path),), level, device=x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x = noised(process, x0, k, noise)
        shift = at(per_left_over(process), k, x) * left_over(model, x0, x, k, path.condition)
        asked = at(per_score, k, x) * shift
        found[:, level, 0] += (asked * x).flatten(1).sum(1).cpu() / REPEATS
        found[:, level, 1] += x.square().flatten(1).sum(1).cpu() / REPEATS
    return found


@dataclass(frozen=True)
class Pull:
    """What the target asks of an untrained policy where nothing is rewarded, nats by k.

    Attributes:
        nats: the divergence that it asks for at least; of expectation 0 where it is nothing.
        beyond_doubt: the same, less `ERRORS` standard errors of the mean that it is the square of.
    """

    nats: Float[Tensor, "levels"]
    beyond_doubt: Float[Tensor, "levels"]

    @staticmethod
    def of(samples: PullSamples) -> Pull:
        along, size = samples[..., 0], samples[..., 1].mean(0).clamp_min(1e-12)
        mean, error = along.mean(0), along.std(0) / len(along) ** 0.5
        surely = (mean.abs() - ERRORS * error).clamp_min(0.0)
        return Pull(0.5 * (mean.square() - error.square()) / size, 0.5 * surely.square() / size)

    def check(self, name: str) -> None:
        """Raise `UserError` where it is above `MOST` beyond doubt.

        Args:
            name: of the method.
        """
        if self.beyond_doubt.sum() > MOST:
            k = int(self.nats.argmax())
            raise UserError(
                f"method: without any reward {name} pulls the policy {self.nats.sum():.2g} nats "
                f"off this reference, {self.nats[k]:.2g} of them at k = {k}: its sampler's images "
                "are not what x0_hat foresees; set adjoint_above=0 beside its name (the adjoint at "
                "every step), or use adjoint-matching"
            )
