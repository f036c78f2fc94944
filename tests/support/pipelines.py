"""Stock diffusers pipelines of random weights, a thousandth of the real ones' size."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nablaflow.nano.pretrain.text import build_tokenizer
from tests.support.schedules import DDPM, EULER, STABLE_DIFFUSION

WIDTH = 16
LATENT = 8
PIXELS = 16
PROMPT = "a red circle"


def autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
        **options,
    )


def text_config(tokenizer: Any, **options: Any) -> CLIPTextConfig:
    plain = {"hidden_size": WIDTH, "projection_dim": WIDTH, "num_hidden_layers": 1}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=2 * WIDTH,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **plain | options,
    )


def stable_diffusion_xl(seed: int = 0, **options: Any) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL's parts: its two encoders differ in width, padding and depth.

    Args:
        options: of the denoiser, in place of its own.
    """
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": WIDTH + 24,
        "norm_num_groups": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    }
    unet = UNet2DConditionModel(**given | options)
    first, second = build_tokenizer(), build_tokenizer()
    second.pad_token = "!"
    wide = text_config(second, hidden_size=24, projection_dim=12, num_hidden_layers=2)
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(text_config(first, num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**EULER),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion(prediction: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x's parts, or with ``v_prediction`` those of 2.x."""
    torch.manual_seed(seed)
    second: dict[str, Any] = {"attention_head_dim": [2, 4], "use_linear_projection": True}
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        **(second if prediction == "v_prediction" else {"attention_head_dim": 4}),
    )
    tokenizer = build_tokenizer()
    encoder = CLIPTextModel(text_config(tokenizer))
    vae = autoencoder(scaling_factor=0.4)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**STABLE_DIFFUSION | {"prediction_type": prediction}),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unconditional(seed: int = 0, channels: int = 3) -> DDPMPipeline:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=LATENT,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(**DDPM))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def perturb(network: torch.nn.Module, scale: float = 0.3, seed: int = 5) -> None:
    """Move what trains as training would, but further."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def render(pipeline: Any, *, steps: int = 3, seed: int = 7, **options: Any) -> torch.Tensor:
    """A pipeline's own image, (1, 3, h, w) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    if hasattr(pipeline, "tokenizer"):
        options = {"prompt": PROMPT} | options
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        num_inference_steps=steps, generator=generator, output_type="np", **options
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def with_ddim(pipeline: Any) -> Any:
    """With the sampler whose steps end at the schedule's first level."""
    config = dict(pipeline.scheduler.config) | {"set_alpha_to_one": False}
    pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    return pipeline
