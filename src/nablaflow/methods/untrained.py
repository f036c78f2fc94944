"""The contract of a reference that trains nothing: what sampling alone can do about the reward."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from nablaflow.diffusion import Noise
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.estimators import Networks
from nablaflow.settings import Settings
from nablaflow.typing import Latents


class Untrained(Settings, abc.ABC):
    """Settings of one way to sample the reference with an eye to the reward.

    Attributes:
        needs_reward_gradient: whether the reward must be differentiable.
    """

    name: ClassVar[str]
    needs_reward_gradient: ClassVar[bool]

    @abc.abstractmethod
    def sample(
        self,
        networks: Networks,
        prompts: list[str],
        generators: Noise,
    ) -> Latents:
        """A clean state for each prompt.

        Args:
            generators: one for each state, or one that draws the noise of all at once.

        Raises:
            UserError: the reward, or its gradient, is not finite.
        """

    def check(self, process: ReverseProcess) -> None:
        """Raise `UserError` where the settings do not fit the sampler."""

    def model_dump_named(self) -> dict[str, Any]:
        """The settings with the name, as plain data."""
        return {"name": self.name, **self.model_dump(mode="json")}
