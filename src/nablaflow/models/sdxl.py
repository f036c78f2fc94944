"""Stable Diffusion XL (arXiv 2307.01952): any folder or hub id of a `StableDiffusionXLPipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.condition import Condition
from nablaflow.models.conditioning import check_network, check_widths
from nablaflow.models.decoding import with_statistics
from nablaflow.models.long_prompts import pieces
from nablaflow.models.parts import check_statistics
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.models.stable_diffusion import StableDiffusion
from nablaflow.models.text_to_image import TextToImage
from nablaflow.typing import Latents


class StableDiffusionXL(TextToImage):
    """Two text encoders; the pooled embedding of the second and six sizes are added to the time.

    The kernels have the timesteps of the folder's own scheduler: of the published one, Euler's with
    leading spacing and an offset of 1, those of DDIM.
    """

    serves = (StableDiffusionXLPipeline,)
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    load_options: ClassVar[dict[str, Any]] = {
        "feature_extractor": None,
        "image_encoder": None,
        "add_watermarker": False,
    }
    small_decoder = "madebyollin/taesdxl"
    small_decoder_scale = 0.13025
    call_defaults: ClassVar[dict[str, Any]] = {"steps": 50, "guidance_scale": 5.0}
    reads = StableDiffusion.reads | {"original_size", "crop", "target_size"}

    def __init__(
        self,
        pipeline: StableDiffusionXLPipeline,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        super().__init__(pipeline, sampler, adapter, device)
        # Not in half precision, which has no 1016, say.
        self._sizes = torch.tensor([self._micro_conditioning()], dtype=torch.float32, device=device)

    @classmethod
    def check_index(cls, parts: Mapping[str, Any]) -> None:
        if parts.get("text_encoder") in ([None, None], None):
            raise UserError(
                "model: this is a refiner (it has no first text encoder), which only finishes what "
                "a base model began; use the base model"
            )

    @classmethod
    def check(cls, pipeline: Any) -> None:
        unet, encoders = pipeline.unet, (pipeline.text_encoder, pipeline.text_encoder_2)
        check_network(unet, added=("text_time",))
        check_widths(unet, sum(encoder.config.hidden_size for encoder in encoders))
        given = 6 * unet.config["addition_time_embed_dim"] + encoders[1].config.projection_dim
        wanted = unet.config["projection_class_embeddings_input_dim"]
        if given != wanted:
            raise UserError(
                f"model: its UNet reads a pooled prompt and sizes of width {wanted}, and {given} "
                "are given; they are of two models, copy the whole of one"
            )
        if _has_statistics(pipeline.vae.config):
            check_statistics(pipeline.vae.config, pipeline.vae.config["latent_channels"])

    def _micro_conditioning(self) -> list[int]:
        """Original size, crop and target size (section 2.2), each height or top first."""
        s, own = self._sampler, list(self.image_size)
        return [*(s.original_size or own), *(s.crop or (0, 0)), *(s.target_size or own)]

    def encode(self, prompt: str) -> Condition:
        return self._embed(prompt, self._sampler.clip_skip or 0)

    def _embed(self, prompt: str, skip: int) -> Condition:
        read = [
            self._read(getattr(self.pipeline, tokenizer), getattr(self.pipeline, encoder), prompt)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        hidden = torch.cat([found.hidden_states[-2 - skip].flatten(0, 1) for found in read], dim=-1)
        return Condition(hidden[None], read[1].text_embeds[:1])

    def _read(self, tokenizer: Any, encoder: Any, prompt: str) -> Any:
        rows, _ = pieces(tokenizer, prompt, self._sampler.prompt_chunks or 1)
        return encoder(rows.to(self.device), output_hidden_states=True)

    def encode_negative(self, prompt: str) -> Condition:
        found = self._embed(prompt, 0)
        if prompt or not self.pipeline.config["force_zeros_for_empty_prompt"]:
            return found
        return found.zeroed()

    @property
    def decoder_is_raised(self) -> bool:
        return bool(self._autoencoder.config.get("force_upcast"))

    def to_autoencoder(self, x0: Latents) -> Latents:
        config, states = self._autoencoder.config, super().to_autoencoder(x0)
        return with_statistics(config, states) if _has_statistics(config) else states

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        assert condition.pooled is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        added = {
            "text_embeds": condition.pooled.to(dtype),
            "time_ids": self._sizes.expand(len(x), -1),
        }
        hidden = condition.hidden.to(dtype)
        return network(x.to(dtype), timestep, hidden, added_cond_kwargs=added, return_dict=False)[0]

    def stock_call(self, prompt: str) -> dict[str, Any]:
        s, call = self._sampler, super().stock_call(prompt)
        asked = {"original_size": s.original_size, "target_size": s.target_size}
        asked["crops_coords_top_left"] = s.crop if any(s.crop or ()) else None
        return call | {name: tuple(pair) for name, pair in asked.items() if pair is not None}


def _has_statistics(config: Mapping[str, Any]) -> bool:
    """As the stock pipeline decides it: with one of the two alone it leaves both out."""
    return None not in (config.get("latents_mean"), config.get("latents_std"))
