"""Stable Diffusion 1.5's own architecture, with random weights and small images, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from nablaflow.config.parse import parse_config
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.runs.align import run


def stable_diffusion_15(folder: Path) -> Path:
    """Its configuration files' values; but for the tokenizer's words and 16x16 latents."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=128,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=16, cross_attention_dim=768),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("other_precision")
def test_the_published_objective_trains_and_its_lora_loads(tmp_path: Path):
    config = parse_config(
        {
            "model": str(stable_diffusion_15(tmp_path / "model")),
            "reward": "brightness",
            "prompts": ["a circle", "a star"],
            "output_dir": str(tmp_path / "run"),
            "method": {"name": "residual-nabla-db", "beta": 100.0},
            "sampler": {"steps": 4, "guidance_scale": 5.0},
            "training": {
                "updates": 2,
                "prompts_per_update": 2,
                "images_per_prompt": 1,
                "transition_fraction": 0.25,
                "gradient_checkpointing": True,
                "precision": "bf16",
                "trackers": [],
                "device": "cpu",
            },
            "evaluation": {"n": 4, "batch": 2},
        }
    )
    result = run(config)
    # Saving compared the stock pipeline's image with the policy's.
    assert (result.lora / "pytorch_lora_weights.safetensors").is_file()
    weights = sum(
        p.numel()
        for p in UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet").parameters()
    )
    assert weights == pytest.approx(860e6, rel=0.01)
