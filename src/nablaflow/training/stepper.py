"""One optimizer step from a batch, alike on all processes, and the averages that follow it."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.memory import halving
from nablaflow.methods import TrainingBatch
from nablaflow.models import FlowScore
from nablaflow.models.adapters import trainable_state
from nablaflow.training.average import Average
from nablaflow.training.objective import Objective
from nablaflow.training.optimizer import learning_rate_factor, make_optimizer

Record = dict[str, float]

MOST_SKIPPED = 20  # steps in a row that a gradient scaler leaves out: it halves its scale at each


class Stepper:
    """Gradients of a batch in parts that fit, one step of AdamW, and the moving averages.

    Attributes:
        average: of the policy; None without ``adapter.ema_decay``.
        micro_batch: transitions whose gradients are found at once; None: all of them.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        flow_target: FlowScore | None,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self._flow_target = flow_target
        self.optimizer = make_optimizer(config.optimizer, objective)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._wrapped, self._prepared = accelerator.prepare(objective, self.optimizer)
        decay = config.adapter.ema_decay
        policy = trainable_state(objective.policy)
        self.average = None if decay is None else Average(policy, decay)
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
        totals: dict[str, Tensor] = {}
        self._prepared.zero_grad(set_to_none=True)
        with self.accelerator.no_sync(self._wrapped):
            for start in range(0, len(batch), size):
                loss, figures = self._wrapped(batch[start : start + size])
                self.accelerator.backward(loss / len(batch))
                for name, value in figures.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value
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
        settings = self.config.optimizer
        factor = learning_rate_factor(settings, update, self.config.training.updates, spent)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        # Once for both groups: a gradient scaler must not unscale twice.
        self.accelerator.unscale_gradients()
        norms = {
            f"{name}_gradient_norm": float(
                torch.nn.utils.clip_grad_norm_(group["params"], settings.max_grad_norm)
            )
            for name, group in zip(("policy", "flow"), self.optimizer.param_groups, strict=False)
        }
        if self.accelerator.scaler is None:  # a scaler leaves such a step out by itself
            self.check(norms)
        self._prepared.step()
        self._skipped = self._skipped + 1 if self._prepared.step_was_skipped else 0
        if self._skipped == MOST_SKIPPED:
            raise FloatingPointError(f"a gradient, at {MOST_SKIPPED} ever smaller scales in a row,")
        self._move_averages()
        return {**norms, "learning_rate": settings.learning_rate * factor}

    @torch.no_grad()
    def _move_averages(self) -> None:
        flow, target = self.objective.flow, self._flow_target
        if flow is not None and target is not None and self.config.flow is not None:
            for old, new in zip(target.parameters(), flow.parameters(), strict=True):
                old.lerp_(new, 1.0 - self.config.flow.ema_decay)
        if self.average is not None:
            self.average.update(dict(self.objective.policy.named_parameters()))

    # --- remembering ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the next step depends on besides weights and averages."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "micro_batch": self.micro_batch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # What this session's settings say comes first: memory may be why they were changed.
        self.micro_batch = self.config.training.micro_batch or state["micro_batch"]
