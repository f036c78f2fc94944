"""Images of any size to what a network was trained on, differentiable to the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from nablaflow.typing import Images


def resize(
    images: Images, height: int, width: int
) -> Float[Tensor, "batch 3 new_height new_width"]:
    """Bicubic with antialiasing, as PIL and the models' own processors do; clamped to [0, 1]."""
    if images.shape[-2:] == (height, width):
        return images
    resized = interpolate(
        images, (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(0.0, 1.0)


def square(
    images: Images, size: int, shorter: int | None = None
) -> Float[Tensor, "batch 3 side side"]:
    """Resize the shorter side to ``shorter``, or ``size``, pixels; crop the middle square."""
    height, width = images.shape[-2:]
    target = size if shorter is None else shorter
    scale = target / min(height, width)
    resized = resize(images, *(max(target, int(side * scale)) for side in (height, width)))
    top, left = ((side - size) // 2 for side in resized.shape[-2:])
    return resized[..., top : top + size, left : left + size]


def normalize(images: Images, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract ``mean`` from each channel, divide by ``std``."""
    shift, scale = (torch.tensor(v, device=images.device)[:, None, None] for v in (mean, std))
    return (images - shift) / scale
