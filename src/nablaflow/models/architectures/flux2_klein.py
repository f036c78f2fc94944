"""FLUX.2-klein 4B, the base model."""

from __future__ import annotations

from nablaflow.models.architectures.blueprint import QWEN3_4B, SMALL_DECODER, SMALL_QWEN, Blueprint

_SHIFTED = {"use_dynamic_shifting": True, "shift": 3.0}
_READ = 27  # layers of the language model that the pipeline's choice of hidden states asks for

FLUX2_KLEIN = Blueprint(
    "Flux2KleinPipeline",
    {
        "transformer": "Flux2Transformer2DModel",
        "vae": "AutoencoderKLFlux2",
        "text_encoder": "Qwen3ForCausalLM",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    },
    full={
        "transformer": {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        "vae": {},
        "text_encoder": QWEN3_4B,
        "scheduler": _SHIFTED,
    },
    small={
        "transformer": {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
            "guidance_embeds": False,
        },
        "vae": {**SMALL_DECODER, "sample_size": 16, "latent_channels": 4},
        "text_encoder": {**SMALL_QWEN, "num_hidden_layers": _READ},
        "scheduler": _SHIFTED,
    },
    tokenizers={"tokenizer": "qwen"},
    options={"is_distilled": False},
)
