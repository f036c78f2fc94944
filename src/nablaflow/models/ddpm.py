"""Unconditional pixel-space models: any folder or hub id of a `DDPMPipeline`, or of its kin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DDIMPipeline, DDPMPipeline, PNDMPipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.condition import Condition
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.sizes import pixel_size
from nablaflow.typing import Images, Latents


class UnconditionalDDPM(PipelineModel):
    """States are pixels in [-1, 1]; prompts are only labels of the images.

    The classes have the same parts, a UNet and a schedule of betas, and differ in the sampler that
    their calls go by.
    """

    serves = (DDPMPipeline, DDIMPipeline, PNDMPipeline)
    call_defaults: ClassVar[dict[str, Any]] = {"steps": 100}
    takes_prompts = False

    def __init__(
        self,
        pipeline: DDPMPipeline | DDIMPipeline | PNDMPipeline,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        if sampler.guidance_scale != 1.0:
            raise UserError("sampler.guidance_scale: an unconditional model has no guidance; use 1")
        super().__init__(pipeline, sampler, adapter, device)
        _, height, width = self.state_shape
        self.image_size = (height, width)
        if self.state_shape[0] not in (1, 3):
            raise UserError("model: its states are not RGB or grey images")

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        return int(pipeline.unet.config["in_channels"]), *pixel_size(pipeline.unet, sampler)

    def condition(self, prompts: list[str]) -> Condition:
        return Condition()

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), timestep, return_dict=False)[0]

    def decode(self, x0: Latents) -> Images:
        images = (x0.float() / 2 + 0.5).clamp(0.0, 1.0)
        return images.expand(-1, 3, -1, -1)

    @torch.no_grad()
    def stock_image(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        images = self.call_stock(pipeline, prompt, output_type="np", **options)
        return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
