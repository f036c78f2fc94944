"""Stable Diffusion 1.x and 2.x: any folder or hub id of a `StableDiffusionPipeline`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.contract import Condition
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.typing import Images, Latents

EMBEDDINGS = 4096  # prompts whose embeddings are kept; of Stable Diffusion 1.5's, 0.2 MB each


class StableDiffusion(PipelineModel):
    """Latent diffusion with a text encoder; epsilon or v prediction, guided or not."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        if pipeline.unet.config["time_cond_proj_dim"] is not None:
            raise UserError(
                "model: a distilled model with a guidance embedding has no reference score; "
                "use the model it was distilled from"
            )
        super().__init__(pipeline, sampler, adapter, device)
        # Rewards look at pixels: the decoder stays in float32 whatever the denoiser's precision.
        self._autoencoder: Any = pipeline.vae.float().eval().requires_grad_(False)
        self._autoencoder.to(memory_format=torch.channels_last)
        pipeline.text_encoder.eval().requires_grad_(False)
        side = int(pipeline.unet.config["sample_size"])
        self.state_shape = (int(pipeline.unet.config["in_channels"]), side, side)
        self.image_size = (side * pipeline.vae_scale_factor, side * pipeline.vae_scale_factor)
        self._negative_prompt = sampler.negative_prompt
        self._embed = lru_cache(maxsize=EMBEDDINGS)(self._encode)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        embedding, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return embedding[0]

    def condition(self, prompts: list[str]) -> Condition:
        prompt = torch.stack([self._embed(text) for text in prompts])
        if self.guidance_scale == 1.0:
            return Condition(prompt)
        return Condition(prompt, self._embed(self._negative_prompt).expand_as(prompt))

    def forward(self, x: Latents, timestep: Tensor, prompt: Tensor | None) -> Latents:
        assert prompt is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), timestep, prompt.to(dtype), return_dict=False)[0]

    def decode(self, x0: Latents) -> Images:
        scaled = x0.float() / self._autoencoder.config["scaling_factor"]
        with torch.autocast(x0.device.type, enabled=False):
            pixels = self._autoencoder.decode(scaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0.0, 1.0)
