"""AlignProp (arXiv 2310.03739): the reward's gradient through a random number of last steps.

    loss = -beta r(x_0),   x_0 a function of the policy at steps k, ..., 1,   k uniform

drawn for each trajectory. A step j is trained where k >= j, in a share of the trajectories that
falls with j, but with the whole of its effect on x_0 by way of the steps after it.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.methods.replay import Replay


@final
class AlignProp(Replay):
    """Randomised truncation: of DRaFT's k it takes the average."""

    name: ClassVar[str] = "alignprop"

    least: int = Field(default=1, ge=1, description="least number of last steps")
    most: int | None = Field(
        default=None, ge=1, description="largest number of last steps; null: all (published)"
    )

    def draw(
        self, trajectories: int, process: ReverseProcess, strata: int, generator: torch.Generator
    ) -> Int[Tensor, "trajectory transition"]:
        """One k for each, from ``least`` to ``most``; ``strata`` have no part in it."""
        most = self.most or process.steps
        return torch.randint(self.least, most + 1, (trajectories, 1), generator=generator)

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        most = self.most or process.steps
        if most > process.steps:
            raise UserError(
                f"method.most: {most} of sampler.steps={process.steps}; use fewer, or null for all"
            )
        if self.least > most:
            raise UserError(
                f"method.least: {self.least} is more than method.most, {most}; use less"
            )
