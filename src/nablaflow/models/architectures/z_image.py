"""Z-Image (arXiv 2511.22699); its autoencoder is FLUX.1's."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import QWEN3_4B, SMALL_QWEN, Blueprint
from nablaflow.models.architectures.flux import FLUX

Z_IMAGE = Blueprint(
    "ZImagePipeline",
    {
        "transformer": "ZImageTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "Qwen3Model",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    full={
        "transformer": {},
        "vae": FLUX.full["vae"],
        "text_encoder": QWEN3_4B,
        "scheduler": {"shift": 3.0},
    },
    small={
        "transformer": {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 8,
            "axes_dims": [4, 2, 2],
            "axes_lens": [600, 256, 256],
        },
        "vae": FLUX.small["vae"],
        "text_encoder": {**SMALL_QWEN, "num_hidden_layers": 2},
        "scheduler": {"shift": 3.0},
    },
    tokenizers={"tokenizer": "qwen"},
    options={},
)
