"""Stable Diffusion 1.x and 2.x: any folder or hub id of a `StableDiffusionPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nablaflow.models.conditioning import check_text_encoder
from nablaflow.models.contract import Condition
from nablaflow.models.long_prompts import embed_pieces, note_cuts
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.sizes import latent_size
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
        check_text_encoder(pipeline)
        super().__init__(pipeline, sampler, adapter, device)
        # Rewards look at pixels: the decoder stays in float32 whatever the denoiser's precision.
        self._autoencoder: Any = pipeline.vae.float().eval().requires_grad_(False)
        self._autoencoder.to(memory_format=torch.channels_last)
        pipeline.text_encoder.eval().requires_grad_(False)
        _, height, width = self.state_shape
        factor = pipeline.vae_scale_factor
        self.image_size = (height * factor, width * factor)
        self._negative_prompt, self._pieces = sampler.negative_prompt, sampler.prompt_chunks
        self._embed = lru_cache(maxsize=EMBEDDINGS)(self._encode)

    @staticmethod
    def state_size(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int]:
        return latent_size(pipeline.unet, pipeline.vae_scale_factor, sampler)

    def note_on(self, prompts: Sequence[str]) -> str | None:
        return note_cuts(self.pipeline.tokenizer, prompts, self._pieces or 1)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        if self._pieces is not None:
            tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
            return embed_pieces(tokenizer, encoder, prompt, self._pieces, self.device)
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
