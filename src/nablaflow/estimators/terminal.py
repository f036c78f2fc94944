"""The terminal estimate s_k beta grad r(x_0): one reward gradient for a whole trajectory.

The first-order form of Reward Score Matching (arXiv 2604.17415), which prunes ∇-DB's two networks
passes a state: the Jacobian of the rest of the trajectory is replaced by a number. The authors'
loss multiplies both scores and the reward's gradient by sigma_k alike: that is the number 1,
``scale: one``, under the weighting sigma2.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.estimators.reference import reward_gradient

Scale = Literal["one", "sqrt_alpha_bar", "alpha_bar", "sigma"]


def scale_table(scale: Scale, process: ReverseProcess) -> Float[Tensor, "levels"]:
    """s_k for k = 0, ..., K: 1 at the end for all but ``sigma``, whose s_0 is that of k = 1.

    ``sqrt_alpha_bar`` is exact for a linear reward of a standard normal prior.
    """
    tables = {
        "one": torch.ones_like(process.alpha_bar),
        "sqrt_alpha_bar": process.alpha_bar.sqrt(),
        "alpha_bar": process.alpha_bar,
        "sigma": torch.cat([process.sigma[1:2], process.sigma[1:]]),
    }
    return tables[scale]


@final
class Terminal(Estimator):
    """The cheapest estimate: no pass of the reference beyond the rollout, the Jacobian guessed."""

    name: Literal["terminal"] = "terminal"
    scale: Scale = Field(default="sqrt_alpha_bar", description="s_k (published: one)")

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        gradient = beta * reward_gradient(networks, path.x0, path.prompts)
        transitions = path.transitions
        table = scale_table(self.scale, networks.model.process)
        return ValueGradients(at(table, path.level, path.x0) * gradient[transitions.trajectory])
