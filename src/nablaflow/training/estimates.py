"""Value gradients along a rollout's trajectories, as many of these at once as asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from nablaflow.estimators import Estimator, Networks, Path, ValueGradients, path_log_ratio
from nablaflow.estimators.pull import PullSamples, pull_samples


def estimate_in_parts(
    path: Path, estimator: Estimator, networks: Networks, beta: float, size: int
) -> ValueGradients:
    """Estimates at ``path.transitions``, in their order, from ``size`` trajectories at a time.

    Raises:
        UserError: the reward's gradient is not finite.
        FloatingPointError: it is, and what the networks make of it is not.
    """
    owner = path.transitions.trajectory
    parts, order = [], []
    for start in range(0, len(path), size):
        rows = slice(start, min(start + size, len(path)))
        index = ((owner >= rows.start) & (owner < rows.stop)).nonzero()[:, 0]
        parts.append(estimator.estimate(_some(path, rows, index), networks, beta))
        order.append(index)
    return ValueGradients.concatenate(parts)[torch.cat(order).argsort()]


def log_ratio_in_parts(path: Path, networks: Networks, size: int) -> Tensor:
    """`path_log_ratio`, from ``size`` trajectories at a time."""
    none = torch.zeros(0, dtype=torch.long, device=path.x0.device)
    slices = [slice(start, min(start + size, len(path))) for start in range(0, len(path), size)]
    return torch.cat([path_log_ratio(_some(path, rows, none), networks.model) for rows in slices])


def pull_in_parts(
    path: Path, networks: Networks, levels: Bool[Tensor, "levels"], seed: int, size: int
) -> PullSamples:
    """`pull_samples`, from ``size`` trajectories at a time."""
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(0, dtype=torch.long, device=path.x0.device)
    slices = [slice(start, min(start + size, len(path))) for start in range(0, len(path), size)]
    parts = [_some(path, rows, none) for rows in slices]
    return torch.cat([pull_samples(part, networks.model, levels, generator) for part in parts])


def _some(path: Path, rows: slice, index: Tensor) -> Path:
    """Some trajectories with their transitions, which stand at ``index``."""
    t = path.transitions[index]
    return Path(
        x0=path.x0[rows],
        states=None if path.states is None else path.states[:, rows],
        condition=path.condition[rows],
        prompts=path.prompts[rows],
        transitions=replace(t, trajectory=t.trajectory - rows.start),
        log_prob=None if path.log_prob is None else path.log_prob[rows],
        levels=path.levels,
    )
