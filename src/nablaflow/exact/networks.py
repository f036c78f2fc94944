"""The small networks of the laboratory: what trains, on vectors instead of images."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nablaflow.exact.counter import PassCounter
from nablaflow.models import FlowScore
from nablaflow.typing import Latents

TIMESTEPS = 1000
FREQUENCIES = 6


class ValueNetwork(nn.Module):
    """A vector field of (x, timestep): a residual perceptron whose output is zero at first."""

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim + 2 * FREQUENCIES + 1, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "batch dim"], timestep: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch dim"]:
        h = nn.functional.silu(self.first(torch.cat([x, _time_features(timestep).to(x)], 1)))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        return self.last(h)


def _time_features(timestep: Int[Tensor, "batch"]) -> Float[Tensor, "batch feature"]:
    t = timestep[:, None] / TIMESTEPS
    angles = torch.pi * t * torch.arange(1, FREQUENCIES + 1)
    return torch.cat([t, angles.sin(), angles.cos()], 1)


class VectorFlowScore(FlowScore):
    """g_phi for states of shape (1, 1, dim)."""

    def __init__(self, dim: int, width: int, layers: int, counter: PassCounter) -> None:
        super().__init__()
        self.network = ValueNetwork(dim, width, layers)
        self._counter = counter

    def forward(self, x: Latents, timestep: Int[Tensor, "batch"], prompt: Tensor | None) -> Latents:
        return self._counter.forward(self.network(x.flatten(1), timestep).reshape(x.shape))
