"""How much of its own target a policy follows: the fit's error, apart from the target's.

What a method asks of the policy's kernel at x_k is a shift of its mean by m_k grad V_k(x_k). Along
the policy's own trajectories, and with kernels of variance m_k as `weighting: nats` has them,

    asked     =  E sum_k m_k / 2 |grad V_k|^2
    unfollowed  =  E sum_k |(mu_theta - mu_ref) - m_k grad V_k|^2 / (2 m_k)

in nats. A policy that ends away from the tilt with little left unfollowed has the wrong target; one
that leaves much of it has too little capacity, rate or time. Sharp targets at high noise may
average out, so something left is no fault by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.diffusion import draw_transitions, trajectory_noise
from nablaflow.estimators import Networks, Path
from nablaflow.memory import in_parts
from nablaflow.methods import Method
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.reward import weighted_mean
from nablaflow.models import DiffusionModel
from nablaflow.seeds import stream

TRAJECTORIES, STRATA = 32, 10


@dataclass(frozen=True)
class PolicyFit:
    """Nats of whole trajectories, each with its standard error over them."""

    asked: Estimate
    unfollowed: Estimate
    trajectories: int

    def as_dict(self) -> dict[str, float | int]:
        """What ``nablaflow eval --json`` has under ``fit``."""
        return {
            "asked": self.asked.value,
            "asked_se": self.asked.se,
            "unfollowed": self.unfollowed.value,
            "unfollowed_se": self.unfollowed.se,
            "trajectories": self.trajectories,
        }


@torch.no_grad()
def policy_fit(
    networks: Networks,
    method: Method,
    prompts: list[str],
    *,
    seed: int,
    batch: int,
    trajectories: int = TRAJECTORIES,
) -> PolicyFit | None:
    """What the method asks of the policy and what of it is left, at its own states.

    Costs a training pass of at most `STRATA` transitions a trajectory, one from each of as many
    parts of the steps, which stands for its part.

    Args:
        networks: with what the method has found of the reference before its first update.
        prompts: in turns.
        batch: transitions, and trajectories, at once.

    Returns:
        None where the method's target is no function of the state, see `Method.states_its_target`.
    """
    if not method.states_its_target:
        return None
    path = _trajectories(networks.model, prompts, seed, trajectories)
    whole = path.batch()

    def work(rows: slice) -> tuple[Tensor, Tensor]:
        metrics = method.losses(whole[rows], networks).metrics
        return metrics["asked_nats"].cpu(), metrics["unfollowed_nats"].cpu()

    parts = in_parts(work, len(whole), batch, "evaluation.batch")
    counts = _steps_stood_for(networks.model.process.steps)[path.transitions.k.cpu() - 1]
    rows = path.transitions.trajectory.cpu()
    asked, unfollowed = (
        _mean(torch.zeros(trajectories).double().index_add_(0, rows, counts * nats))
        for nats in (torch.cat(part).double() for part in zip(*parts, strict=True))
    )
    return PolicyFit(asked, unfollowed, trajectories)


def _trajectories(model: DiffusionModel, prompts: list[str], seed: int, n: int) -> Path:
    """Of the policy, with the transitions that are looked at."""
    steps = model.process.steps
    generator = torch.Generator().manual_seed(stream(seed, "fit"))
    keep = draw_transitions(n, steps, min(STRATA, steps), generator)
    texts = [prompts[row % len(prompts)] for row in range(n)]
    condition = model.condition(texts)
    noise = trajectory_noise([stream(seed, "fit", row) for row in range(n)])
    found = model.sample(texts, noise, condition=condition, keep=keep)
    return Path(found.x0, None, condition, texts, found.transitions)


def _mean(values: Tensor) -> Estimate:
    return weighted_mean(values, torch.ones_like(values))


def _steps_stood_for(steps: int) -> Tensor:
    """By k = 1, ..., K, how many steps the part that holds it has; float64."""
    strata = min(STRATA, steps)
    width = (torch.arange(strata + 1) * steps // strata).diff()
    return width.repeat_interleave(width).double()
