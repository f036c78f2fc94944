"""FLUX.1-dev."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import (
    CLIP_L,
    DECODER,
    NO_QUANT,
    SMALL_CLIP,
    SMALL_DECODER,
    SMALL_T5,
    T5_XXL,
    Blueprint,
)

FLUX = Blueprint(
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
            **NO_QUANT,
            "sample_size": 1024,
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
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
            **SMALL_DECODER,
            **NO_QUANT,
            "sample_size": 16,
            "latent_channels": 4,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        "text_encoder": SMALL_CLIP,
        "text_encoder_2": SMALL_T5,
        "scheduler": {"use_dynamic_shifting": True, "shift": 3.0},
    },
    tokenizers={"tokenizer": "clip", "tokenizer_2": "t5"},
    options={},
)
