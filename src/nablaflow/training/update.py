"""What one update is made of, from objects: any loop can take its steps (docs/own_loop.md).

    rollout = update.rollout(prompts, noise, keep)
    batch = update.batch(rollout, update.credits(rollout))
    figures = add_gradients(update.objective, batch)

and a step of any optimizer. Here are neither settings nor files, and all randomness comes in: the
laboratory (`nablaflow.exact.training`) and the trainer (`nablaflow.training.loop`) are such loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nablaflow.diffusion import (
    Noise,
    Trajectories,
    Transitions,
    kernel_mean,
    noised,
    noised_afresh,
)
from nablaflow.diffusion.process import at
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, Path, TrainingBatch, ValueGradients, path_log_ratio
from nablaflow.estimators.pull import PullSamples, pull_samples
from nablaflow.methods import Method
from nablaflow.models import Condition, OldPolicy
from nablaflow.rewards.contract import FoundOfAny
from nablaflow.training.asked import check_credits, check_objects, check_rollout, check_size
from nablaflow.training.optimization import Objective
from nablaflow.training.rollout import Rollout
from nablaflow.training.scoring import ScoringAhead
from nablaflow.typing import Latents, Steps


@final
class Update:
    """The steps of an update of ``method``, whose `losses` on a batch are ``objective``.

    Attributes:
        estimator: of the method's value gradients, or None.
        keeps_states: whether a rollout holds every state.
        objective: the loss as a module, whose parameters are the policy's and the flow network's.
        networks: those that were given, with an old policy where the method has one.
    """

    def __init__(self, method: Method, networks: Networks) -> None:
        check_objects(method, networks)
        if networks.old_policy is None and method.old_policy_decay(1) is not None:
            networks = replace(networks, old_policy=OldPolicy(networks.model.network))
        self.method, self.networks, self.model = method, networks, networks.model
        self.estimator = method.value_estimator()
        self.objective = Objective(method, networks)
        by_estimator = self.estimator is not None and self.estimator.needs_states
        by_method = method.needs_states or method.needs_path_ratio
        self.keeps_states = by_method or by_estimator

    def rollout(
        self,
        prompts: list[str],
        noise: Noise,
        keep: Int[Tensor, "trajectory transition"],
        size: int | None = None,
    ) -> Rollout:
        """Sample a trajectory for each prompt with the policy, and score its image.

        Methods with an old policy have that sample.

        Args:
            noise: see `DiffusionModel.sample`.
            keep: the transitions that will be trained, see `Method.draw`.
            size: trajectories at once, which takes a generator for each; None: all.

        Raises:
            UserError: the reward breaks its contract, prompts, noise and transitions do not fit
                together, or one generator is given for parts.
            FloatingPointError: a state is not finite, so that no reward is blamed for it.
        """
        check_rollout(prompts, noise, keep, self.model.process.steps, size)
        return self.scored(self.sampled(prompts, noise, keep, size), size)

    @torch.no_grad()
    def sampled(
        self,
        prompts: list[str],
        noise: Noise,
        keep: Int[Tensor, "trajectory transition"],
        size: int | None = None,
        ahead: ScoringAhead | None = None,
    ) -> Path:
        """The first half of `rollout`: trajectories, not yet decoded.

        Args:
            ahead: takes the clean states as they come.
        """
        n, condition = len(prompts), self.model.condition(prompts)
        size = size or n
        parts: list[Trajectories] = []
        for part in _rows(n, size):
            own = noise if size >= n else _of(noise, part)
            parts.append(self._sample(prompts[part], condition[part], own, keep[part]))
            if ahead is not None:
                ahead.add(parts[-1].x0)
        x0 = torch.cat([part.x0 for part in parts])
        if not x0.isfinite().all():
            raise FloatingPointError("a state that the policy sampled")
        states = [part.states for part in parts if part.states is not None]
        return Path(
            x0=x0,
            states=torch.cat(states, dim=1) if states else None,
            condition=condition,
            prompts=prompts,
            transitions=_transitions(parts, size),
            log_prob=torch.cat([part.log_prob for part in parts]),
            levels=self._levels,
        )

    @torch.no_grad()
    def scored(self, path: Path, size: int | None = None) -> Rollout:
        """The second half of `rollout`, on ``size`` images at a time."""
        found = [
            self.networks.reward.detailed(
                self.model.decode_in_training(path.x0[part]), path.prompts[part]
            )
            for part in _rows(len(path), size or len(path))
        ]
        return self.with_scores(path, found)

    def with_scores(self, path: Path, found: Sequence[FoundOfAny]) -> Rollout:
        """A rollout from its trajectories, and from what the reward gave for them, in order."""
        components = {
            name: torch.cat([inner[name] for _, inner in found]).float() for name in found[0][1]
        }
        scores = torch.cat([scores for scores, _ in found]).float()
        return Rollout(**vars(path), scores=scores, components=components)

    def _sample(
        self, prompts: list[str], condition: Condition, noise: Noise, keep: Tensor
    ) -> Trajectories:
        old = self.networks.old_policy
        with nullcontext() if old is None else old.active():
            found = self.model.sample(
                prompts, noise, condition=condition, keep=keep, keep_states=self.keeps_states
            )
        fresh = self.method.fresh_levels(self.model.process)
        return found if fresh is None else noised_afresh(self.model.process, found, fresh, noise)

    @torch.no_grad()
    def at_fresh_states(
        self,
        rollout: Rollout,
        keep: Int[Tensor, "trajectory transition"],
        noise: Noise,
        size: int | None = None,
    ) -> Rollout:
        """The same clean ends with other transitions, whose states no trajectory has passed.

        For a method whose `Method.trains_at_any_state` holds. Of a transition there is its state
        alone; what comes after it and what was predicted there is NaN. But where nothing of x_0 is
        left in x_k (zero terminal SNR, flow matching) the value gradient is that of x_{k-1}, and
        the policy makes that step as it begins a trajectory.

        Args:
            keep: the transitions that will be trained, see `Method.draw`.
            noise: a generator for each trajectory, or one for all.
            size: such steps at once; None: all.
        """
        n, each = keep.shape
        device, shape = rollout.x0.device, rollout.x0.shape[1:]
        trajectory = torch.arange(n, device=device).repeat_interleave(each)
        k = keep.to(device).flatten()
        unit = randn_tensor((n, each, *shape), noise, device, torch.float32).flatten(0, 1)
        x = noised(self.model.process, rollout.x0[trajectory], k, unit)
        nothing = torch.full_like(x, torch.nan)
        x_next, begun = nothing.clone(), (self._levels.to(device)[k] < k).nonzero()[:, 0]
        if len(begun):
            unit = randn_tensor((n, each, *shape), noise, device, torch.float32).flatten(0, 1)
            for rows in begun.split(size or n):
                condition = rollout.condition[trajectory[rows]]
                x_next[rows] = self._stepped(x[rows], k[rows], condition, unit[rows])
        return replace(rollout, transitions=Transitions(x, x_next, k, nothing, trajectory))

    def _stepped(self, x: Latents, k: Steps, condition: Condition, unit: Latents) -> Latents:
        """x_{k-1} of the policy's kernel, made of unit noise."""
        process = self.model.process
        mean = kernel_mean(process, x, self.model.predict(x, k, condition), k)
        return mean + at(process.sigma, k, x) * unit

    def end(self, update: int) -> None:
        """Let the old policy follow, where there is one.

        Args:
            update: updates done, this one included.
        """
        decay = self.method.old_policy_decay(update)
        if decay is not None:
            assert self.networks.old_policy is not None
            self.networks.old_policy.follow(decay)

    @property
    def _levels(self) -> Int[Tensor, "levels"]:
        return self.method.value_step(self.model.process).level

    def restored(self, state: dict[str, Any]) -> Rollout:
        """A rollout from its `Rollout.state`."""
        device, condition = self.model.device, self.model.condition(state["prompts"])
        transitions = Transitions(**_moved(state["transitions"], device))
        components = _moved(state.get("components", {}), device)
        kept = {"states": None, **state, "transitions": transitions, "components": components}
        return Rollout(**_moved(kept, device), condition=condition, levels=self._levels)

    def credits(
        self, rollout: Rollout, size: int | None = None
    ) -> Float[Tensor, "trajectory"] | None:
        """`Method.credits` of a rollout that is the whole of the update.

        Args:
            size: trajectories at once, for methods that weigh by their density; None: all.
        """
        check_size(size)
        log_ratio = self.log_ratio(rollout, size) if self.method.needs_path_ratio else None
        return self.method.credits(rollout.scores, rollout.prompts, log_ratio)

    def log_ratio(self, path: Path, size: int | None = None) -> Float[Tensor, "trajectory"]:
        """`path_log_ratio`, from ``size`` trajectories at a time."""
        return torch.cat([path_log_ratio(part, self.model) for part in path.pieces(size)])

    def batch(
        self,
        rollout: Rollout,
        credits: Float[Tensor, "trajectory"] | None = None,
        size: int | None = None,
    ) -> TrainingBatch:
        """The rollout's transitions, with value gradients where the method has an estimator.

        Args:
            credits: of each trajectory, see `credits`.
            size: trajectories whose value gradients are found at once; None: all.

        Raises:
            UserError: the reward's gradient is not finite, or the credits are of another number.
            FloatingPointError: it is, and a credit or what the networks make of it is not.
        """
        check_credits(credits, len(rollout))
        check_size(size)
        if self.method.needs_states:
            # Those of a trajectory together: a part of the batch then goes along as few as can be.
            order = rollout.transitions.trajectory.argsort(stable=True)
            rollout = replace(rollout, transitions=rollout.transitions[order])
        batch = rollout.batch(credits, with_states=self.method.needs_states)
        if self.estimator is None:
            return batch
        return replace(batch, estimate=self.estimates(rollout, size))

    def estimates(self, path: Path, size: int | None = None) -> ValueGradients:
        """Value gradients at ``path.transitions``, in their order, for `batch`."""
        assert self.estimator is not None
        networks, beta, estimator = self.networks, self.method.beta, self.estimator
        parts = [estimator.estimate(part, networks, beta) for part in path.pieces(size)]
        order = (path.transitions.trajectory // (size or len(path))).argsort(stable=True)
        return ValueGradients.concatenate(parts)[order.argsort()]

    def pull(
        self,
        path: Path,
        levels: Bool[Tensor, "levels"],
        generator: torch.Generator,
        size: int | None = None,
    ) -> PullSamples:
        """`pull_samples`, from ``size`` trajectories at a time."""
        parts = path.pieces(size)
        return torch.cat([pull_samples(part, self.model, levels, generator) for part in parts])


def _rows(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _of(noise: Noise, part: slice) -> list[torch.Generator]:
    if isinstance(noise, torch.Generator):
        raise UserError(
            "noise: a rollout in parts (size=…) needs a generator for each trajectory; give "
            "nablaflow.diffusion.trajectory_noise(seeds)"
        )
    return noise[part]


def _transitions(parts: list[Trajectories], size: int) -> Transitions:
    """Of all parts; ``trajectory`` counts through them."""
    shifted = [
        replace(part.transitions, trajectory=part.transitions.trajectory + index * size)
        for index, part in enumerate(parts)
    ]
    return Transitions.concatenate(shifted)


def _moved(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
