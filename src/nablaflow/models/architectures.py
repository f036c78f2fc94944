"""Published architectures as their configuration files say, and each once more in small.

A part is its class and the settings that differ from the class's defaults. The small forms have the
same classes and the same kinds of blocks, with a few thousand weights, for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Options = Mapping[str, Any]

DECODER: Options = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
"""The autoencoder of Stable Diffusion and FLUX, but for its latents."""

SDXL_UNET: Options = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SMALL_DECODER: Options = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
}
_NO_QUANT: Options = {"use_quant_conv": False, "use_post_quant_conv": False}
_CLIP_L: Options = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G: Options = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_T5_XXL: Options = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
_SMALL_CLIP: Options = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
_SMALL_T5: Options = {"d_model": 24, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
_SCALED_LINEAR: Options = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_SMALL_UNET: Options = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Blueprint:
    """A pipeline by its parts: class of each by name, its settings, and those of the small form.

    Attributes:
        parts: name of the part in the pipeline, to its class in diffusers or transformers.
        tokenizers: names of those that read CLIP's tokens, and those that read T5's.
        options: of the pipeline's constructor besides its parts.
    """

    pipeline: str
    parts: Mapping[str, str]
    full: Mapping[str, Options]
    small: Mapping[str, Options]
    tokenizers: Mapping[str, str]
    options: Options


ARCHITECTURES: dict[str, Blueprint] = {
    "sd15": Blueprint(
        "StableDiffusionPipeline",
        {
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "scheduler": "DDIMScheduler",
        },
        full={
            "unet": {"sample_size": 64, "cross_attention_dim": 768},
            "vae": {**DECODER, "sample_size": 512},
            "text_encoder": _CLIP_L,
            "scheduler": {**_SCALED_LINEAR, "set_alpha_to_one": False, "clip_sample": False},
        },
        small={
            "unet": {
                **_SMALL_UNET,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": 8,
                "attention_head_dim": 4,
            },
            "vae": {**_SMALL_DECODER, "sample_size": 16},
            "text_encoder": _SMALL_CLIP,
            "scheduler": {**_SCALED_LINEAR, "set_alpha_to_one": False, "clip_sample": False},
        },
        tokenizers={"tokenizer": "clip"},
        options={
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
    ),
    "sdxl": Blueprint(
        "StableDiffusionXLPipeline",
        {
            "unet": "UNet2DConditionModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "scheduler": "EulerDiscreteScheduler",
        },
        full={
            "unet": {
                **SDXL_UNET,
                "sample_size": 128,
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
            },
            "vae": {**DECODER, "sample_size": 1024, "scaling_factor": 0.13025},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
            "scheduler": _SCALED_LINEAR,
        },
        small={
            "unet": {
                **_SMALL_UNET,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2),
                "attention_head_dim": (2, 4),
                "use_linear_projection": True,
                "cross_attention_dim": 16,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 6 * 8 + 8,
            },
            "vae": {**_SMALL_DECODER, "sample_size": 16, "scaling_factor": 0.13025},
            "text_encoder": _SMALL_CLIP,
            "text_encoder_2": _SMALL_CLIP,
            "scheduler": _SCALED_LINEAR,
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip"},
        options={"add_watermarker": False},
    ),
    "sd35": Blueprint(
        "StableDiffusion3Pipeline",
        {
            "transformer": "SD3Transformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
        },
        full={
            "transformer": {
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "out_channels": 16,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
            "vae": {
                **DECODER,
                **_NO_QUANT,
                "sample_size": 1024,
                "latent_channels": 16,
                "scaling_factor": 1.5305,
                "shift_factor": 0.0609,
            },
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
            "text_encoder_3": _T5_XXL,
            "scheduler": {"shift": 3.0},
        },
        small={
            "transformer": {
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 24,
                "caption_projection_dim": 16,
                "pooled_projection_dim": 16,
                "pos_embed_max_size": 8,
                "dual_attention_layers": (0,),
                "qk_norm": "rms_norm",
            },
            "vae": {
                **_SMALL_DECODER,
                **_NO_QUANT,
                "sample_size": 16,
                "latent_channels": 4,
                "scaling_factor": 1.5305,
                "shift_factor": 0.0609,
            },
            "text_encoder": _SMALL_CLIP,
            "text_encoder_2": _SMALL_CLIP,
            "text_encoder_3": _SMALL_T5,
            "scheduler": {"shift": 3.0},
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "clip", "tokenizer_3": "t5"},
        options={},
    ),
    "flux": Blueprint(
        "FluxPipeline",
        {
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
        },
        full={
            "transformer": {"guidance_embeds": True},
            "vae": {
                **DECODER,
                **_NO_QUANT,
                "sample_size": 1024,
                "latent_channels": 16,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
            },
            "text_encoder": _CLIP_L,
            "text_encoder_2": _T5_XXL,
            "scheduler": {"use_dynamic_shifting": True, "shift": 3.0},
        },
        small={
            "transformer": {
                "in_channels": 16,
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 24,
                "pooled_projection_dim": 8,
                "guidance_embeds": True,
                "axes_dims_rope": (4, 4, 8),
            },
            "vae": {
                **_SMALL_DECODER,
                **_NO_QUANT,
                "sample_size": 16,
                "latent_channels": 4,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
            },
            "text_encoder": _SMALL_CLIP,
            "text_encoder_2": _SMALL_T5,
            "scheduler": {"use_dynamic_shifting": True, "shift": 3.0},
        },
        tokenizers={"tokenizer": "clip", "tokenizer_2": "t5"},
        options={},
    ),
}
"""Stable Diffusion 1.5 and XL, Stable Diffusion 3.5 medium, FLUX.1-dev."""
