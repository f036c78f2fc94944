"""The log-flow network h_phi(x_k, k): a scalar whose gradient is the flow score g_phi."""

from __future__ import annotations

import abc

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.embeddings import Timesteps as Frequencies
from torch import Tensor, nn
from torch.nn import functional

from nablaflow.devices import without_autocast
from nablaflow.models.condition import Condition
from nablaflow.typing import Batch, Latents, Timesteps

SIDE = 8
"""Larger states are halved down to less than twice this: at the noise where the network is needed
they hold nothing finer."""
WIDTHS = (48, 40, 32, 24, 16, 8)
"""Channels, from the most on; see `nablaflow.models.flow_size`."""
GROUPS = 8


class LogFlow(nn.Module, abc.ABC):
    """Any network h_phi(x_k, k) whose output is zero before training."""

    @abc.abstractmethod
    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Batch:
        """The log flow at ``x`` up to a constant for each prompt and level, in nats."""


class ConvLogFlow(LogFlow):
    """Convolutions at a low resolution, modulated by time and prompt.

    Args:
        channel: channels of a state.
        side: the smaller side of a state.
        width: of the embeddings of a prompt's tokens, or 0 for an unconditional model.
        channels: inside, a multiple of `GROUPS`.
    """

    def __init__(
        self, channel: int, side: int, width: int, channels: int = WIDTHS[0], blocks: int = 2
    ) -> None:
        super().__init__()
        halvings = max(0, (side // SIDE).bit_length() - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channel, channels, 3, padding=1),
            *(
                layer
                for _ in range(halvings)
                for layer in (nn.SiLU(), nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            ),
        )
        self.frequencies = Frequencies(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(channels, channels)
        self.prompt = nn.Linear(width, channels) if width else None
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(blocks))
        self.head = nn.Sequential(nn.Linear(2 * channels, 128), nn.SiLU(), nn.Linear(128, 1))
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Batch:
        with without_autocast(x.device):
            told = self.time(self.frequencies(timestep.float()))
            if self.prompt is not None and condition.hidden is not None:
                told = told + self.prompt(condition.hidden.float().mean(1))
            h = self.stem(x.float())
            for block in self.blocks:
                h = block(h, functional.silu(told))
            pooled = torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)
            return self.head(pooled)[:, 0]


class _Block(nn.Module):
    """Residual: norm, convolution, norm scaled and shifted by what it is told, convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)
        )
        self.modulation = nn.Linear(channels, 2 * channels)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.modulation(told)[:, :, None, None].chunk(2, dim=1)
        inner = self.convolutions[0](functional.silu(self.norms[0](h)))
        inner = self.norms[1](inner) * (1.0 + scale) + shift
        return h + self.convolutions[1](functional.silu(inner))
