"""Which transitions of a trajectory are trained: drawn before the rollout, stratified."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def strata_count(steps: int, fraction: float) -> int:
    """How many transitions of ``steps`` a fraction stands for, at least one."""
    return max(1, round(fraction * steps))


def draw_transitions(
    trajectories: int,
    steps: int,
    strata: int,
    generator: torch.Generator,
    *,
    always_last: bool = False,
) -> Int[Tensor, "trajectory transition"]:
    """One step index k from each stratum of 1..K, uniformly, for each trajectory.

    The strata are as equal as ``strata`` allows; where K is not a multiple, some hold one step
    more.

    Args:
        always_last: train k = 1, the only step with an exact value gradient, in each trajectory
            besides (as published).

    Raises:
        ValueError: more strata than steps.
    """
    if not 1 <= strata <= steps:
        raise ValueError(f"{strata} strata do not fit {steps} steps")
    edges = torch.arange(strata + 1) * steps // strata
    width = edges.diff()
    offset = (torch.rand(trajectories, strata, generator=generator) * width).long()
    k = 1 + edges[:-1] + torch.minimum(offset, width - 1)
    if always_last:
        k = torch.cat([torch.ones(trajectories, 1, dtype=torch.long), k], dim=1)
    return k
