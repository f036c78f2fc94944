"""The small networks of the laboratory: what trains, on vectors instead of images."""

from __future__ import annotations

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from nablaflow.exact.counter import PassCounter
from nablaflow.exact.paths import DIFFUSION, FLOW, TIMESTEPS, NoisePath
from nablaflow.models import Condition, FlowScore, LogFlow
from nablaflow.typing import Batch, Latents, Timesteps

FREQUENCIES = 6


class ValueNetwork(nn.Module):
    """A vector field of (x, timestep), zero at first: a residual perceptron, modulated by time.

    The timestep scales and shifts each layer (arXiv 1709.07871) as it does in the denoisers of
    real models. With it merely beside x in the input the network does not follow even exact targets
    on `ring`, and the rest would be taken for the fault of whichever method is tried. The output is
    in units of sqrt(alpha_bar), as grad V_k is to first order in beta: from pure noise to the next
    level that is a factor of four, which features of the timestep do not resolve.

    Args:
        inputs: values beside x that the field may depend on.
        path: that tells alpha_bar.
        in_signal: whether the output is in those units.
        outputs: of another number than x has.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        layers: int,
        inputs: int = 0,
        path: NoisePath = DIFFUSION,
        *,
        in_signal: bool = True,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.in_signal = path, in_signal
        self.time = nn.Linear(2 * FREQUENCIES + 1, width)
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers + 1))
        self.layers = nn.ModuleList(
            [nn.Linear(dim + inputs, width), *(nn.Linear(width, width) for _ in range(layers))]
        )
        self.last = nn.Linear(width, outputs or dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        timestep: Real[Tensor, "batch"],
        beside: Float[Tensor, "batch input"] | None = None,
    ) -> Float[Tensor, "batch output"]:
        inputs = x if beside is None else torch.cat([x, beside], 1)
        # Few timesteps, many rows: each one's modulations are computed once.
        steps, index = timestep.unique(return_inverse=True)
        time = nn.functional.silu(self.time(_time_features(steps).to(x)))
        h = torch.zeros_like(x[:, :1])
        for place, (layer, modulation) in enumerate(
            zip(self.layers, self.modulations, strict=True)
        ):
            scale, shift = modulation(time)[index].chunk(2, 1)
            after = nn.functional.silu(layer(h if place else inputs) * (1.0 + scale) + shift)
            h = h + after
        found = self.last(h)
        return self.path.signal(timestep).to(x)[:, None] * found if self.in_signal else found


def _time_features(timestep: Real[Tensor, "batch"]) -> Float[Tensor, "batch feature"]:
    t = timestep[:, None] / TIMESTEPS
    angles = torch.pi * t * torch.arange(1, FREQUENCIES + 1)
    return torch.cat([t, angles.sin(), angles.cos()], 1)


class VectorFlowScore(FlowScore):
    """g_phi for states of shape (1, 1, dim).

    By an ODE an image depends on its noise, so that there is a value gradient at pure noise too.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        layers: int,
        counter: PassCounter,
        path: NoisePath = DIFFUSION,
    ) -> None:
        super().__init__()
        in_signal = path is not FLOW
        self.network = ValueNetwork(dim, width, layers, path=path, in_signal=in_signal)
        self._counter = counter

    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Latents:
        return self._counter.forward(self.network(x.flatten(1), timestep).reshape(x.shape))


class VectorLogFlow(LogFlow):
    """h_phi for states of shape (1, 1, dim)."""

    def __init__(self, dim: int, width: int, layers: int, counter: PassCounter) -> None:
        super().__init__()
        self.network = ValueNetwork(dim, width, layers, in_signal=False, outputs=1)
        self._counter = counter

    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Batch:
        return self._counter.forward(self.network(x.flatten(1), timestep))[:, 0]
