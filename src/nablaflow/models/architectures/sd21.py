"""Stable Diffusion 2.1 at 768 pixels: v prediction."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import CLIP_H, DECODER, Blueprint
from nablaflow.models.architectures.sd15 import SD15

_PREDICTION = {"prediction_type": "v_prediction"}

SD21 = Blueprint(
    "StableDiffusionPipeline",
    SD15.parts,
    full={
        "unet": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        "vae": {**DECODER, "sample_size": 768},
        "text_encoder": CLIP_H,
        "scheduler": {**SD15.full["scheduler"], **_PREDICTION},
    },
    small={
        **SD15.small,
        "unet": {
            **SD15.small["unet"],
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
        },
        "scheduler": {**SD15.small["scheduler"], **_PREDICTION},
    },
    tokenizers=SD15.tokenizers,
    options=SD15.options,
)
