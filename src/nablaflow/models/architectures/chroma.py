"""Chroma: FLUX.1's blocks, T5 and autoencoder."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import SMALL_T5, T5_XXL, Blueprint
from nablaflow.models.architectures.flux import FLUX

CHROMA = Blueprint(
    "ChromaPipeline",
    {
        "transformer": "ChromaTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "T5EncoderModel",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    full={
        "transformer": {},
        "vae": FLUX.full["vae"],
        "text_encoder": T5_XXL,
        "scheduler": {},
    },
    small={
        "transformer": {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 16,
            "approximator_layers": 2,
        },
        "vae": FLUX.small["vae"],
        "text_encoder": SMALL_T5,
        "scheduler": {},
    },
    tokenizers={"tokenizer": "t5"},
    options={},
)
