"""Best of n: draw n images of the reference for each prompt, and keep the one of most reward."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from pydantic import Field

from nablaflow.diffusion import Noise
from nablaflow.estimators import Networks
from nablaflow.methods.untrained import Untrained
from nablaflow.typing import Latents


@final
class BestOfN(Untrained):
    """Its beta is n: log n - (n - 1) / n nats from the reference, whatever the reward."""

    name: ClassVar[str] = "best-of-n"
    needs_reward_gradient: ClassVar[bool] = False

    n: int = Field(default=4, ge=1, description="images drawn for one that is kept")

    @property
    def most_kl(self) -> float:
        """Bound of KL(best of n || reference), nats; exact where no two rewards are the same.

        With F the distribution function of the reward under the reference, the kept image has the
        density p_ref n F^(n-1), so KL = log n + (n - 1) E[log F] where F ~ Beta(n, 1) (arXiv
        2401.01879).
        """
        return math.log(self.n) - (self.n - 1) / self.n

    @torch.no_grad()
    def sample(
        self,
        networks: Networks,
        prompts: list[str],
        generators: Noise,
    ) -> Latents:
        best, most = self._draw(networks, prompts, generators)
        for _ in range(self.n - 1):
            x0, reward = self._draw(networks, prompts, generators)
            better = reward > most
            best = torch.where(better.reshape(-1, *[1] * (x0.ndim - 1)), x0, best)
            most = torch.maximum(reward, most)
        return best

    def _draw(
        self,
        networks: Networks,
        prompts: list[str],
        generators: Noise,
    ) -> tuple[Latents, torch.Tensor]:
        """One image for each prompt, and its reward."""
        model = networks.model
        with model.reference():
            x0 = model.sample(prompts, generators).x0
        return x0, networks.reward(model.decode(x0), prompts)
