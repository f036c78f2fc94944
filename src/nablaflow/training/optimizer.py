"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch

from nablaflow.config.settings import OptimizerSettings
from nablaflow.models.adapters import trainable_parameters
from nablaflow.training.objective import Objective


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


def make_optimizer(settings: OptimizerSettings, objective: Objective) -> torch.optim.AdamW:
    """AdamW with one group for the policy and one for the flow network."""
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
    return torch.optim.AdamW(groups, betas=settings.betas)
