"""One optimizer step from a batch, in parts that fit, alike on all processes."""

from __future__ import annotations

import math
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.memory import halving
from nablaflow.methods import TrainingBatch
from nablaflow.training.optimization import (
    Average,
    Objective,
    Schedule,
    add_gradients,
    clip_gradients,
    make_optimizer,
)

Record = dict[str, float]

MOST_SKIPPED = 20  # steps in a row that a gradient scaler leaves out: it halves its scale at each


class Stepper:
    """Gradients of a batch in parts that fit, one step of AdamW, and the moving averages.

    Attributes:
        average: of the policy; None without ``adapter.ema_decay``.
        micro_batch: transitions whose gradients are found at once; None: all of them.
    """

    def __init__(self, config: Config, objective: Objective, accelerator: Accelerator) -> None:
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self.optimizer = make_optimizer(config.optimizer, objective)
        self._schedule = Schedule(config.optimizer, self.optimizer)
        self._wrapped, self._prepared = accelerator.prepare(objective, self.optimizer)
        decay = config.adapter.ema_decay
        self.average = None if decay is None else Average(objective.policy, decay)
        self._averages = [] if self.average is None else [self.average]
        flow, target = objective.flow, objective.networks.flow_target
        if flow is not None and target is not None and config.flow is not None:
            self._averages.append(Average(flow, config.flow.ema_decay, into=target))
        self.micro_batch = config.training.micro_batch
        self._skipped = 0

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
        self._prepared.zero_grad(set_to_none=True)
        with self.accelerator.no_sync(self._wrapped):
            totals = add_gradients(self._wrapped, batch, size, self.accelerator.backward)
        return {name: value / len(batch) for name, value in totals.items()}

    def _average_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in self._wrapped.parameters():
            if parameter.grad is not None:
                averaged: Any = self.accelerator.reduce(parameter.grad, reduction="mean")
                parameter.grad = averaged

    # --- the step ---------------------------------------------------------------------------------

    def check(self, record: Record) -> None:
        """Drop the gradients if a figure is not finite.

        Raises:
            FloatingPointError: named after the first such figure, a loss before others.
        """
        bad = [name for name, value in record.items() if not math.isfinite(value)]
        if bad:
            self._prepared.zero_grad(set_to_none=True)
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
        for average in self._averages:
            average.update()
        return {**norms, "learning_rate": rate}

    # --- remembering ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the next step depends on besides weights and averages."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "micro_batch": self.micro_batch,
            "given_micro_batch": self.config.training.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # What fitted comes first, unless the setting has changed: memory may be why.
        given = self.config.training.micro_batch
        changed = given is not None and given != state.get("given_micro_batch")
        self.micro_batch = given if changed else state["micro_batch"]
