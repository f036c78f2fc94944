"""The training loop: rollout, loss, one optimizer step, and what is kept of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.estimators import measure_gamma
from nablaflow.evaluation.guard import Guard, as_record
from nablaflow.methods import Method, Networks, TrainingBatch
from nablaflow.models import FlowScore
from nablaflow.models.adapters import load_trainable_state, trainable_state
from nablaflow.models.pipelines import PipelineModel
from nablaflow.prompts.sets import prompt_batch
from nablaflow.rewards import NamedReward, memory, observe, recall
from nablaflow.seeds import stream
from nablaflow.storage.checkpoint import (
    Checkpoint,
    best_folder,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from nablaflow.storage.records import sync_records
from nablaflow.storage.run_folder import forget_replaced
from nablaflow.training.average import Average
from nablaflow.training.batches import Batches
from nablaflow.training.kernels import GROUP, kernel_state
from nablaflow.training.objective import Objective
from nablaflow.training.rollout import Rollout
from nablaflow.training.stepper import Record, Stepper

GAMMA_BATCH = 32
GAMMA_EACH = 16  # trajectories of a prompt, which its mean is taken off


class Trainer:
    """Aligns a model; all state between two updates is in `checkpoint` and `restore`.

    Attributes:
        update: updates done so far.
        clock: seconds from some moment on, by which training is timed.
        gamma: measured, by k; NaN until `begin_gamma`, None where the method does not ask for it.
        seconds: of training so far, earlier sessions of a resumed run included.
        spent: share of `training.minutes` so far, the same on all processes; 0 without.
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
    ) -> None:
        self.config, self.model, self.reward, self.flow = config, model, reward, flow
        self.accelerator, self.prompts, self.guard = accelerator, prompts, guard
        assert isinstance(config.method, Method)
        self.method: Method = config.method
        flow_target = None if flow is None else copy.deepcopy(flow).requires_grad_(False)
        self.flow_target = flow_target
        levels = model.process.steps + 1
        self.gamma = torch.full((levels,), torch.nan) if self.method.needs_measured_gamma else None
        self.networks = Networks(model, reward, flow, flow_target, self.gamma)
        self.batches = Batches(config, prompts, self.method, self.networks, accelerator)
        objective = Objective(self.method, self.networks)
        self.stepper = Stepper(config, objective, flow_target, accelerator)
        self.update = 0
        self._applied = 0
        self.clock: Callable[[], float] = time.perf_counter
        self.seconds = 0.0
        self.spent = 0.0

    # --- one update -------------------------------------------------------------------------------

    def step(self) -> Record:
        """One update: sample, score, estimate, train; its figures, means over all processes.

        Raises:
            TrainingStopped: a figure is not finite; the weights are those before the optimizer step
                that it was for.
        """
        self.begin_gamma()
        started = self.clock()
        self._applied = 0
        try:
            trained, fresh = self.batches.rollouts(self.update)
            rolled_out = self.clock()
            if self.update == 0:
                self.batches.check_reference(trained)
            batch = self.batches.training_batch(trained)
            estimated = self.clock()
            parts = batch.split(self.config.training.steps_per_rollout)
            records = [self._optimizer_step(part, fresh) for part in parts]
        except FloatingPointError as error:
            raise self._not_finite(str(error)) from error
        record = {name: fmean(part[name] for part in records) for name in records[0]}
        self._observe(fresh)
        self.batches.keep(fresh)
        self.update += 1
        finished = self.clock()
        self._spend(finished - started)
        timing = {"seconds": finished - started, "rollout_seconds": rolled_out - started}
        if self.batches.estimator is not None:
            timing["estimate_seconds"] = estimated - rolled_out
        return {"update": self.update, **record, **timing}

    def _spend(self, seconds: float) -> None:
        self.seconds += seconds
        minutes = self.config.training.minutes
        if minutes is not None:
            own = torch.tensor(self.seconds / (60.0 * minutes), device=self.model.device)
            shared: Any = self.accelerator.reduce(own, reduction="mean")
            self.spent = shared.item()

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

    def _observe(self, rollout: Rollout) -> None:
        """Let the reward remember the scores of all processes, in their order, on each of them."""
        gathered: Any = self.accelerator.gather(rollout.components)
        observe(self.reward, gathered)

    def _optimizer_step(self, batch: TrainingBatch, fresh: Rollout) -> Record:
        figures = self.stepper.accumulate(batch)
        record = self._reduce(fresh, figures)
        self.stepper.check(record)
        record |= self.stepper.apply(self.update, self.spent)
        self._applied += 1
        return record

    def _reduce(self, rollout: Rollout, figures: dict[str, Tensor]) -> Record:
        """Means over all processes, in float64, which Apple's accelerator does not have."""
        device = torch.device("cpu") if self.model.device.type == "mps" else self.model.device
        scores = rollout.scores.to(device).double()
        local = {
            "reward_mean": scores.mean(),
            "reward_square": scores.square().mean(),
            **{
                f"reward/{name}": value.to(device).double().mean()
                for name, value in rollout.components.items()
            },
            **{name: value.to(device).double() for name, value in figures.items()},
        }
        stacked = torch.stack(list(local.values()))
        reduced: Any = self.accelerator.reduce(stacked, reduction="mean")
        record = dict(zip(local, reduced.tolist(), strict=True))
        spread = record.pop("reward_square") - record["reward_mean"] ** 2
        return record | {"reward_std": max(0.0, spread) ** 0.5}

    def _not_finite(self, what: str) -> TrainingStopped:
        return TrainingStopped(
            f"update {self.update + 1}: {what} is not finite; {self._what_was_applied()}, "
            f"what was saved is whole. {self._remedy()} and start again with --overwrite or "
            "another output_dir"
        )

    def _remedy(self) -> str:
        """While the policy is still the reference, no learning rate has had its effect."""
        if self.update > 0 or self._applied > 0:
            return "Lower optimizer.learning_rate or method.beta"
        if self.config.training.precision == "fp16":
            return "The policy is still the reference: set training.precision to bf16 or float32"
        return (
            "The policy is still the reference: lower method.beta, or use another reward or model"
        )

    def _what_was_applied(self) -> str:
        if self._applied == 0:
            return "nothing of this update was applied"
        steps = self.config.training.steps_per_rollout
        return f"{self._applied} of {steps} steps of this update were applied to what is not saved"

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
            self._save_best(run)
        while not (self.finished or self._tripped):
            record = self._step_or_save(run)
            record |= self._look(run, on_look)
            stop = self._on_any_process(on_update(record)) or self._tripped
            at_interval = self.update % training.checkpoint_every == 0
            if stop or at_interval or self.finished:
                self.save(run)
            on_saved()
            if stop:
                return

    def _step_or_save(self, run: Path) -> Record:
        """An update; where it fails, for the reward's own code say, what was done is kept.

        Not with several processes: the others wait for this one in the middle of theirs.
        """
        try:
            return self.step()
        except TrainingStopped:  # which says itself what is kept
            raise
        except Exception:
            if self.accelerator.num_processes == 1 and self.update > 0 and self._applied == 0:
                self.save(run)
            raise

    @property
    def _tripped(self) -> bool:
        return self.guard is not None and self.guard.ends_the_run

    def begin_gamma(self, on_progress: Callable[[int], None] = lambda done: None) -> None:
        """Measure gamma on the main process, unless a resumed run has done so.

        Args:
            on_progress: told how many of `gamma_prompts` are done.

        Raises:
            UserError: the reward is the same for all reference images of a prompt.
        """
        if self.gamma is None or self.gamma.isfinite().all():
            return
        found = None
        if self.accelerator.is_main_process:
            prompts = self.gamma_prompts()
            seed = self.config.seed
            found = measure_gamma(
                self.model,
                self.reward,
                prompts,
                [stream(seed, "gamma", row) for row in range(len(prompts))],
                batch=GAMMA_BATCH,
                on_progress=on_progress,
            )
        self.gamma.copy_(self._from_main(found))

    def gamma_prompts(self) -> list[str]:
        """Of the trajectories that gamma is measured on: some prompts, several times each."""
        total = self.config.training.gamma_trajectories
        texts = prompt_batch(self.prompts, 0, max(1, total // GAMMA_EACH), self.config.seed)
        texts = list(dict.fromkeys(texts))
        return [text for text in texts for _ in range(max(2, total // len(texts)))]

    def begin_guard(self, on_look: Callable[[int], None]) -> None:
        """Measure the reference on the main process, unless a resumed run has done so.

        Raises:
            UserError: it exceeds a budget itself.
        """
        if self.guard is None or self.guard.reference is not None:
            return
        if self.accelerator.is_main_process:
            self.guard.begin(on_look)
        self.guard.restore(self._from_main(self.guard.state()))

    def _look(self, run: Path, on_look: Callable[[int], None]) -> Record:
        """The guard's figures, if it is its turn; the main process finds them, all obey."""
        guard = self.guard
        if guard is None or (self.update % guard.every and not self.finished):
            return {}
        started = self.clock()
        look = None
        if self.accelerator.is_main_process:
            try:
                look = guard.look(self.update, on_look)
            except FloatingPointError as error:
                raise TrainingStopped(
                    f"update {self.update}: {error} is not finite; what was saved is whole. Lower "
                    "optimizer.learning_rate or method.beta and start again with --overwrite"
                ) from error
        look = self._from_main(look)
        if guard.judge(look):
            self._save_best(run)
        if guard.trip is not None and guard.settings.action == "roll-back":
            self._roll_back(run)
        seconds = self.clock() - started
        self._spend(seconds)
        return {**as_record(look), "guard_seconds": seconds}

    def _from_main(self, value: Any) -> Any:
        return broadcast_object_list([value])[0]

    def _save_best(self, run: Path) -> None:
        checkpoint = self.checkpoint()
        if self.accelerator.is_main_process:
            save_best(run, checkpoint)
        self.accelerator.wait_for_everyone()

    def _roll_back(self, run: Path) -> None:
        """The best policy in place of this one; updates and what the guard knows stay."""
        assert self.guard is not None and self.guard.best is not None
        best = load_checkpoint(best_folder(run, self.guard.best.update))
        state = {**best.state, "guard": self.guard.state()}
        self.restore(replace(best, update=self.update, seconds=self.seconds, state=state))

    def _on_any_process(self, flag: bool) -> bool:
        """Whether it is set on one of them, so that all stop after the same update."""
        flags = torch.tensor(float(flag), device=self.model.device)
        total: Any = self.accelerator.reduce(flags, reduction="sum")
        return total.item() > 0

    def save(self, run: Path) -> None:
        """Write a checkpoint, on the main process; a run that this one replaces may go then.

        Raises:
            TrainingStopped: the policy is not finite, so it is not saved.
        """
        checkpoint = self.checkpoint()
        if not all(value.isfinite().all() for value in checkpoint.tensors["policy"].values()):
            raise TrainingStopped(
                f"update {self.update}: the policy is not finite; it is not saved, what was saved "
                "before is whole. Lower optimizer.learning_rate and start again with --overwrite"
            )
        if self.accelerator.is_main_process:
            sync_records(run)
            save_checkpoint(run, checkpoint, self.config.training.keep_checkpoints)
            forget_replaced(run)
        self.accelerator.wait_for_everyone()

    def checkpoint(self) -> Checkpoint:
        """All state that the next update depends on; every process must call it."""
        tensors = {"policy": trainable_state(self.model.network)}
        if self.gamma is not None:
            tensors["gamma"] = {"gamma": self.gamma.clone()}
        if self.flow is not None and self.flow_target is not None:
            for name, network in (("flow", self.flow), ("flow_target", self.flow_target)):
                tensors[name] = {k: value.clone() for k, value in network.state_dict().items()}
        if self.average is not None:
            tensors["policy_average"] = self.average.values
        if kernels := kernel_state(self.model):
            tensors[GROUP] = kernels
        state = {
            "guard": self.guard and self.guard.state(),
            "reward": memory(self.reward),
            **self.stepper.state(),
            **self.batches.state(),
        }
        return Checkpoint(self.update, self.seconds, tensors, state, dump_config(self.config))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same configuration.

        Raises:
            UserError: it is of another model, or of another number of processes.
        """
        try:
            load_trainable_state(self.model.network, checkpoint.tensors["policy"])
        except ValueError as error:
            raise UserError(
                f"model: the checkpoint does not fit ({error}); is {self.config.model} the same?"
            ) from error
        if self.flow is not None and self.flow_target is not None:
            self.flow.load_state_dict(checkpoint.tensors["flow"])
            self.flow_target.load_state_dict(checkpoint.tensors["flow_target"])
        if self.gamma is not None:
            self.gamma.copy_(checkpoint.tensors["gamma"]["gamma"])
        if self.average is not None:
            for name, value in checkpoint.tensors["policy_average"].items():
                self.average.values[name].copy_(value)
        state = checkpoint.state
        self.stepper.restore(state)
        recall(self.reward, state.get("reward", {}))
        self.batches.restore(state)
        if self.guard is not None:
            self.guard.restore(state["guard"])
        self.update, self.seconds = checkpoint.update, 0.0
        self._spend(checkpoint.seconds)
