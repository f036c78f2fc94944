"""Unconditional pixel-space models: any folder or hub id of a `DDPMPipeline`."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.contract import Condition
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.typing import Images, Latents


class UnconditionalDDPM(PipelineModel):
    """States are pixels in [-1, 1]; prompts are only labels of the images."""

    takes_prompts = False

    def __init__(
        self,
        pipeline: DDPMPipeline,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        if sampler.guidance_scale != 1.0:
            raise UserError("sampler.guidance_scale: an unconditional model has no guidance; use 1")
        super().__init__(pipeline, sampler, adapter, device)
        size = pipeline.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.state_shape = (int(pipeline.unet.config["in_channels"]), height, width)
        self.image_size = (height, width)
        if self.state_shape[0] not in (1, 3):
            raise UserError("model: its states are not RGB or grey images")

    def condition(self, prompts: list[str]) -> Condition:
        return Condition()

    def forward(self, x: Latents, timestep: Tensor, prompt: Tensor | None) -> Latents:
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), timestep, return_dict=False)[0]

    def decode(self, x0: Latents) -> Images:
        images = (x0.float() / 2 + 0.5).clamp(0.0, 1.0)
        return images.expand(-1, 3, -1, -1)
