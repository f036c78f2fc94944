"""Stock pipelines of flow matching with random weights, a millionth of the real ones' size."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from nablaflow.nano.pretrain.text import build_tokenizer
from tests.support.flow_parts import (
    CLIP_WIDTH,
    PIXELS,
    T5_WIDTH,
    autoencoder,
    byte_tokenizer,
    clip,
    qwen,
    t5_encoder,
    t5_tokenizer,
)
from tests.support.padded_pipelines import PADDED_FAMILIES

LATENT = 8


def sd3(*, t5: bool = True, seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's parts; the second half of 3.5's: dual attention, normalised keys."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=build_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer_2=build_tokenizer(),
        text_encoder_3=t5_encoder() if t5 else None,  # type: ignore[arg-type]
        tokenizer_3=t5_tokenizer() if t5 else None,  # type: ignore[arg-type]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(*, guidance_embeds: bool = True, seed: int = 0) -> FluxPipeline:
    """FLUX.1's parts, dev's or schnell's."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    dev = guidance_embeds
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=dev, shift=3.0 if dev else 1.0
        ),
        vae=autoencoder(4),
        text_encoder=clip(CLIPTextModel),
        tokenizer=build_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),  # type: ignore[arg-type]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux2_klein(*, distilled: bool = False, seed: int = 0) -> Flux2KleinPipeline:
    """FLUX.2-klein's parts; the statistics of its latents are none's default."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
    )
    statistics: Any = vae.bn
    statistics.running_mean.uniform_(-0.5, 0.5)
    statistics.running_var.uniform_(0.5, 2.0)
    tokenizer = byte_tokenizer()
    encoder = qwen(tokenizer, 27)  # as deep as the pipeline's choice of hidden states asks for
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FLOW_FAMILIES: dict[str, Callable[[], Any]] = {
    "sd3": sd3,
    "sd3-without-t5": lambda: sd3(t5=False),
    "flux-dev": flux,
    "flux-schnell": lambda: flux(guidance_embeds=False),
    "klein": flux2_klein,
    "klein-distilled": lambda: flux2_klein(distilled=True),
    **PADDED_FAMILIES,
}
