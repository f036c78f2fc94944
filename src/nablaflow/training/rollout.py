"""One update's data: prompts to trajectories, images, scores, and the transitions to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nablaflow.diffusion import (
    Trajectories,
    Transitions,
    noised_afresh,
    sample_trajectories,
    trajectory_noise,
)
from nablaflow.estimators import Path
from nablaflow.models import DiffusionModel
from nablaflow.rewards import Components, NamedReward
from nablaflow.seeds import stream
from nablaflow.typing import Batch, Latents


@dataclass(frozen=True)
class Share:
    """The part of a global batch that one process makes: rows ``start`` to ``stop``."""

    total: int
    start: int
    stop: int

    @staticmethod
    def of(total: int, process: int, processes: int) -> Share:
        size = total // processes
        return Share(total, process * size, (process + 1) * size)

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Rollout:
    """A batch of trajectories, made once and only read afterwards.

    Attributes:
        prompts: one for each trajectory.
        x0: clean states.
        scores: rewards of the images.
        components: by name, where the reward is made of others, the scores of each.
        transitions: those that will be trained.
        log_prob: see `nablaflow.diffusion.Trajectories`.
        states: x_k by k, where the method or its estimator needs them.
    """

    prompts: list[str]
    x0: Latents
    scores: Batch
    transitions: Transitions
    log_prob: Batch
    states: Float[Tensor, "levels batch channel h w"] | None = None
    components: Components = field(default_factory=dict)

    def path(self, model: DiffusionModel) -> Path:
        """The trajectories as estimators see them."""
        condition = model.condition(self.prompts)
        return Path(self.x0, self.states, condition, self.prompts, self.transitions, self.log_prob)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {**vars(self), "transitions": vars(self.transitions)}

    @staticmethod
    def from_state(state: dict[str, Any], device: torch.device) -> Rollout:
        transitions: dict[str, Any] = {
            name: None if value is None else value.to(device)
            for name, value in state["transitions"].items()
        }
        states = state.get("states")
        return Rollout(
            state["prompts"],
            state["x0"].to(device),
            state["scores"].to(device),
            Transitions(**transitions),
            state["log_prob"].to(device),
            None if states is None else states.to(device),
            {name: value.to(device) for name, value in state.get("components", {}).items()},
        )


@dataclass(frozen=True)
class RolloutPlan:
    """What is drawn before a rollout, for this process's share of it.

    The draws depend on the seed, the update and a trajectory's place in the global batch, never
    on how many processes share it.
    """

    prompts: list[str]
    seeds: list[int]
    keep: Tensor

    @staticmethod
    def draw(
        prompts: list[str],
        *,
        seed: int,
        update: int,
        draw: Callable[[int, torch.Generator], Tensor],
        share: Share,
    ) -> RolloutPlan:
        """Plan one update; ``prompts`` are those of the whole global batch.

        Args:
            draw: says which transitions of so many trajectories are trained, see `Method.draw`.
        """
        generator = torch.Generator().manual_seed(stream(seed, update, "transitions"))
        keep = draw(share.total, generator)
        rows = range(share.start, share.stop)
        return RolloutPlan(
            prompts=prompts[share.slice],
            seeds=[stream(seed, update, row) for row in rows],
            keep=keep[share.slice],
        )

    def __getitem__(self, rows: slice) -> RolloutPlan:
        return RolloutPlan(self.prompts[rows], self.seeds[rows], self.keep[rows])

    def __len__(self) -> int:
        return len(self.prompts)


@torch.no_grad()
def make_rollout(
    model: DiffusionModel,
    reward: NamedReward,
    plan: RolloutPlan,
    batch: int,
    *,
    keep_states: bool = False,
    fresh_levels: Bool[Tensor, "levels"] | None = None,
) -> Rollout:
    """Sample the planned trajectories with the policy, ``batch`` at once, and score them.

    Args:
        keep_states: keep every state of every trajectory besides the planned transitions.
        fresh_levels: at which levels these are noised afresh from their trajectory's end.

    Raises:
        FloatingPointError: a state is not finite, so that no reward is blamed for it.
    """
    parts = [
        _sample(model, plan[start : start + batch], keep_states, fresh_levels)
        for start in range(0, len(plan), batch)
    ]
    x0 = torch.cat([part.x0 for part in parts])
    if not x0.isfinite().all():
        raise FloatingPointError("a state that the policy sampled")
    scored = [
        reward.detailed(model.decode(part.x0), plan.prompts[i * batch : i * batch + len(part.x0)])
        for i, part in enumerate(parts)
    ]
    scores = torch.cat([score for score, _ in scored])
    components = {
        name: torch.cat([inner[name] for _, inner in scored]).float() for name in scored[0][1]
    }
    transitions = Transitions.concatenate(
        [_shifted(part.transitions, index * batch) for index, part in enumerate(parts)]
    )
    states = [part.states for part in parts if part.states is not None]
    return Rollout(
        plan.prompts,
        x0,
        scores.float(),
        transitions,
        torch.cat([part.log_prob for part in parts]),
        torch.cat(states, dim=1) if states else None,
        components,
    )


def _sample(
    model: DiffusionModel,
    plan: RolloutPlan,
    keep_states: bool,
    fresh_levels: Bool[Tensor, "levels"] | None,
) -> Trajectories:
    condition, generators = model.condition(plan.prompts), trajectory_noise(plan.seeds)
    found = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        generators,
        model.device,
        keep=plan.keep,
        keep_states=keep_states,
    )
    if fresh_levels is None:
        return found
    return noised_afresh(model.process, found, fresh_levels, generators)


def _shifted(transitions: Transitions, offset: int) -> Transitions:
    return replace(transitions, trajectory=transitions.trajectory + offset)
