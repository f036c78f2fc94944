"""What a loop of one's own asks of an update, held against each other before any work."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError, show
from nablaflow.methods import Losses, Method, Networks
from nablaflow.models import DiffusionModel
from nablaflow.rewards import NamedReward


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
    check_size(size)


def check_size(size: int | None) -> None:
    """Raise `UserError` unless so many can be worked on at once; None is all of them."""
    if size is not None and size < 1:
        raise UserError(f"size: {size}; give 1 or more, or None for all at once")


def check_objects(method: Any, networks: Any) -> None:
    """Raise `UserError` unless an update can be made of them."""
    if not isinstance(method, Method):
        raise UserError(
            f"method: must be a method with its settings, such as TerminalMatching(beta=4.0), not "
            f"{show(method)}"
        )
    if not isinstance(networks, Networks):
        raise UserError(f"networks: must be Networks(model, reward), not {show(networks)}")
    if not isinstance(networks.model, DiffusionModel):
        raise UserError(
            f"Networks: model: must be what nablaflow.models.load_model gives, not "
            f"{show(networks.model)}"
        )
    if not isinstance(networks.reward, NamedReward):
        raise UserError(
            f"Networks: reward: must be what nablaflow.rewards.load gives of a name or a function, "
            f"not {show(networks.reward)}"
        )


def check_credits(credits: Tensor | None, n: int) -> None:
    """There is one for each of n trajectories, or none at all.

    Raises:
        UserError: there is not.
        FloatingPointError: one is not finite, and no weight of a network would be after the step.
    """
    if credits is not None and credits.shape != (n,):
        raise UserError(
            f"credits: of shape {tuple(credits.shape)} for {n} trajectories; give "
            "update.credits(rollout)"
        )
    if credits is not None and not credits.isfinite().all():
        raise FloatingPointError("the credit of a trajectory")


def check_losses(method: str, losses: Any, n: int) -> None:
    """A method of one's own gives each figure for each of n transitions, and a loss with a graph.

    The mean over a batch would be another one else, and depend on how the batch is divided.

    Raises:
        UserError: it does not.
    """
    if not isinstance(losses, Losses) or not losses.terms:
        raise UserError(
            f"method {method}: losses gave {show(losses)}; give nf.Losses({{name: values}}) with "
            "a value for each transition"
        )
    for name, values in {**losses.metrics, **losses.terms}.items():
        if not isinstance(values, Tensor) or values.shape != (n,):
            found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else show(values)
            raise UserError(
                f"method {method}: losses gave {found} for {name!r}, and there are {n} "
                f"transitions; give shape ({n},), a value for each"
            )
    if torch.is_grad_enabled() and not any(part.requires_grad for part in losses.terms.values()):
        raise UserError(
            f"method {method}: no term of its losses leads back to a network that trains; predict "
            "by networks.model, without .detach() or torch.no_grad"
        )


def check_decay(decay: Any) -> None:
    """Raise `UserError` unless an average with this decay moves, and toward its network."""
    if isinstance(decay, bool) or not isinstance(decay, Real) or not 0 <= float(decay) < 1:
        raise UserError(f"decay: {show(decay)}; give a number from 0 up to, but not, 1")
