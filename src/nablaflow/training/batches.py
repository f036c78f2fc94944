"""What an update trains on: a rollout, its credits, and value gradients along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.estimators import Networks
from nablaflow.estimators import Path as TrajectoryPath
from nablaflow.estimators.pull import FEWEST, Pull
from nablaflow.memory import halving
from nablaflow.methods import Method, TrainingBatch
from nablaflow.prompts.sets import prompt_batch
from nablaflow.seeds import stream
from nablaflow.training.estimates import estimate_in_parts, log_ratio_in_parts, pull_in_parts
from nablaflow.training.rollout import Rollout, RolloutPlan, Share, make_rollout

T = TypeVar("T")


class Batches:
    """Makes the batch of each update; what it depends on besides the weights is in `state`.

    Attributes:
        estimator: of the method's value gradients, or None.
    """

    def __init__(
        self,
        config: Config,
        prompts: list[str],
        method: Method,
        networks: Networks,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.prompts, self.method = config, prompts, method
        self.networks, self.model, self.reward = networks, networks.model, networks.reward
        self.accelerator = accelerator
        self.estimator = method.value_estimator()
        by_estimator = self.estimator is not None and self.estimator.needs_states
        by_method = method.needs_states or method.needs_path_ratio
        self._keeps_states = by_method or by_estimator
        self._pending: Rollout | None = None
        training = config.training
        self._rollout_batch = training.rollout_batch
        self._estimate_batch = training.estimate_batch or training.micro_batch

    def rollouts(self, update: int) -> tuple[Rollout, Rollout]:
        """What an update trains on, and the newest rollout: the same one if on-policy.

        Args:
            update: index of the update, from 0.
        """
        if self.config.training.data == "on-policy":
            rollout = self._rollout(update)
            return rollout, rollout
        return self._pending or self._rollout(update), self._rollout(update + 1)

    def keep(self, fresh: Rollout) -> None:
        """After an update: unless on-policy, its newest rollout is what the next one trains on."""
        if self.config.training.data != "on-policy":
            self._pending = fresh

    def _rollout(self, number: int) -> Rollout:
        training = self.config.training
        texts = prompt_batch(self.prompts, number, training.prompts_per_update, self.config.seed)
        prompts = [text for text in texts for _ in range(training.images_per_prompt)]
        accelerator = self.accelerator
        plan = RolloutPlan.draw(
            prompts,
            seed=self.config.seed,
            update=number,
            draw=lambda n, generator: self.method.draw(
                n, self.model.process, self.config.strata, generator
            ),
            share=Share.of(len(prompts), accelerator.process_index, accelerator.num_processes),
        )

        def work(batch: int) -> Rollout:
            with accelerator.autocast():
                return make_rollout(
                    self.model,
                    self.reward,
                    plan,
                    batch,
                    keep_states=self._keeps_states,
                    fresh_levels=self.method.fresh_levels(self.model.process),
                )

        whole = self._rollout_batch or len(plan)
        rollout, batch = halving(work, whole, "training.rollout_batch")
        self._rollout_batch = batch if batch < len(plan) else self._rollout_batch
        return rollout

    def check_reference(self, rollout: Rollout) -> None:
        """Raise `UserError` where the estimates would move the policy without any reward.

        Args:
            rollout: of the untrained policy; all processes find the same.
        """
        if self.estimator is None:
            return
        levels = self.estimator.rewardless_levels(self.model.process)
        if not levels.any():
            return
        seed = stream(self.config.seed, "pull", self.accelerator.process_index)
        path = rollout.path(self.model)
        own = self._by_trajectories(
            lambda size: pull_in_parts(path, self.networks, levels, seed, size), len(path)
        )
        samples: Any = self.accelerator.gather(own.float().to(self.model.device))
        if len(samples) >= FEWEST:
            Pull.of(samples.cpu().double()).check(self.method.name)

    def training_batch(self, rollout: Rollout) -> TrainingBatch:
        """The rollout's transitions, with value gradients where the method has an estimator."""
        levels = self.method.value_step(self.model.process).level
        path, estimator = replace(rollout.path(self.model), levels=levels), self.estimator
        batch = path.batch(self._credits(rollout, path), with_states=self.method.needs_states)
        if estimator is None:
            return batch
        estimate = self._by_trajectories(
            lambda size: estimate_in_parts(path, estimator, self.networks, self.method.beta, size),
            len(path),
        )
        return replace(batch, estimate=estimate)

    def _by_trajectories(self, work: Callable[[int], T], trajectories: int) -> T:
        """``work`` on as many trajectories at once as fit."""

        def autocast(size: int) -> T:
            with self.accelerator.autocast():
                return work(size)

        whole = min(self._estimate_batch or trajectories, trajectories)
        found, size = halving(autocast, whole, "training.estimate_batch")
        self._estimate_batch = size if size < trajectories else self._estimate_batch
        return found

    def _credits(self, rollout: Rollout, path: TrajectoryPath) -> Tensor | None:
        """Of this process's trajectories, found from the scores of all processes."""
        accelerator, log_ratio = self.accelerator, None
        if self.method.needs_path_ratio:
            own: Any = self._by_trajectories(
                lambda size: log_ratio_in_parts(path, self.networks, size), len(path)
            )
            log_ratio: Any = accelerator.gather(own)
        scores: Any = accelerator.gather(rollout.scores.to(self.model.device))
        credits = self.method.credits(scores, gather_object(rollout.prompts), log_ratio)
        own = Share.of(len(scores), accelerator.process_index, accelerator.num_processes)
        return None if credits is None else credits[own.slice]

    # --- between updates --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint; every process must call it."""
        return {
            # Each process has its own share of the rollout that is trained next.
            "pending": gather_object([self._pending and self._pending.state()]),
            "rollout_batch": self._rollout_batch,
            "estimate_batch": self._estimate_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: it is of another number of processes.
        """
        self._pending = self._own_share(state["pending"])
        # What this session's settings say comes first: memory may be why they were changed.
        training = self.config.training
        self._rollout_batch = training.rollout_batch or state["rollout_batch"]
        estimate_batch = training.estimate_batch or training.micro_batch
        self._estimate_batch = estimate_batch or state.get("estimate_batch")

    def _own_share(self, pending: list[dict[str, Any] | None]) -> Rollout | None:
        if all(share is None for share in pending):
            return None
        if len(pending) != self.accelerator.num_processes:
            raise UserError(
                f"--resume: training.data=previous-rollout goes on with {len(pending)} processes, "
                f"not {self.accelerator.num_processes}"
            )
        share = pending[self.accelerator.process_index]
        assert share is not None
        return Rollout.from_state(share, self.model.device)
