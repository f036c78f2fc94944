"""The flow-score network g_phi(x_k, k): the part of grad V_k that no reward gradient gives."""

from __future__ import annotations

import abc
import math

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nablaflow.devices import without_autocast
from nablaflow.errors import UserError
from nablaflow.models.condition import Condition
from nablaflow.models.settings import FlowSettings
from nablaflow.typing import Latents, Timesteps


class FlowScore(nn.Module, abc.ABC):
    """Any network g_phi(x_k, k) whose output is zero before training."""

    @abc.abstractmethod
    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Latents:
        """The flow score at ``x``, at least float32, in the units of grad log density."""


class UNetFlowScore(FlowScore):
    """A small conditional UNet whose output is zero before training (arXiv 2412.07775, 4.1).

    Args:
        settings: with its channels chosen, see `nablaflow.models.flow_size`.
        channel: channels of a state.
        size: side of a state, or what divides both of its sides.
        width: of the embeddings of a prompt's tokens, or 0 for an unconditional model.
    """

    def __init__(self, settings: FlowSettings, channel: int, size: int, width: int) -> None:
        super().__init__()
        assert settings.channels != "auto"
        self.settings = settings
        levels = len(settings.channels)
        if size % 2 ** (levels - 1):
            raise UserError(
                f"flow.channels: {levels} levels do not fit states of {size} pixels; use fewer"
            )
        self.prompt_conditioned = settings.prompt_conditioned and width > 0
        self.unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=channel,
            out_channels=channel,
            down_block_types=(*["CrossAttnDownBlock2D"] * (levels - 1), "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (levels - 1)),
            block_out_channels=tuple(settings.channels),
            layers_per_block=settings.layers_per_block,
            cross_attention_dim=width or 1,
            norm_num_groups=math.gcd(32, *settings.channels),
        )
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Latents, timestep: Timesteps, condition: Condition) -> Latents:
        tokens = condition.hidden
        if tokens is None:
            tokens = x.new_zeros(len(x), 1, 1)
        elif not self.prompt_conditioned:
            tokens = torch.zeros_like(tokens)
        with without_autocast(x.device):
            return self.unet(x.float(), timestep, tokens.float(), return_dict=False)[0]
