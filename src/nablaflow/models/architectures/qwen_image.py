"""Qwen-Image (arXiv 2508.02324); its text encoder is Qwen2.5-VL 7B."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import SMALL_QWEN, Blueprint

_SHIFTED = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}

QWEN_IMAGE = Blueprint(
    "QwenImagePipeline",
    {
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    full={
        "transformer": {},
        "vae": {},
        "text_encoder": {
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
        "scheduler": _SHIFTED,
    },
    small={
        "transformer": {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "axes_dims_rope": (4, 2, 2),
        },
        "vae": {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 2],
            "num_res_blocks": 1,
            "temperal_downsample": [True],
            "latents_mean": [-0.7, 0.3, 0.1, 0.5],
            "latents_std": [2.8, 1.4, 1.1, 0.6],
        },
        "text_encoder": {
            "text_config": {
                **SMALL_QWEN,
                "vocab_size": 259,  # markers and bytes
                "num_hidden_layers": 2,
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_heads": 2,
                "out_hidden_size": 8,
                "fullatt_block_indexes": [0],
            },
        },
        "scheduler": _SHIFTED,
    },
    tokenizers={"tokenizer": "qwen"},
    options={},
)
