"""Derivatives without autograd, integrals without samples."""

from collections.abc import Callable

import numpy as np
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


def normal_nodes(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes (n,) and weights of a standard normal on the line."""
    nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(n))
    return nodes, weights / weights.sum()


def normal_quadrature(n: int) -> tuple[Tensor, Tensor]:
    """The same in the plane, (n^2, 2)."""
    nodes, weights = normal_nodes(n)
    return torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()
