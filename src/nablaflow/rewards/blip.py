"""BLIP with cross attention, of transformers' parts, under the key names of its first code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BlipSizes:
    """ViT-L/16 with BERT-base, as salesforce/BLIP and ImageReward's med_config.json have them."""

    image: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_inner: int = 3072
    positions: int = 512
    vocabulary: int = 30524  # BERT's, with [DEC] and [ENC]


class Blip(nn.Module):
    """An image encoder, and a text encoder that attends to its patches."""

    def __init__(self, sizes: BlipSizes) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision = BlipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=4 * sizes.vision_width,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.image,
            patch_size=sizes.patch,
            layer_norm_eps=1e-6,  # of the ViT of salesforce/BLIP; transformers' default is 1e-5
        )
        text = BlipTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            encoder_hidden_size=sizes.vision_width,
            intermediate_size=sizes.text_inner,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=sizes.positions,
            is_decoder=True,  # it is what adds the cross attention; the mask is chosen by the call
        )
        self.image_size = sizes.image
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features (batch, width) of the first token of each text, which saw text and image.

        Args:
            images: (batch, 3, size, size), normalised.
            tokens: (batch, length), with its ``mask``: 0 for padding.
        """
        patches = self.vision(pixel_values=images).last_hidden_state
        seen = torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device)
        found: Any = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=seen,
            is_decoder=False,
        )
        return found.last_hidden_state[:, 0]


# Transformers' names beside those of salesforce/BLIP; # is the number of a layer.
_NAMES = (
    ("vision.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision.post_layernorm.", "visual_encoder.norm."),
    ("vision.encoder.layers.#.layer_norm1.", "visual_encoder.blocks.#.norm1."),
    ("vision.encoder.layers.#.layer_norm2.", "visual_encoder.blocks.#.norm2."),
    ("vision.encoder.layers.#.self_attn.projection.", "visual_encoder.blocks.#.attn.proj."),
    ("vision.encoder.layers.#.self_attn.", "visual_encoder.blocks.#.attn."),
    ("vision.encoder.layers.#.mlp.", "visual_encoder.blocks.#.mlp."),
    ("text.", "text_encoder."),
)


def original_name(name: str) -> str:
    """What salesforce/BLIP calls a tensor of ``Blip``."""
    for own, original in _NAMES:
        found = re.match(re.escape(own).replace(r"\#", r"(\d+)"), name)
        if found:
            return original.replace("#", "".join(found.groups())) + name[found.end() :]
    raise KeyError(name)
