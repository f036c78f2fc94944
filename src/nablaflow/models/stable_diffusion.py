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
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    small_decoder = "madebyollin/taesd"
    small_decoder_scale = 0.18215
    call_defaults: ClassVar[dict[str, Any]] = {"steps": 50, "guidance_scale": 7.5}
    reads = TextToImage.reads | {"prompt_chunks", "clip_skip", "guidance_rescale"}

    @classmethod
    def check(cls, pipeline: Any) -> None:
        check_text_encoder(pipeline)
        super().check(pipeline)

    def encode(self, prompt: str) -> Condition:
        return self._embed(prompt, self._sampler.clip_skip)

    def encode_negative(self, prompt: str) -> Condition:
        return self._embed(prompt, None)

    def _embed(self, prompt: str, skip: int | None) -> Condition:
        pipe, pieces = self.pipeline, self._sampler.prompt_chunks
        if pieces is None and skip is None:
            return Condition(pipe.encode_prompt(prompt, self.device, 1, False)[0])
        count = pieces or 1
        hidden = embed_pieces(pipe.tokenizer, pipe.text_encoder, prompt, count, self.device, skip)
        return Condition(hidden[None])

    def call_stock(self, pipeline: Any, prompt: str, **options: Any) -> Any:
        encoder = pipeline.text_encoder
        if "clip_skip" not in self.stock_call(prompt) or hasattr(encoder, "text_model"):
            return super().call_stock(pipeline, prompt, **options)
        # diffusers 0.42 looks for the last norm in a part that transformers 5 has not any more.
        object.__setattr__(encoder, "text_model", encoder)
        try:
            return super().call_stock(pipeline, prompt, **options)
        finally:
            object.__delattr__(encoder, "text_model")

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(x.to(dtype), timestep, condition.hidden.to(dtype), return_dict=False)[0]
