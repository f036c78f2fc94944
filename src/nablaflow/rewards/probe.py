"""Find out before training whether a reward keeps the contract, and whether it has a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor
from torch.nn import functional

from nablaflow.errors import UserError
from nablaflow.rewards.contract import Composite, NamedReward, named, summary, walk
from nablaflow.rewards.scorer import Scorer
from nablaflow.rewards.trl import is_trls
from nablaflow.typing import Batch, Images, Reward

ROWS = 4
SEED = 0
TOLERANCE, TOLERANCE_BF16 = 1e-3, 1e-2
"""Largest change of a reward, relative to the largest of the batch, when the batch is split.

The other is for scorers in bf16: a matrix product's rounding may depend on the size of the batch.
"""


@dataclass(frozen=True)
class RewardProbe:
    """What was found out about a reward.

    Attributes:
        differentiable: whether methods that use the reward's gradient can use it.
        reason: why it is not, as the end of a sentence that begins with the reward; "" if it is.
    """

    differentiable: bool
    reason: str = ""


def probe(
    reward: Reward,
    *,
    height: int,
    width: int,
    device: torch.device | str,
    prompts: list[str],
) -> RewardProbe:
    """Try a reward on four smooth random images, the same ones every time.

    What is made of others has a gradient only if each of them has one: otherwise training would
    follow the others alone and say nothing.

    Args:
        reward: a ``NamedReward`` or any callable.
        height: of the images, pixels.
        width: the same.
        device: where the images are put.
        prompts: of the training set; repeated up to four, "" if there are none.

    Raises:
        UserError: the reward fails, its result is not a finite float32 tensor of shape (batch,) on
            the images' device, or one image's reward depends on the other images.
    """
    reward = named(reward)
    _refuse_trls(reward)
    images = _images(height, width).to(device)
    prompts = list(islice(cycle(prompts or [""]), ROWS))
    _check_contract(reward, images, prompts)
    if not isinstance(reward.function, Composite):
        return _gradient(reward, images, prompts)
    for term in walk(reward):
        if not isinstance(term.function, Composite):
            part = _gradient(term, images, prompts)
            if not part.differentiable:
                return RewardProbe(False, f"in its term {term.name!r}, {part.reason}")
    return RewardProbe(True)


def require_gradient(name: str, probe: RewardProbe, methods_without_gradient: list[str]) -> None:
    """Refuse a reward that has no gradient; to be called for a method that needs one.

    Args:
        name: of the reward.
        probe: what was found out about it.
        methods_without_gradient: names of the methods that could use it.

    Raises:
        UserError: it has none.
    """
    if probe.differentiable:
        return
    known = ", ".join(methods_without_gradient)
    remedy = (
        f"choose a method that needs no gradient: {known}"
        if known
        else "no built-in method can use it yet, so choose a reward that has one"
    )
    raise UserError(f"reward {name!r} has no usable gradient: {probe.reason}; {remedy}")


def _refuse_trls(reward: NamedReward) -> None:
    for part in walk(reward):
        if is_trls(part.function):
            raise UserError(
                f"reward {part.name!r} takes three arguments, as TRL's rewards do: give it as "
                "trl:path/to/file.py:function, or in Python nablaflow.rewards.TrlReward(function)"
            )


def _images(height: int, width: int) -> Images:
    """Four smooth, colourful images in [0, 1], away from both ends, where a clamp has no slope."""
    coarse = torch.rand(ROWS, 3, 5, 5, generator=torch.Generator().manual_seed(SEED))
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return 0.05 + 0.9 * smooth


def _check_contract(reward: NamedReward, images: Images, prompts: list[str]) -> None:
    with torch.no_grad():
        together = _score(reward, images, prompts)
        # One row alone also finds a ``squeeze()`` that drops the batch dimension.
        apart = [_score(reward, images[:1], prompts[:1]), _score(reward, images[1:], prompts[1:])]
    change = (together - torch.cat(apart)).abs().max()
    if change > _tolerance(reward) * together.abs().max():
        raise UserError(
            f"reward {reward.name!r} gives an image another value when the rest of the batch "
            "changes: let it use its own image only, without randomness (a network needs .eval())"
        )


def _tolerance(reward: NamedReward) -> float:
    parts = [part.function for part in walk(reward)]
    coarse = any(isinstance(part, Scorer) and part.settings.dtype == "bf16" for part in parts)
    return TOLERANCE_BF16 if coarse else TOLERANCE


def _score(reward: NamedReward, images: Images, prompts: list[str]) -> Batch:
    """The scores; an exception becomes a message here, and keeps its traceback in training."""
    try:
        return reward(images, prompts)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"reward {reward.name!r} fails on {len(images)} images of shape "
            f"{tuple(images.shape[1:])} ({summary(error)}): it must take (images, prompts) of any "
            "batch size"
        ) from error


def _gradient(reward: NamedReward, images: Images, prompts: list[str]) -> RewardProbe:
    leaf = images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            total = reward(leaf, prompts).sum()
        if not total.requires_grad:
            return RewardProbe(
                False,
                "its result has no graph (numpy, .item(), .detach() or torch.no_grad inside)",
            )
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return RewardProbe(False, f"it fails on images that need a gradient ({summary(error)})")
    return _judge(gradient)


def _judge(gradient: Tensor | None) -> RewardProbe:
    """Whether a gradient (batch, 3, h, w) is finite and reaches every image."""
    if gradient is None:
        return RewardProbe(False, "its graph does not lead back to the images")
    if not gradient.isfinite().all():
        return RewardProbe(False, "its gradient is NaN or infinite")
    missed = int((gradient.flatten(1) == 0).all(1).sum())
    if missed:
        return RewardProbe(False, f"its gradient is zero for {missed} of {len(gradient)} images")
    return RewardProbe(True)
