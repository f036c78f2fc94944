"""FLUX.1: any folder or hub id of a `FluxPipeline`.

FLUX.1-dev was distilled to take its guidance as an input, so that there is one model for each
guidance and none without: the reference is the model at ``sampler.guidance_scale``, and what is
kept near to is that model's law. FLUX.1-schnell takes none.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.condition import Condition
from nablaflow.models.flow_matching import in_blocks
from nablaflow.models.kohya import Layout
from nablaflow.models.packed_latents import PATCH, PackedLatents, packed, positions, unpacked
from nablaflow.models.parts import check_read_width
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.typing import Latents

LAYERS: Layout = {
    **in_blocks(
        "double_blocks",
        "transformer_blocks",
        {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn.proj": ("attn.to_out.0",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "img_mod.lin": ("norm1.linear",),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn.proj": ("attn.to_add_out",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
            "txt_mod.lin": ("norm1_context.linear",),
        },
    ),
    **in_blocks(
        "single_blocks",
        "single_transformer_blocks",
        {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation.lin": ("norm.linear",),
        },
    ),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
}
"""As the published checkpoint has them."""


class Flux(PackedLatents):
    """A T5 for the tokens and a CLIP for the whole; states are latents, packed for the network."""

    serves = (FluxPipeline,)
    encoders = ("text_encoder", "text_encoder_2")
    load_options: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    tokenizers = ("tokenizer", "tokenizer_2")
    small_decoder = "madebyollin/taef1"
    small_decoder_scale = 0.3611
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 28,
        "guidance_scale": 3.5,
    }
    reads = PipelineModel.reads | {"guidance_scale", "max_sequence_length"}
    reads_tokens = 512
    published_layers: ClassVar[Layout | None] = LAYERS

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        super().__init__(pipeline, sampler, adapter, device)
        self.guidance = sampler.guidance_scale if takes_guidance(pipeline) else None
        self.guidance_scale = 1.0  # there is no other end to guide from

    @classmethod
    def check(cls, pipeline: Any) -> None:
        super().check(pipeline)
        given = pipeline.text_encoder.config.hidden_size
        check_read_width(
            "pooled prompts", pipeline.transformer.config["pooled_projection_dim"], given
        )

    @classmethod
    def _check_read(cls, pipeline: Any, sampler: SamplerSettings) -> None:
        super()._check_read(pipeline, sampler)
        if sampler.guidance_scale != 1.0 and not takes_guidance(pipeline):
            raise UserError(
                "sampler.guidance_scale: this FLUX.1 (schnell) has no input for it; use 1, or "
                "FLUX.1-dev"
            )

    @classmethod
    def defaults_of(cls, pipeline: Any) -> dict[str, Any]:
        few = {"name": "euler", "steps": 4}
        return super().defaults_of(pipeline) if takes_guidance(pipeline) else few

    # --- prompts ----------------------------------------------------------------------------------

    def encode(self, prompt: str) -> Condition:
        length = self.sequence_length
        hidden, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, self.device, 1, max_sequence_length=length
        )
        return Condition(hidden, pooled)

    def notes(self) -> list[str]:
        if self.guidance is None:
            return super().notes()
        told = (
            "model: distilled to take its guidance as an input; the reference is the model at "
            f"sampler.guidance_scale={self.guidance:g}"
        )
        return [*super().notes(), told]

    # --- its network ------------------------------------------------------------------------------

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        assert condition.pooled is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        _, _, height, width = x.shape
        output = network(
            hidden_states=packed(x).to(dtype),
            timestep=timestep / 1000,
            guidance=None if self.guidance is None else timestep.new_full((len(x),), self.guidance),
            pooled_projections=condition.pooled.to(dtype),
            encoder_hidden_states=condition.hidden.to(dtype),
            txt_ids=x.new_zeros(condition.hidden.shape[1], 3, dtype=dtype),
            img_ids=positions(height // PATCH, width // PATCH).to(x.device, dtype),
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    # --- in stock form ----------------------------------------------------------------------------

    def stock_call(self, prompt: str) -> dict[str, Any]:
        height, width = self.image_size
        call: dict[str, Any] = {"prompt": prompt, "height": height, "width": width}
        call["max_sequence_length"] = self.sequence_length
        return call if self.guidance is None else call | {"guidance_scale": self.guidance}


def takes_guidance(pipeline: Any) -> bool:
    """Whether the network has an input for it."""
    return bool(pipeline.transformer.config["guidance_embeds"])
