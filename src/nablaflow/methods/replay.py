"""The end of a trajectory once more, with its graph: what DRaFT and AlignProp differentiate.

    x_{j-1} = mu_theta(x_j) + c_j,   j = k, ..., 1,   c_j = the rollout's x_{j-1} - mu_theta(x_j)

where c_j, the noise that was drawn, is a constant. So the values are the rollout's own to the last
digit, and the derivative of x_0 is that of the last k steps of sampling.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nablaflow.diffusion import kernel_mean
from nablaflow.diffusion.process import at
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.estimators.reference import reference_step
from nablaflow.methods.contract import Losses, Method, norm
from nablaflow.methods.scored import ScoredStates, score, slope
from nablaflow.models import Condition, DiffusionModel
from nablaflow.typing import Latents, Steps


@dataclass(frozen=True)
class Tail:
    """The replayed end of each row's trajectory.

    Attributes:
        x0: the rollout's, with its graph.
        kl: of the replayed kernels from the reference's, summed, nats; None where not asked for.
    """

    x0: Latents
    kl: Float[Tensor, "batch"] | None


class Replay(Method, abc.ABC):
    """What these methods share; a subclass draws k, the number of last steps, for each row.

    With all steps replayed and ``kl_weight: 1`` the loss is, in expectation, beta E[r] less the
    divergence of the policy's trajectories from the reference's, whose optimum is the tilt.
    """

    needs_reward_gradient: ClassVar[bool] = True
    needs_states: ClassVar[bool] = True
    one_transition: ClassVar[bool] = True

    kl_weight: float = Field(
        default=0.0,
        ge=0,
        description="of the replayed steps' divergence from the reference (published: none); "
        "1 is the tilt's",
    )
    checkpointing: bool = Field(
        default=True,
        description="run each step again in the backward pass: memory of one step, not of k",
    )

    @property
    def uses_flow(self) -> bool:
        return False

    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        tail = replay(
            networks.model, batch, with_kl=self.kl_weight > 0, checkpointing=self.checkpointing
        )
        scored = self._scored(tail, batch, networks)
        terms = {"reward": -self.beta * scored.reward}
        metrics = {
            "value_gradient_norm": self.beta * norm(scored.gradient),
            "replayed_steps": batch.transitions.k.to(scored.reward),
        }
        if tail.kl is not None:
            terms["kl"] = self.kl_weight * tail.kl
            metrics["kl"] = tail.kl
        return Losses(terms, metrics)

    def _scored(self, tail: Tail, batch: TrainingBatch, networks: Networks) -> ScoredStates:
        return score(networks, tail.x0, batch.prompts)


def replay(
    model: DiffusionModel, batch: TrainingBatch, *, with_kl: bool, checkpointing: bool
) -> Tail:
    """The last k steps of each row's trajectory, k = ``batch.transitions.k``.

    Rows join in at their own k; before it they are the rollout's states, without a graph.
    """
    assert batch.states is not None
    states, start = batch.states, batch.transitions.k
    longest = int(start.max())
    x = states[longest]
    kl = states.new_zeros(len(batch)) if with_kl else None
    for j in range(longest, 0, -1):
        rows = (start >= j).nonzero()[:, 0]
        here, condition = x[rows], batch.conditions[batch.transitions.trajectory[rows]]
        k = torch.full_like(rows, j)
        mean = policy_mean(model, here, k, condition, checkpointing=checkpointing)
        if kl is not None:
            kl = kl.index_add(0, rows, kl_from_reference(model, here, mean, k, condition))
        moved = states[j - 1, rows] + (mean - mean.detach())
        x = states[j - 1].index_copy(0, rows, moved)
    return Tail(x, kl)


def policy_mean(
    model: DiffusionModel, x: Latents, k: Steps, condition: Condition, *, checkpointing: bool
) -> Latents:
    """The mean of the policy's kernel at x_k, with its graph."""

    def mean(x: Latents) -> Latents:
        return kernel_mean(model.process, x, model.predict(x, k, condition), k)

    if not checkpointing:
        return mean(x)
    found: Any = checkpoint(mean, x, use_reentrant=False)
    return found


def kl_from_reference(
    model: DiffusionModel, x: Latents, mean: Latents, k: Steps, condition: Condition
) -> Float[Tensor, "batch"]:
    """KL(p_theta || p_ref) of the kernels at x_k, with its graph through ``mean`` and ``x``.

    The reference's part of the gradient by ``x`` is found at once: a layer that is checkpointed
    runs again in the backward pass, and would be the policy's then.
    """
    sigma = at(model.process.sigma, k, x)
    with reference_step(model, x, k, k - 1, condition) as step:
        shift = mean - step.mean.detach()
        pulled = step.pull(shift.detach() / sigma.square()) if x.requires_grad else None
    kl = 0.5 * (shift / sigma).square().flatten(1).sum(1)
    return kl if pulled is None else kl - slope(x, pulled)
