"""Stable Diffusion 3 and 3.5: any folder or hub id of a `StableDiffusion3Pipeline`."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from nablaflow.diffusion.flow_schedule import FlowSchedule, shift_by_tokens
from nablaflow.models.condition import Condition
from nablaflow.models.flow_matching import FlowMatching, in_blocks
from nablaflow.models.kohya import Layout
from nablaflow.models.parts import check_read_width
from nablaflow.models.settings import SamplerSettings
from nablaflow.models.sizes import check_positions
from nablaflow.typing import Latents


class StableDiffusion3(FlowMatching):
    """Two CLIPs, and a T5 where there is one; guided or not (arXiv 2403.03206)."""

    serves = (StableDiffusion3Pipeline,)
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    load_options: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    may_lack = ("text_encoder_3", "tokenizer_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    cut_by_first = True
    small_decoder = "madebyollin/taesd3"
    small_decoder_scale = 1.5305
    call_defaults: ClassVar[dict[str, Any]] = {
        "name": "euler",
        "steps": 28,
        "guidance_scale": 7.0,
    }
    reads = FlowMatching.reads | {"clip_skip"}
    reads_tokens = 256
    published_layers: ClassVar[Layout | None] = {
        **in_blocks(
            "joint_blocks",
            "transformer_blocks",
            {
                "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "x_block.attn.proj": ("attn.to_out.0",),
                "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "context_block.attn.proj": ("attn.to_add_out",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
            },
        ),
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "final_layer.linear": ("proj_out",),
    }

    @classmethod
    def check(cls, pipeline: Any) -> None:
        super().check(pipeline)
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        given = sum(encoder.config.projection_dim for encoder in encoders)
        check_read_width(
            "pooled prompts", pipeline.transformer.config["pooled_projection_dim"], given
        )

    @staticmethod
    def channels_out(config: Any) -> int:
        return config["out_channels"] or config["in_channels"]  # of latents, which it is given

    @staticmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        config = pipeline.transformer.config
        height, width = FlowMatching.latent_sides(pipeline, sampler, config["patch_size"])
        most = config["pos_embed_max_size"] * config["patch_size"]
        check_positions((height, width), (most, most), pipeline.vae_scale_factor)
        return int(config["in_channels"]), height, width

    def schedule(self) -> FlowSchedule:
        config = self.pipeline.scheduler.config
        _, height, width = self.shape_of_states(self.pipeline, self._sampler)
        patch = self.pipeline.transformer.config["patch_size"]
        tokens = (height // patch) * (width // patch)
        return FlowSchedule(config, "trained", shift_by_tokens(config, tokens, max_shift=1.16))

    def encode(self, prompt: str) -> Condition:
        return self._embed(prompt, self._sampler.clip_skip)

    def encode_negative(self, prompt: str) -> Condition:
        return self._embed(prompt, None)

    def _embed(self, prompt: str, skip: int | None) -> Condition:
        hidden, _, pooled, _ = self.pipeline.encode_prompt(
            prompt,
            None,
            None,
            self.device,
            1,
            do_classifier_free_guidance=False,
            clip_skip=skip,
            max_sequence_length=self.sequence_length,
        )
        return Condition(hidden, pooled)

    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        assert condition.hidden is not None
        assert condition.pooled is not None
        network = self.adapter.active()
        dtype = next(network.parameters()).dtype
        return network(
            hidden_states=x.to(dtype),
            timestep=timestep,
            encoder_hidden_states=condition.hidden.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
            return_dict=False,
        )[0]
