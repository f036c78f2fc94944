"""Stable Diffusion XL."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import (
    CLIP_G,
    CLIP_L,
    DECODER,
    SCALED_LINEAR,
    SDXL_UNET,
    SMALL_CLIP,
    SMALL_DECODER,
    SMALL_UNET,
    Blueprint,
)

SDXL = Blueprint(
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
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "scheduler": SCALED_LINEAR,
    },
    small={
        "unet": {
            **SMALL_UNET,
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
        "vae": {**SMALL_DECODER, "sample_size": 16, "scaling_factor": 0.13025},
        "text_encoder": SMALL_CLIP,
        "text_encoder_2": SMALL_CLIP,
        "scheduler": SCALED_LINEAR,
    },
    tokenizers={"tokenizer": "clip", "tokenizer_2": "clip"},
    options={"add_watermarker": False},
)
