"""What a loop of one's own asks of an update, held against each other before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError, show


def check_rollout(prompts: Any, noise: Any, keep: Any, steps: int, size: int | None) -> None:
    """A prompt, a row of ``keep`` and, but for a single one, a generator for each trajectory.

    Args:
        steps: K, of the sampler.

    Raises:
        UserError: one line on what does not fit.
    """
    texts = isinstance(prompts, Sequence) and all(isinstance(text, str) for text in prompts)
    if isinstance(prompts, str) or not texts or not len(prompts):
        raise UserError(f"prompts: must be a list of texts, one or more, not {show(prompts)}")
    n = len(prompts)
    if not isinstance(keep, Tensor) or keep.ndim != 2 or len(keep) != n:
        found = f"of shape {tuple(keep.shape)}" if isinstance(keep, Tensor) else show(keep)
        raise UserError(
            f"keep: {found} for {n} prompts; give method.draw({n}, model.process, strata, noise)"
        )
    if keep.numel() and not 1 <= int(keep.min()) <= int(keep.max()) <= steps:
        raise UserError(f"keep: names steps outside 1 to {steps}, which are all there are")
    single = isinstance(noise, torch.Generator)
    if not single and not (isinstance(noise, Sequence) and len(noise) == n):
        count = f"{len(noise)} generators" if isinstance(noise, Sequence) else show(noise)
        raise UserError(f"noise: {count} for {n} prompts; give one generator, or one for each")
    if size is not None and size < 1:
        raise UserError(f"size: {size}; give 1 or more, or None for all at once")


def check_credits(credits: Tensor | None, n: int) -> None:
    """Raise `UserError` unless there is one for each of n trajectories, or none at all."""
    if credits is not None and credits.shape != (n,):
        raise UserError(
            f"credits: of shape {tuple(credits.shape)} for {n} trajectories; give "
            "update.credits(rollout)"
        )


def check_decay(decay: Any) -> None:
    """Raise `UserError` unless an average with this decay moves, and toward its network."""
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise UserError(f"decay: {show(decay)}; give a number from 0 up to, but not, 1")
