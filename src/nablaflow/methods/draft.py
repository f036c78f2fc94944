"""DRaFT (arXiv 2309.17400): the reward's gradient through the last k steps of sampling.

    loss = -beta r(x_0) + w sum_{j <= k} KL(p_theta || p_ref)(x_j)

with x_0 a function of the policy at steps k, ..., 1 (`replay`). DRaFT-LV averages the gradient of
the last step over fresh x_1 ~ q(x_1 | x_0), from each of which that step is taken again.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import noised
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods.replay import Replay, Tail, policy_mean
from nablaflow.methods.scored import ScoredStates, score
from nablaflow.typing import Latents


@final
class Draft(Replay):
    """DRaFT-K, DRaFT-1 and DRaFT-LV; with ``k: all`` full backpropagation."""

    name: ClassVar[str] = "draft"

    k: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        default=1, description="last steps of sampling that the gradient goes through"
    )
    low_variance_samples: int = Field(
        default=0,
        ge=0,
        description="times that x_0 is noised to x_1 again besides, for k = 1 (published: 2)",
    )

    @property
    def aims_at_tilt(self) -> bool:
        return self.k == "all" and self.kl_weight == 1.0

    def draw(
        self, trajectories: int, process: ReverseProcess, strata: int, generator: torch.Generator
    ) -> Int[Tensor, "trajectory transition"]:
        """The same k for all; ``strata`` have no part in it."""
        return torch.full((trajectories, 1), process.steps if self.k == "all" else self.k)

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        if self.k != "all" and self.k > process.steps:
            raise UserError(
                f"method.k: {self.k} of sampler.steps={process.steps}; use fewer, or all"
            )
        if self.low_variance_samples > 0 and self.k != 1:
            raise UserError(
                f"method.low_variance_samples: with method.k={self.k} there is no such estimate; "
                "set method.k=1, or method.low_variance_samples=0"
            )

    def _scored(self, tail: Tail, batch: TrainingBatch, networks: Networks) -> ScoredStates:
        """Of the rollout's x_0; the reward is a mean over that and the last step's repetitions."""
        own = super()._scored(tail, batch, networks)
        if self.low_variance_samples == 0:
            return own
        assert batch.states is not None
        rewards = [own.reward]
        for noise in own_noise(batch.states, 2 * self.low_variance_samples).split(2):
            x0 = self._last_step_again(batch, networks, batch.states[0], noise)
            rewards.append(score(networks, x0, batch.prompts).reward)
        return ScoredStates(torch.stack(rewards).mean(0), own.gradient)

    def _last_step_again(
        self,
        batch: TrainingBatch,
        networks: Networks,
        x0: Latents,
        noise: Float[Tensor, "two batch channel h w"],
    ) -> Latents:
        """x_0 to x_1 by the forward process, and back by the policy's kernel, with its graph."""
        model = networks.model
        k = torch.ones_like(batch.transitions.k)
        x = noised(model.process, x0, k, noise[0])
        mean = policy_mean(model, x, k, batch.condition, checkpointing=self.checkpointing)
        return mean + at(model.process.sigma, k, x0) * noise[1]


def own_noise(
    states: Float[Tensor, "levels batch channel h w"], n: int
) -> Float[Tensor, "n batch channel h w"]:
    """Normal noise that is each trajectory's own: its seed is a digest of its first noise, x_K.

    So it does not depend on how a batch is split, nor on any state of the program.
    """
    x = states[-1]
    noise = x.new_empty(n, *x.shape)
    for row in range(len(x)):
        digest = hashlib.blake2b(x[row].cpu().numpy().tobytes(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        noise[:, row] = torch.randn(n, *x.shape[1:], generator=generator).to(x)
    return noise
