"""A problem whose answer is known: a prior, a reward, a tilt, and the steps of the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nablaflow.config.arguments import ProblemArguments, checked
from nablaflow.diffusion import ReverseProcess
from nablaflow.errors import UserError, show
from nablaflow.exact.mixture import GaussianMixture, Points
from nablaflow.exact.paths import PATHS, TIMESTEPS, NoisePath, Sampling
from nablaflow.exact.process import exact_process
from nablaflow.exact.rejection import Target
from nablaflow.exact.rewards import ExactReward, check_dimension
from nablaflow.rewards import NamedReward

REFERENCE_SAMPLES = 200_000
STEPS = 50


@dataclass(frozen=True)
class Problem:
    """Sample p*(x) proportional to prior(x) exp(beta r(x)), by aligning a sampler of the prior.

    Attributes:
        beta: the tilt.
        steps: K, of the sampler.
        name: for tables.
        variance: of the sampler's kernels, see `nablaflow.diffusion.variance`; None: analytic where
            the sampler's noise is the posterior's.
        path: by which it noises, ``diffusion`` or ``flow``, see `nablaflow.exact.paths`.
        sampler: of the path; None: its default.

    Raises:
        UserError: the tilt cannot be normalised, dimensions or types disagree, fewer than 2 steps,
            more than the schedule has, or a path, sampler or variance that is none.
    """

    prior: GaussianMixture
    reward: ExactReward
    beta: float
    steps: int = STEPS
    name: str = "problem"
    variance: str | None = None
    path: str = "diffusion"
    sampler: str | None = None

    def __post_init__(self) -> None:
        checked(ProblemArguments, beta=self.beta, steps=self.steps, name=self.name)
        if not isinstance(self.prior, GaussianMixture):
            raise UserError(f"prior: {show(self.prior)} is none; give a nf.exact.GaussianMixture")
        if not isinstance(self.reward, ExactReward):
            raise UserError(
                f"reward: of {show(self.reward)} no tilt is known; give a LinearReward, "
                "QuadraticReward or BumpReward of nf.exact"
            )
        if self.steps < 2:
            raise UserError(f"steps: {self.steps}; a sampler has at least 2")
        if self.steps > TIMESTEPS:
            raise UserError(f"steps: {self.steps}; the laboratory's schedule has {TIMESTEPS}")
        if not 0 <= self.beta < float("inf"):
            raise UserError(f"beta: {self.beta:g}; give a finite tilt of at least 0")
        _ = self.sampling
        check_dimension(self.reward, self.prior)
        _ = self.target  # refuse now what has no tilt

    @cached_property
    def target(self) -> Target:
        """The exact tilt; for linear and quadratic rewards a `GaussianMixture`."""
        return self.reward.tilt(self.prior, self.beta)

    @cached_property
    def sampling(self) -> Sampling:
        """Path, sampler and variance, defaults filled in."""
        fields = ("path", "sampler", "variance")
        return Sampling.named(self.path, self.sampler, self.variance, fields)

    @property
    def noise_path(self) -> NoisePath:
        return PATHS[self.path]

    @cached_property
    def process(self) -> ReverseProcess:
        chosen = self.sampling
        prior = self.prior.standardized()
        return exact_process(prior, self.steps, chosen.variance, chosen.path, chosen.sampler)

    @property
    def modes(self) -> GaussianMixture:
        """The components whose weights are compared: the target's own, or else the prior's."""
        return self.target if isinstance(self.target, GaussianMixture) else self.prior

    @cached_property
    def mode_weights(self) -> Tensor:
        """Weights of `modes` under the target; by exact samples where there is no closed form."""
        if isinstance(self.target, GaussianMixture):
            return self.target.weights
        return self.modes.responsibilities(self._target_samples).mean(0)

    @cached_property
    def mean_reward(self) -> float:
        """Of the exact tilt, by samples: known to one part in some hundred of its spread."""
        return self.reward(self._target_samples).mean().item()

    @cached_property
    def log_det(self) -> float:
        """Log determinant of the exact tilt's covariance, nats."""
        if isinstance(self.target, GaussianMixture):
            return torch.logdet(self.target.covariance).item()
        return torch.logdet(self._target_samples.T.cov()).item()

    @cached_property
    def _target_samples(self) -> Points:
        return self.target.sample(REFERENCE_SAMPLES, torch.Generator().manual_seed(0))

    def named_reward(self) -> NamedReward:
        """The reward of an image that is a point, see `MixtureModel`."""

        def reward(images: Tensor, prompts: list[str]) -> Tensor:
            return self.reward(images[:, 0, 0])

        return NamedReward(type(self.reward).__name__, reward)
