"""Derivatives without autograd."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def _shifted(values: Tensor, index: int, by: float) -> Tensor:
    moved = values.detach().clone()
    moved.view(-1)[index] += by
    return moved


def finite_difference(
    function: Callable[[Tensor], Tensor], at: Tensor, width: float = 1e-5
) -> Tensor:
    """The gradient of a scalar function by central differences; ``at`` is float64."""
    assert at.dtype == torch.float64
    slopes = [
        (function(_shifted(at, index, width)) - function(_shifted(at, index, -width))).detach()
        / (2 * width)
        for index in range(at.numel())
    ]
    return torch.stack(slopes).reshape(at.shape)
