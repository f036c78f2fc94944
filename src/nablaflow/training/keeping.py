"""All state between two updates: into a checkpoint, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from accelerate import Accelerator
from torch import Tensor

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.evaluation.guard import Guard
from nablaflow.methods import Networks
from nablaflow.models.adapters import load_trainable_state, trainable_state
from nablaflow.models.divided import part_like, whole_of
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import memory, recall
from nablaflow.storage.checkpoint import Checkpoint, save_best, save_checkpoint
from nablaflow.storage.manifest import TRAINED
from nablaflow.storage.records import sync_records
from nablaflow.storage.run_folder import forget_replaced
from nablaflow.training.batches import Batches
from nablaflow.training.kernels import GROUP, kernel_state
from nablaflow.training.processes import by_main
from nablaflow.training.stepper import Stepper


@final
class Keeper:
    """Reads and writes what the next update depends on, wherever in the training that is.

    Attributes:
        calibrated: after which ``update`` the policy was calibrated, and to what ``strength``.
        trained: the policy as it was before that, on the processor; training goes on from it.
    """

    def __init__(
        self,
        config: Config,
        model: PipelineModel,
        networks: Networks,
        batches: Batches,
        stepper: Stepper,
        guard: Guard | None,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.model, self.networks = config, model, networks
        self.batches, self.stepper, self.guard = batches, stepper, guard
        self.accelerator = accelerator
        self.calibrated: dict[str, Any] | None = None
        self.trained: dict[str, Tensor] | None = None

    def checkpoint(self, update: int, seconds: float) -> Checkpoint:
        """Every process must call it.

        Args:
            update: how many are done.
            seconds: of training so far.
        """
        networks = self.networks
        tensors = {"policy": trainable_state(self.model.network), **networks.found()}
        if networks.flow is not None and networks.flow_target is not None:
            for name, network in (("flow", networks.flow), ("flow_target", networks.flow_target)):
                tensors[name] = {k: value.clone() for k, value in network.state_dict().items()}
        if self.stepper.average is not None:
            tensors["policy_average"] = whole_of(self.stepper.average.values)
        if networks.old_policy is not None:
            tensors["old_policy"] = networks.old_policy.values
        if self.trained is not None:
            tensors[TRAINED] = self.trained
        if kernels := kernel_state(self.model):
            tensors[GROUP] = kernels
        state = {
            "guard": self.guard and self.guard.state(),
            "reward": memory(networks.reward),
            "calibrated": self.calibrated,
            **self.stepper.state(),
            **self.batches.state(),
        }
        return Checkpoint(update, seconds, tensors, state, dump_config(self.config))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same configuration.

        Raises:
            UserError: it is of another model.
        """
        networks, tensors, state = self.networks, checkpoint.tensors, checkpoint.state
        with self.stepper.divided():
            self._restore_policy(tensors)
            self.stepper.restore(state)
        if networks.flow is not None and networks.flow_target is not None:
            networks.flow.load_state_dict(tensors["flow"])
            networks.flow_target.load_state_dict(tensors["flow_target"])
        networks.take(tensors)
        if networks.old_policy is not None:
            for name, value in tensors["old_policy"].items():
                networks.old_policy.values[name].copy_(value)
        recall(networks.reward, state.get("reward", {}))
        self.batches.restore(state)
        self.calibrated = state.get("calibrated")  # which an earlier version had not
        self.trained = tensors.get(TRAINED)
        if self.guard is not None:
            self.guard.restore(state["guard"])

    def undo_calibration(self) -> None:
        """The policy as it was trained, if it was weakened since; every process must call it."""
        if self.trained is not None:
            with self.stepper.divided():
                load_trainable_state(self.model.network, self.trained)
        self.calibrated = self.trained = None

    def _restore_policy(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        try:
            load_trainable_state(self.model.network, tensors["policy"])
        except ValueError as error:
            raise UserError(
                f"model: the checkpoint does not fit ({error}); is {self.config.model} the same?"
            ) from error
        if self.stepper.average is not None:
            for name, value in self.stepper.average.values.items():
                value.copy_(part_like(tensors["policy_average"][name], value))

    def save(self, run: Path, update: int, seconds: float) -> None:
        """Write a checkpoint, on the main process; a run that this one replaces may go then.

        Raises:
            TrainingStopped: the policy is not finite, so it is not saved.
        """
        checkpoint = self.checkpoint(update, seconds)
        if not all(value.isfinite().all() for value in checkpoint.tensors["policy"].values()):
            raise TrainingStopped(
                f"update {update}: the policy is not finite; it is not saved, what was saved "
                "before is whole. Lower optimizer.learning_rate and start again with --overwrite"
            )

        def write() -> None:
            sync_records(run)
            save_checkpoint(run, checkpoint, self.config.training.keep_checkpoints)
            forget_replaced(run)

        by_main(self.accelerator, write)

    def save_best(self, run: Path, update: int, seconds: float) -> None:
        """Write the policy that the guard likes best so far, on the main process."""
        checkpoint = self.checkpoint(update, seconds)
        by_main(self.accelerator, lambda: save_best(run, checkpoint))
