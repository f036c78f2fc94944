"""One optimizer step from a batch, in parts that fit, alike on all processes."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.memory import halving
from nablaflow.methods import TrainingBatch
from nablaflow.models.divided import part_like, whole_of
from nablaflow.training.eight_bit import refuse_divided
from nablaflow.training.optimization import (
    Average,
    Objective,
    Schedule,
    add_gradients,
    clip_gradients,
    make_optimizer,
)
from nablaflow.training.processes import average_over_processes, share_weights

Record = dict[str, float]

MOST_SKIPPED = 20  # steps in a row that a gradient scaler leaves out: it halves its scale at each


class Stepper:
    """Gradients of a batch in parts that fit, one step of AdamW, and the moving averages.

    Args:
        sharded: whether the processes divide the policy's weights among them (FSDP2).

    Attributes:
        average: of the policy; None without ``adapter.ema_decay``.
        micro_batch: transitions whose gradients are found at once; None: all of them.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        accelerator: Accelerator,
        *,
        sharded: bool = False,
    ) -> None:
        self.config, self.objective, self.accelerator = config, objective, accelerator
        if sharded and config.optimizer.name == "adamw8bit":
            refuse_divided()
        self._shards = _shards(objective, accelerator) if sharded else None
        self.optimizer = make_optimizer(config.optimizer, objective)
        self._schedule = Schedule(config.optimizer, self.optimizer)
        self._prepared: Any
        if sharded:
            self._prepared = AcceleratedOptimizer(self.optimizer)
        else:
            share_weights(accelerator, list(objective.parameters()))
            self._prepared = accelerator.prepare_optimizer(self.optimizer)
        decay = config.adapter.ema_decay
        self.average = None if decay is None else Average(objective.policy, decay)
        self._averages = [] if self.average is None else [self.average]
        flow, target = objective.flow, objective.networks.flow_target
        if flow is not None and target is not None and config.flow is not None:
            self._averages.append(Average(flow, config.flow.ema_decay, into=target))
        self.micro_batch = config.training.micro_batch
        self._skipped = 0
        if self._shards is not None:
            self._shards.gather()

    def divided(self) -> AbstractContextManager[None]:
        """Within this context the policy's parameters are those that the optimizer steps on.

        They are a process's own part where the processes divide them; every process must call it.
        """
        return nullcontext() if self._shards is None else self._shards.divided()

    # --- gradients --------------------------------------------------------------------------------

    def accumulate(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Gradients of the mean loss over the batch, in as few parts as fit; mean figures."""
        whole = self.micro_batch or len(batch)
        figures, size = halving(
            lambda size: self._backward_in_parts(batch, size), whole, "training.micro_batch"
        )
        self.micro_batch = size if size < len(batch) else self.micro_batch
        self._average_gradients()
        return figures

    def _backward_in_parts(self, batch: TrainingBatch, size: int) -> dict[str, Tensor]:
        """Without talking to other processes, of which each may need parts of another size."""
        self.objective.zero_grad(set_to_none=True)
        totals = add_gradients(self._loss, batch, size, self.accelerator.backward)
        return {name: value / len(batch) for name, value in totals.items()}

    def _loss(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.accelerator.autocast():
            return self.objective(batch)

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.objective.parameters() if p.grad is not None]
        average_over_processes(self.accelerator, gradients)

    # --- the step ---------------------------------------------------------------------------------

    def check(self, record: Record) -> None:
        """Drop the gradients if a figure is not finite.

        Raises:
            FloatingPointError: named after the first such figure, a loss before others.
        """
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if bad:
            self.objective.zero_grad(set_to_none=True)
            raise FloatingPointError(
                next((name for name in bad if name.startswith("loss_")), bad[0])
            )

    def apply(self, update: int, spent: float) -> Record:
        """Clip, step once, move the averages.

        Args:
            update: updates done before this one.
            spent: share of the run's time, see `learning_rate_factor`.

        Returns:
            Norms of the gradients before clipping, and the policy's learning rate.

        Raises:
            FloatingPointError: a norm is not finite; nothing was applied.
        """
        rate = self._schedule.set_rates(update, self.config.training.updates, spent)
        with self.divided():
            return {**self._step(), "learning_rate": rate}

    def _step(self) -> Record:
        # Once for both groups: a gradient scaler must not unscale twice.
        self.accelerator.unscale_gradients()
        found = clip_gradients(self.optimizer, self.config.optimizer.max_grad_norm)
        names = ("policy_gradient_norm", "flow_gradient_norm")
        norms: Record = dict(zip(names, found, strict=False))
        if self.accelerator.scaler is None:  # a scaler leaves such a step out by itself
            self.check(norms)
        self._prepared.step()
        self._skipped = self._skipped + 1 if self._prepared.step_was_skipped else 0
        if self._skipped == MOST_SKIPPED:
            raise FloatingPointError(f"a gradient, at {MOST_SKIPPED} ever smaller scales in a row,")
        if self._skipped == 0:
            for average in self._averages:
                average.update()
        return norms

    # --- remembering ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the next step depends on besides weights and averages; every process must call it.

        It is the same whether the processes divide it or not.
        """
        scaler, optimizer = self.accelerator.scaler, self.optimizer.state_dict()
        return {
            "optimizer": whole_of(optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "micro_batch": self.micro_batch,
            "given_micro_batch": self.config.training.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; within `divided`."""
        self.optimizer.load_state_dict(_divided_as(self.optimizer, state["optimizer"]))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # What fitted comes first, unless the setting has changed: memory may be why.
        given = self.config.training.micro_batch
        changed = given is not None and given != state.get("given_micro_batch")
        self.micro_batch = given if changed else state["micro_batch"]


def _shards(objective: Objective, accelerator: Accelerator) -> Any:
    from nablaflow.training.shards import Shards  # torch's FSDP takes a second to import

    return Shards(objective.policy, accelerator.device, accelerator.num_processes)


def _divided_as(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state, whole, with this process's part of what its parameters are divided."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def parts(values: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        whole = {key for key, value in values.items() if value.shape == parameter.shape}
        return {k: part_like(v, parameter) if k in whole else v for k, v in values.items()}

    return {
        **state,
        "state": {row: parts(values, parameters[row]) for row, values in state["state"].items()},
    }
