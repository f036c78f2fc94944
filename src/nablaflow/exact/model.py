"""A Gaussian mixture as a model to align: the reference kernels come from its exact score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nablaflow.diffusion import ReverseProcess
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.mixture import GaussianMixture, Points
from nablaflow.exact.paths import DIFFUSION, NoisePath
from nablaflow.models import Condition, DiffusionModel
from nablaflow.typing import Images, Latents


class MixtureModel(DiffusionModel):
    """The contract of a diffusion pipeline, on points.

    A state is a point in units of the prior's own scale, (1, 1, dim); an "image" is the point
    itself in each of three channels, in the units of the problem. The policy's kernel has the mean
    of the reference's plus c_k times what its network says (see `mean_per_score`), which so is a
    value gradient. The network sees the reference's x0_hat too, as an adapter inside a pretrained
    network would.

    Args:
        network: ``(x, timestep, x0_hat) -> `` value gradient of the flattened state, at first 0.
        counter: counts the passes of this model.
        path: by which the process noises.
    """

    def __init__(
        self,
        prior: GaussianMixture,
        process: ReverseProcess,
        network: nn.Module,
        counter: PassCounter,
        path: NoisePath = DIFFUSION,
    ) -> None:
        self.center, self.scale = prior.mean, prior.scale
        self.standard = prior.standardized()
        self.process, self.network = process, network
        self.state_shape = (1, 1, prior.dim)
        self.image_size = (1, prior.dim)
        self.parameterization = "sample"
        self.guidance_scale = 1.0
        self.device = torch.device("cpu")
        self._counter, self._path = counter, path
        self._policy_active = True

    def condition(self, prompts: list[str]) -> Condition:
        return Condition()

    def decode(self, x0: Latents) -> Images:
        return (x0 * self.scale + self.center.to(x0)).expand(-1, 3, -1, -1)

    def points(self, x0: Latents) -> Points:
        """Clean states in the units of the problem, float64."""
        return self.decode(x0.double())[:, 0, 0]

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        """x0_hat: the reference's posterior mean, and the policy's change of it."""
        flat, alpha_bar = x.flatten(1), self._path.alpha_bar(timestep).to(x)
        x0_hat = self.standard.posterior_mean(flat, alpha_bar)
        if self._policy_active:
            signal = self._path.signal(timestep).to(x)
            change = ((1.0 - alpha_bar) / signal)[:, None]  # of x0_hat with the score
            x0_hat = x0_hat + change * self.network(flat, timestep, x0_hat)
        return self._counter.forward(x0_hat.reshape(x.shape))

    def allow_second_derivatives(self) -> None:
        """All of it can be differentiated as often as one likes."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._policy_active = False
        try:
            yield
        finally:
            self._policy_active = True
