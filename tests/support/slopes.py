"""A gradient of a float32 network against a difference along one direction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_slope(
    function: Callable[[Tensor], Tensor], at: Tensor, *, width: float = 1e-2, rtol: float = 2e-2
) -> None:
    """The gradient of a scalar function agrees with its central difference along itself.

    Along the gradient the difference is largest, so that float32's rounding matters least.
    """
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    assert gradient.dtype == torch.float32
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = function(at + width * direction), function(at - width * direction)
    torch.testing.assert_close((ahead - behind) / (2 * width), gradient.norm(), rtol=rtol, atol=0)
