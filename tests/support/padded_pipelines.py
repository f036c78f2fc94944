"""Stock pipelines of flow matching that read a prompt at its own length, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.support.flow_parts import (
    QWEN_WIDTH,
    T5_WIDTH,
    autoencoder,
    byte_tokenizer,
    qwen,
    t5_encoder,
    t5_tokenizer,
)


def z_image(seed: int = 0) -> ZImagePipeline:
    """Z-Image's parts: a block of each kind."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=QWEN_WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[600, 256, 256],
    )
    # A new one's are zeros, as no trained one's are.
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad)
    tokenizer = byte_tokenizer()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(4),
        text_encoder=qwen(tokenizer, 2),
        tokenizer=tokenizer,  # type: ignore[arg-type]
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def qwen_image(seed: int = 0) -> QwenImagePipeline:
    """Qwen-Image's parts; its language model sees, though nobody shows it anything."""
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=QWEN_WIDTH,
        axes_dims_rope=(4, 2, 2),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.7, 0.3, 0.1, 0.5],
        latents_std=[2.8, 1.4, 1.1, 0.6],
    )
    tokenizer = byte_tokenizer()
    heads = 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": QWEN_WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
    }
    sight = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2}
    sight |= {"out_hidden_size": QWEN_WIDTH, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sight)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def chroma(seed: int = 0) -> ChromaPipeline:
    """Chroma's parts: FLUX.1's without a CLIP, and one network for all modulations."""
    torch.manual_seed(seed)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=2,
    )
    pipeline = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=False, shift=1.0),
        vae=autoencoder(4),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),  # type: ignore[arg-type]
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PADDED_FAMILIES: dict[str, Callable[[], Any]] = {
    "z-image": z_image,
    "qwen-image": qwen_image,
    "chroma": chroma,
}
