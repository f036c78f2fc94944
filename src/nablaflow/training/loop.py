"""The training loop: rollout, loss, one optimizer step, until a run's updates are done."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped
from nablaflow.evaluation.guard import Guard
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.methods import Networks, TrainingBatch
from nablaflow.methods.groups import tells_apart
from nablaflow.models import FlowScore
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import StartProgress, unseen
from nablaflow.rewards import NamedReward, observe
from nablaflow.storage.checkpoint import Checkpoint
from nablaflow.training.batches import Batches
from nablaflow.training.beginning import Beginning, unfitted_log_flow, unmeasured_gamma
from nablaflow.training.guarding import Guarding
from nablaflow.training.keeping import Keeper
from nablaflow.training.optimization import Average
from nablaflow.training.processes import mean_figures, mean_of, on_any, wide
from nablaflow.training.rollout import Rollout
from nablaflow.training.stepper import Record, Stepper
from nablaflow.training.update import Update


class Trainer:
    """Aligns a model; all state between two updates is in `checkpoint` and `restore`.

    Args:
        fingerprint: of the pretrained weights; empty where nothing is to be kept for later runs.
        sharded: whether the processes divide the policy's weights among them (FSDP2).

    Attributes:
        update: updates done so far.
        keeper: reads and writes all of it.
        beginning: finds what the method needs of the reference before the first update.
        guarding: the guard's turns; None without a guard.
        clock: seconds from some moment on, by which training is timed.
        seconds: of training so far, earlier sessions of a resumed run included.
        spent: share of `training.minutes` so far, the same on all processes; 0 without.
        alike: whether no prompt's images have differed in reward so far, in this session.
    """

    def __init__(
        self,
        config: Config,
        prompts: list[str],
        model: PipelineModel,
        reward: NamedReward,
        flow: FlowScore | None,
        accelerator: Accelerator,
        guard: Guard | None = None,
        *,
        fingerprint: str = "",
        sharded: bool = False,
    ) -> None:
        self.config, self.model, self.reward, self.flow = config, model, reward, flow
        self.accelerator, self.guard = accelerator, guard
        self.method = config.method
        flow_target = None if flow is None else copy.deepcopy(flow).requires_grad_(False)
        networks = Networks(
            model,
            reward,
            flow,
            flow_target,
            unmeasured_gamma(config, model),
            decode_batch=config.training.decode_batch,
            log_flow=unfitted_log_flow(config, model),
        )
        self.core = Update(self.method, networks)
        self.networks = self.core.networks
        samples = ReferenceStates(model, config.sampler, fingerprint)
        self.beginning = Beginning(config, prompts, self.networks, samples, accelerator)
        self.batches = Batches(config, prompts, self.core, accelerator)
        self.stepper = Stepper(config, self.core.objective, accelerator, sharded=sharded)
        self.keeper = Keeper(
            config, model, self.networks, self.batches, self.stepper, guard, accelerator
        )
        self.guarding = None if guard is None else Guarding(guard, self.keeper, config.training)
        self.update = 0
        self._applied = 0
        self._kept = 0
        self.clock: Callable[[], float] = time.perf_counter
        self.seconds = 0.0
        self.spent = 0.0
        self.alike = True

    # --- one update -------------------------------------------------------------------------------

    def step(self) -> Record:
        """One update: sample, score, estimate, train; its figures, means over all processes.

        Raises:
            TrainingStopped: a figure is not finite; the weights are those before the optimizer step
                that it was for.
        """
        self.begin()
        started = self.clock()
        self._applied = 0
        try:
            before = self.batches.pending
            trained, newest = self.batches.rollouts(self.update)
            rolled_out = self.clock()
            batch = self.batches.training_batch(trained, self.update)
            estimated = self.clock()
            parts = batch.split(self.config.training.steps_per_rollout)
            records = [self._optimizer_step(part, newest) for part in parts]
        except FloatingPointError as error:
            raise self._not_finite(str(error)) from error
        record = {name: fmean(part[name] for part in records) for name in records[0]}
        if newest is not before:
            self._observe(newest)
        self.batches.keep(newest, self.update)
        self.update += 1
        self._applied = 0
        self.core.end(self.update)
        finished = self.clock()
        self._spend(finished - started)
        timing = {"seconds": finished - started, "rollout_seconds": rolled_out - started}
        if batch.estimate is not None:
            timing["estimate_seconds"] = estimated - rolled_out
        return {"update": self.update, **record, **timing}

    def _optimizer_step(self, batch: TrainingBatch, newest: Rollout) -> Record:
        figures = self.stepper.accumulate(batch)
        record = self._record(newest, figures)
        self.stepper.check(record)
        record |= self.stepper.apply(self.update, self.spent)
        self._applied += 1
        return record

    def _record(self, rollout: Rollout, figures: dict[str, Tensor]) -> Record:
        """A batch's figures and the newest rollout's scores, means over all processes."""
        scores = wide(rollout.scores)
        own = {
            "reward_mean": scores.mean(),
            "reward_square": scores.square().mean(),
            **{f"reward/{name}": wide(value).mean() for name, value in rollout.components.items()},
            **figures,
        }
        record = mean_figures(self.accelerator, own)
        spread = record.pop("reward_square") - record["reward_mean"] ** 2
        return record | {"reward_std": max(0.0, spread) ** 0.5}

    def _observe(self, rollout: Rollout) -> None:
        """Let the reward remember the scores of all processes, in their order, on each of them."""
        if self.alike:  # by all of them: a process may have one image of each prompt
            scores: Any = self.accelerator.gather(rollout.scores)
            self.alike = not tells_apart(scores, gather_object(rollout.prompts))
        gathered: Any = self.accelerator.gather(rollout.components)
        observe(self.reward, gathered)

    def _spend(self, seconds: float) -> None:
        self.seconds += seconds
        minutes = self.config.training.minutes
        if minutes is not None:
            self.spent = mean_of(self.accelerator, self.seconds / (60.0 * minutes))

    def _not_finite(self, what: str) -> TrainingStopped:
        return TrainingStopped(
            f"update {self.update + 1}: {what} is not finite; {self._what_was_applied()}, "
            f"what was saved is whole. {self._remedy()} and start again with --overwrite or "
            "another output_dir"
        )

    def _remedy(self) -> str:
        """While the policy is still the reference, no learning rate has had its effect."""
        narrow = self.config.training.precision == "fp16"
        if self.update > 0 or self._applied > 0:
            lower = "Lower optimizer.learning_rate or method.beta"
            return f"{lower}, or set training.precision=bf16 (fp16 ends at 65504)" * narrow or lower
        if narrow:
            return "The policy is still the reference: set training.precision to bf16 or float32"
        return (
            "The policy is still the reference: lower method.beta, or use another reward or model"
        )

    def _what_was_applied(self) -> str:
        if self._applied == 0:
            return "nothing of this update was applied"
        steps = self.config.training.steps_per_rollout
        return f"{self._applied} of {steps} steps of this update were applied to what is not saved"

    @property
    def average(self) -> Average | None:
        """The policy's moving average, if there is one."""
        return self.stepper.average

    @property
    def total(self) -> int:
        """What a run is of: updates, or seconds where those are given."""
        training = self.config.training
        return training.updates if training.minutes is None else round(60 * training.minutes)

    @property
    def done(self) -> int:
        """How much of `total` is done."""
        by_time = self.config.training.minutes is not None
        return min(self.total, round(self.seconds)) if by_time else self.update

    @property
    def finished(self) -> bool:
        """Whether all updates are done, or all the time is spent."""
        return self.update >= self.config.training.updates or self.spent >= 1.0

    # --- between updates --------------------------------------------------------------------------

    def train(
        self,
        run: Path,
        on_update: Callable[[Record], bool],
        on_saved: Callable[[], None],
        on_look: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Update until done, or until the guard ends it; save at each interval and at the end.

        Args:
            on_update: called on every process after each update; True asks to stop here.
            on_saved: called after that, when what is to be kept of the update is on disk.
            on_look: told how many of the guard's images are done.
        """
        training = self.config.training
        if self.guard is not None and self.update == 0:
            self.keeper.save_best(run, self.update, self.seconds)
        if not (self.finished or self.tripped):
            self.keeper.undo_calibration()
        while not (self.finished or self.tripped):
            record = self._step_or_save(run)
            try:
                record |= self._look(run, on_look)
            except TrainingStopped:  # what the policy samples is not worth to be kept
                on_update(record)
                raise
            except (Exception, SystemExit):
                on_update(record)
                self._save_what_was_done(run)
                raise
            stop = on_any(self.accelerator, on_update(record)) or self.tripped
            at_interval = self.update % training.checkpoint_every == 0
            if stop or at_interval or self.finished:
                self.save(run)
            on_saved()
            if stop:
                return

    def _step_or_save(self, run: Path) -> Record:
        """An update; where it fails, for the reward's own code say, what was done is kept."""
        try:
            return self.step()
        except TrainingStopped:  # which says itself what is kept
            raise
        except (Exception, SystemExit):
            self._save_what_was_done(run)
            raise

    def _save_what_was_done(self, run: Path) -> None:
        """Between two updates that is all; in one of several steps it is the last checkpoint.

        Nothing where nothing was done since that: its policy may be calibrated, and measured.
        Not with several processes: the others wait for this one in the middle of their update.
        """
        if self.accelerator.num_processes == 1 and self.update > self._kept and self._applied == 0:
            self.save(run)

    @property
    def tripped(self) -> bool:
        """Whether the guard has ended the run."""
        return self.guard is not None and self.guard.ends_the_run

    def begin(self, start: StartProgress = unseen) -> None:
        """Find what the method needs of the reference, if nobody has; it counts as training.

        Raises:
            UserError: the reward is the same for all reference images of a prompt.
        """
        started = self.clock()
        self.beginning.find(start)
        self._spend(self.clock() - started)

    def begin_guard(self, on_look: Callable[[int], None]) -> None:
        """Measure the reference, see `Guarding.begin`."""
        if self.guarding is not None:
            self.guarding.begin(on_look)

    def _look(self, run: Path, on_look: Callable[[int], None]) -> Record:
        """The guard's figures, if it is its turn."""
        guarding = self.guarding
        if guarding is None:
            return {}
        if not (self.finished or guarding.is_due(self.update, self.spent)):
            return {}
        started = self.clock()
        record = guarding.turn(run, self.update, self.seconds, on_look, self.spent)
        seconds = self.clock() - started
        self._spend(seconds)
        return {**record, "guard_seconds": seconds}

    def owed_look(self, run: Path, on_look: Callable[[int], None]) -> Record:
        """The figures that the guard owes of the last update, where a session ended before them."""
        owes = self.guard is not None and self.guard.owes(self.update)
        return self._look(run, on_look) if owes else {}

    # --- what is kept -----------------------------------------------------------------------------

    def save(self, run: Path) -> None:
        """Write a checkpoint, see `Keeper.save`."""
        self.keeper.save(run, self.update, self.seconds)
        self._kept = self.update

    def checkpoint(self) -> Checkpoint:
        """All state that the next update depends on; every process must call it."""
        return self.keeper.checkpoint(self.update, self.seconds)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same configuration, see `Keeper.restore`."""
        self.keeper.restore(checkpoint)
        self.update, self.seconds = checkpoint.update, 0.0
        self._kept = checkpoint.update
        self._spend(checkpoint.seconds)
