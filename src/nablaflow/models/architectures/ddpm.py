"""google/ddpm-celebahq-256: pixels, without prompts."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import SMALL_UNET, Blueprint

DDPM = Blueprint(
    "DDPMPipeline",
    {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"},
    full={
        "unet": {
            "sample_size": 256,
            "block_out_channels": (128, 128, 256, 256, 512, 512),
            "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
            "attention_head_dim": None,
            "norm_eps": 1e-6,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
        },
        "scheduler": {},
    },
    small={
        "unet": {
            **SMALL_UNET,
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
        "scheduler": {},
    },
    tokenizers={},
    options={},
)
