"""From a batch to a step: the loss as one module, its gradients, AdamW's rates, the averages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from nablaflow.config.settings import OptimizerSettings
from nablaflow.methods import Losses, Method, Networks, TrainingBatch
from nablaflow.models.adapters import trainable_parameters, trainable_state
from nablaflow.models.divided import whole_of
from nablaflow.training.asked import check_decay, check_losses, check_size
from nablaflow.training.eight_bit import eight_bit_adamw


@final
class Objective(nn.Module):
    """``forward(batch)`` is the method's loss; the parameters are the policy's and the flow's.

    One module, so that torch.distributed wraps all that trains at once.
    """

    def __init__(self, method: Method, networks: Networks) -> None:
        super().__init__()
        self.method = method
        self.networks = networks
        self.policy = networks.model.network
        self.flow = networks.flow

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the batch, and the sum of each logged figure, detached.

        Raises:
            UserError: a method of one's own gave other losses than a value for each transition.
        """
        losses = self.method.losses(batch, self.networks)
        check_losses(self.method.name, losses, len(batch))
        figures = {name: value.detach().sum() for name, value in _named(losses).items()}
        return losses.total.sum(), figures


def _named(losses: Losses) -> dict[str, Tensor]:
    terms = {f"loss_{name}": value for name, value in losses.terms.items()}
    return {"loss": losses.total, **terms, **losses.metrics}


def add_gradients(
    objective: Callable[[TrainingBatch], tuple[Tensor, dict[str, Tensor]]],
    batch: TrainingBatch,
    size: int | None = None,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
) -> dict[str, Tensor]:
    """Add the gradient of the mean loss over a batch to the parameters'.

    Args:
        objective: an `Objective`, or a function that calls one.
        size: transitions per forward pass; None: all of them.
        backward: in place of a loss's own, as a gradient scaler has one.

    Returns:
        The sum over the batch of each logged figure.
    """
    check_size(size)
    totals: dict[str, Tensor] = {}
    step = size or len(batch)
    for start in range(0, len(batch), step):
        loss, figures = objective(batch[start : start + step])
        backward(loss / len(batch))
        for name, value in figures.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value
    return totals


# --- the step -------------------------------------------------------------------------------------


def make_optimizer(settings: OptimizerSettings, objective: Objective) -> torch.optim.Optimizer:
    """AdamW with one group for the policy and one for the flow network.

    Raises:
        UserError: one of 8 bits where there is no such.
    """
    groups = [
        {
            "params": trainable_parameters(objective.policy),
            "lr": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        }
    ]
    if objective.flow is not None:
        groups.append(
            {
                "params": trainable_parameters(objective.flow),
                "lr": settings.flow_learning_rate,
                "weight_decay": settings.flow_weight_decay,
            }
        )
    kind: Any = torch.optim.AdamW
    if settings.name == "adamw8bit":
        kind = eight_bit_adamw(groups[0]["params"][0].device)
    return kind(groups, betas=settings.betas)


@final
class Schedule:
    """The learning rates of an optimizer's groups, by update.

    torch's own schedulers keep their first rates in the optimizer's state, which checkpoints hold.
    """

    def __init__(self, settings: OptimizerSettings, optimizer: torch.optim.Optimizer) -> None:
        self.settings, self._optimizer = settings, optimizer
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def set_rates(self, update: int, updates: int, spent: float = 0.0) -> float:
        """Give each group its rate; the policy's.

        Args:
            update: updates done before this one.
            spent: share of the run's time, see `learning_rate_factor`.
        """
        factor = learning_rate_factor(self.settings, update, updates, spent)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self.settings.learning_rate * factor


def learning_rate_factor(
    settings: OptimizerSettings, update: int, updates: int, spent: float = 0.0
) -> float:
    """Share of the learning rate at an update: a linear warm-up, then constant or half a cosine.

    Args:
        spent: share of the run's time, for one that ends by time; the cosine follows whichever of
            updates and time is further.
    """
    if update < settings.warmup:
        return (update + 1) / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    done = (update - settings.warmup) / max(1, updates - settings.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(done, spent))))


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> list[float]:
    """Scale each group's gradient down to a norm of ``limit``; their norms before that."""
    most = math.inf if limit is None else limit
    return [
        float(whole_of(torch.nn.utils.clip_grad_norm_(group["params"], most)))
        for group in optimizer.param_groups
    ]


# --- what follows it ------------------------------------------------------------------------------


@final
class Average:
    """An exponential moving average of a network's parameters that train.

    Args:
        decay: share of the old average that an update keeps, from 0 up to, but not, 1.
        into: a copy of the network that holds it; None: plain tensors do.

    Attributes:
        values: the average, by the parameters' names.

    Raises:
        UserError: a decay with which it would not follow the network.
    """

    def __init__(self, network: nn.Module, decay: float, into: nn.Module | None = None) -> None:
        check_decay(decay)
        self._network, self._decay = network, decay
        self.values = trainable_state(network)
        if into is not None:
            self.values = {name: value.detach() for name, value in into.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move by 1 - decay toward the network."""
        parameters = dict(self._network.named_parameters())
        for name, value in self.values.items():
            value.lerp_(parameters[name], 1.0 - self._decay)
