"""Stable Diffusion 1.5."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import (
    CLIP_L,
    DECODER,
    SCALED_LINEAR,
    SMALL_CLIP,
    SMALL_DECODER,
    SMALL_UNET,
    Blueprint,
)

SD15 = Blueprint(
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
        "text_encoder": CLIP_L,
        "scheduler": {**SCALED_LINEAR, "set_alpha_to_one": False, "clip_sample": False},
    },
    small={
        "unet": {
            **SMALL_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
        },
        "vae": {**SMALL_DECODER, "sample_size": 16},
        "text_encoder": SMALL_CLIP,
        "scheduler": {**SCALED_LINEAR, "set_alpha_to_one": False, "clip_sample": False},
    },
    tokenizers={"tokenizer": "clip"},
    options={
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
)
