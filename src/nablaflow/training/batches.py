"""What an update trains on, on several processes: each makes its share, in parts that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.diffusion import trajectory_noise
from nablaflow.estimators import Path
from nablaflow.estimators.pull import FEWEST, Pull
from nablaflow.memory import halving
from nablaflow.methods import TrainingBatch
from nablaflow.prompts.sets import prompt_batch
from nablaflow.seeds import stream
from nablaflow.training.rollout import Rollout
from nablaflow.training.scoring import ScoringAhead
from nablaflow.training.update import Update

T = TypeVar("T")


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


class Batches:
    """Makes the batch of each update; what it depends on besides the weights is in `state`."""

    def __init__(
        self, config: Config, prompts: list[str], core: Update, accelerator: Accelerator
    ) -> None:
        self.config, self.prompts, self.core = config, prompts, core
        self.accelerator, self.model = accelerator, core.model
        self.pending: Rollout | None = None
        training = config.training
        self._rollout_batch = training.rollout_batch
        self._decode_batch = training.decode_batch
        self._estimate_batch = training.estimate_batch or training.micro_batch

    def rollouts(self, number: int) -> tuple[Rollout, Rollout]:
        """What an update trains on, and the newest rollout: the same one if on-policy.

        Args:
            number: index of the update, from 0.
        """
        if self.config.training.data == "previous-rollout":
            return self.pending or self._rollout(number), self._rollout(number + 1)
        if self.pending is not None:
            return self._at_fresh_states(self.pending, number), self.pending
        rollout = self._rollout(number)
        return rollout, rollout

    def keep(self, newest: Rollout, number: int) -> None:
        """After an update: its newest rollout, where a later one trains on it or on its ends.

        Args:
            number: index of the update, from 0.
        """
        shared = (number + 1) % self.config.updates_per_rollout > 0
        stale = self.config.training.data == "previous-rollout"
        self.pending = newest if shared or stale else None

    def _rollout(self, number: int) -> Rollout:
        plan = self._plan(number)
        with ScoringAhead(self.core.networks, plan.prompts) as ahead:
            path, size = self._sampled(plan, ahead)
            return self._scored(path, size, ahead)

    def _sampled(self, plan: RolloutPlan, ahead: ScoringAhead) -> tuple[Path, int]:
        """Its trajectories, and how many of them at once."""
        n = len(plan.prompts)

        def sample(size: int) -> Path:
            ahead.restart(min(self._decode_batch or size, n))
            with self.accelerator.autocast():
                noise = trajectory_noise(plan.seeds)
                return self.core.sampled(plan.prompts, noise, plan.keep, size, ahead)

        whole = min(self._rollout_batch or n, n)
        path, size = halving(sample, whole, "training.rollout_batch")
        self._rollout_batch = size if size < n else self._rollout_batch
        return path, size

    def _scored(self, path: Path, sampled_at_once: int, ahead: ScoringAhead) -> Rollout:
        n = len(path)
        size = min(self._decode_batch or sampled_at_once, n)
        found = ahead.found()

        def score(size: int) -> Rollout:
            with self.accelerator.autocast():
                return self.core.scored(path, size)

        if found is not None:
            rollout = self.core.with_scores(path, found)
        else:
            # Apart, so that too many images at once do not cost the sampling again.
            rollout, size = halving(score, size, "training.decode_batch")
        self._decode_batch = size if size < n else self._decode_batch
        return rollout

    def _at_fresh_states(self, rollout: Rollout, number: int) -> Rollout:
        """What another update trains on: its own transitions, at states of its own noise."""
        plan, n = self._plan(number), len(rollout)

        def fresh(size: int) -> Rollout:
            with self.accelerator.autocast():
                noise = trajectory_noise(plan.seeds)
                return self.core.at_fresh_states(rollout, plan.keep, noise, size)

        return halving(fresh, min(self._rollout_batch or n, n), "training.rollout_batch")[0]

    def _plan(self, number: int) -> RolloutPlan:
        training, seed = self.config.training, self.config.seed
        rollout = number // self.config.updates_per_rollout  # an update that shares one draws none
        texts = prompt_batch(self.prompts, rollout, training.prompts_per_update, seed)
        prompts = [text for text in texts for _ in range(training.images_per_prompt)]
        method, process, strata = self.core.method, self.model.process, self.config.strata
        return RolloutPlan.draw(
            prompts,
            seed=seed,
            update=number,
            draw=lambda n, generator: method.draw(n, process, strata, generator),
            share=self._share(len(prompts)),
        )

    def _share(self, total: int) -> Share:
        return Share.of(total, self.accelerator.process_index, self.accelerator.num_processes)

    def _check_reference(self, rollout: Rollout) -> None:
        """Raise `UserError` where the estimates would move the policy without any reward.

        Args:
            rollout: of the untrained policy; all processes find the same.
        """
        estimator = self.core.estimator
        if estimator is None:
            return
        levels = estimator.rewardless_levels(self.model.process)
        if not levels.any():
            return
        seed = stream(self.config.seed, "pull", self.accelerator.process_index)
        own = self._by_trajectories(
            lambda size: self.core.pull(rollout, levels, torch.Generator().manual_seed(seed), size),
            len(rollout),
        )
        samples: Any = self.accelerator.gather(own.float().to(self.model.device))
        if len(samples) >= FEWEST:
            Pull.of(samples.cpu().double()).check(self.core.method.name)

    def training_batch(self, rollout: Rollout, number: int) -> TrainingBatch:
        """The rollout's transitions, with value gradients where the method has an estimator.

        Args:
            number: index of the update, from 0.

        Raises:
            UserError: at the first update: the estimates would move the policy without any reward.
        """
        if number == 0:
            self._check_reference(rollout)
        credits = self._credits(rollout)
        if self.core.estimator is None:
            return self.core.batch(rollout, credits)
        return self._by_trajectories(
            lambda size: self.core.batch(rollout, credits, size), len(rollout)
        )

    def _by_trajectories(self, work: Callable[[int], T], trajectories: int) -> T:
        """``work`` on as many trajectories at once as fit."""

        def autocast(size: int) -> T:
            with self.accelerator.autocast():
                return work(size)

        whole = min(self._estimate_batch or trajectories, trajectories)
        found, size = halving(autocast, whole, "training.estimate_batch")
        self._estimate_batch = size if size < trajectories else self._estimate_batch
        return found

    def _credits(self, rollout: Rollout) -> Tensor | None:
        """Of this process's trajectories, found from the scores of all processes."""
        accelerator, method, log_ratio = self.accelerator, self.core.method, None
        if method.needs_path_ratio:
            own: Any = self._by_trajectories(
                lambda size: self.core.log_ratio(rollout, size), len(rollout)
            )
            log_ratio: Any = accelerator.gather(own)
        scores: Any = accelerator.gather(rollout.scores.to(self.model.device))
        credits = method.credits(scores, gather_object(rollout.prompts), log_ratio)
        return None if credits is None else credits[self._share(len(scores)).slice]

    # --- between updates --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint; every process must call it."""
        return {
            # Each process has its own share of the rollout that is trained next.
            "pending": gather_object([self.pending and self.pending.state()]),
            "rollout_batch": self._rollout_batch,
            "decode_batch": self._decode_batch,
            "estimate_batch": self._estimate_batch,
            "given": self._given(),
        }

    def _given(self) -> dict[str, int | None]:
        """What the settings say of how much is done at once."""
        t = self.config.training
        return {
            "rollout_batch": t.rollout_batch,
            "decode_batch": t.decode_batch,
            "estimate_batch": t.estimate_batch or t.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of any number of processes."""
        self.pending = self._own_share(state["pending"])
        # What fitted comes first, unless the settings have changed: memory may be why.
        given, before = self._given(), state.get("given", {})
        fitting = {
            name: state.get(name) if value is None or before.get(name) == value else value
            for name, value in given.items()
        }
        self._rollout_batch = fitting["rollout_batch"]
        self._decode_batch = fitting["decode_batch"]
        self._estimate_batch = fitting["estimate_batch"]

    def _own_share(self, pending: list[dict[str, Any] | None]) -> Rollout | None:
        """This process's rows of a rollout, by however many processes it was made."""
        shares = [share for share in pending if share is not None]
        if not shares:
            return None
        size = len(shares[0]["prompts"])
        own = self._share(size * len(shares))
        first, last = own.start // size, -(-own.stop // size)
        made = [self.core.restored(share) for share in shares[first:last]]
        return Rollout.rows_of(made, own.start - first * size, own.stop - first * size)
