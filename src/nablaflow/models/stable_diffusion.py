"""Stable Diffusion 1.x and 2.x: any folder or hub id of a `StableDiffusionPipeline`."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor

from nablaflow.models.condition import Condition
from nablaflow.models.conditioning import check_text_encoder
from nablaflow.models.long_prompts import embed_pieces
from nablaflow.models.text_to_image import TextToImage
from nablaflow.typing import Latents


class StableDiffusion(TextToImage):
    """Latent diffusion with a text encoder; epsilon or v prediction, guided or not."""

    serves = (StableDiffusionPipeline,)
    load_options: ClassVar[dict[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    small_decoder = "madebyollin/taesd"
    call_defaults: ClassVar[dict[str, Any]] = {"steps": 50, "guidance_scale": 7.5}
    reads = TextToImage.reads | {"prompt_chunks"}

    @classmethod
    def check(cls, pipeline: Any) -> None:
        check_text_encoder(pipeline)
        super().check(pipeline)

    def encode(self, prompt: str) -> Condition:
        pieces = self._sampler.prompt_chunks
        if pieces is None:
            return Condition(self.pipeline.encode_prompt(prompt, self.device, 1, False)[0])
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        return Condition(embed_pieces(tokenizer, encoder, prompt, pieces, self.device)[None])

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), timestep, condition.hidden.to(dtype), return_dict=False)[0]
