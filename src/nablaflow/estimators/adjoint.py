"""The lean adjoint of adjoint matching: beta grad r(x_0) carried back along the trajectory.

arXiv 2409.08861, section 5: a_0 = beta grad r(x_0) and a_k = J_ref(x_k)^T a_{k-1} with the Jacobian
of the reference kernel's mean. Under the optimal policy the mean of a_k given x_k is grad V_k.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import has_posterior_means
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.errors import UserError
from nablaflow.estimators.contract import Estimator, Networks
from nablaflow.estimators.path import Path, ValueGradients
from nablaflow.estimators.reference import reference_step, reward_gradient
from nablaflow.typing import Latents


@final
class Adjoint(Estimator):
    """Unbiased at the optimum for ``stride`` 1; a longer stride trades bias for passes."""

    name: Literal["adjoint"] = "adjoint"
    needs_states: ClassVar[bool] = True

    stride: int = Field(
        default=1, ge=1, description="most steps that one backward pass of the reference jumps"
    )

    def check(self, process: ReverseProcess) -> None:
        if self.stride > 1 and not has_posterior_means(process):
            raise UserError(
                "stride: a jump over several steps needs kernels whose means are the posterior's, "
                "which DDIM's are for eta 1 only and flow-grpo's never; set stride=1 beside the "
                "method's or the estimator's name, or sampler.name=ddim and sampler.eta=1"
            )

    def estimate(self, path: Path, networks: Networks, beta: float) -> ValueGradients:
        """Carry all trajectories at once, each by its own jumps from one wanted level to the next.

        Every wanted level is visited; between two of them a jump is ``stride`` long, or as
        long as the way that is left.
        """
        carried = beta * reward_gradient(networks, path.x0, path.prompts)
        wanted = path.level
        level = torch.zeros(len(path), dtype=torch.long, device=wanted.device)
        target = torch.empty_like(path.transitions.x)
        while True:
            reached = level[path.transitions.trajectory] == wanted
            target[reached] = carried[path.transitions.trajectory[reached]].to(target)
            stop = _next_stop(path, level, self.stride)
            rows = (stop > level).nonzero()[:, 0]
            if len(rows) == 0:
                return ValueGradients(target)
            carried = carried.clone()
            carried[rows] = carry(path, networks, rows, level[rows], stop[rows], carried[rows])
            level = stop


def carry(
    path: Path, networks: Networks, rows: Tensor, level: Tensor, stop: Tensor, carried: Latents
) -> Latents:
    """Value gradients at the levels of some trajectories, taken back to higher levels."""
    x, condition = path.states_at(rows, stop), path.condition[rows]
    with reference_step(networks.model, x, stop, level, condition) as step:
        return step.pull(carried)


def _next_stop(path: Path, level: Tensor, stride: int) -> Tensor:
    """For each trajectory, where to jump from ``level``; itself where no more is wanted."""
    trajectory, wanted = path.transitions.trajectory, path.level
    beyond = torch.where(wanted > level[trajectory], wanted, torch.iinfo(torch.long).max)
    nearest = torch.full_like(level, torch.iinfo(torch.long).max)
    nearest = nearest.scatter_reduce(0, trajectory, beyond, "amin")
    more = nearest < torch.iinfo(torch.long).max
    return torch.where(more, torch.minimum(nearest, level + stride), level)
