"""Image embeddings of CLIP ViT-L/14 (Radford et al., arXiv 2103.00020), of length 1."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.features.contract import FeatureExtractor
from nablaflow.features.preprocess import Preprocess, unit
from nablaflow.features.pretrained import load_pretrained
from nablaflow.typing import Features, Images

REPO, REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"
TEXT_PART = ("text_model.", "text_projection.", "logit_scale")
"""Names of a whole ``CLIPModel`` that its image encoder has no use for."""


def load_clip(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``clip``: the vision tower and its projection, 768 numbers.

    Args:
        weights: folder of another ``CLIPModel``.

    Raises:
        UserError: the weights cannot be downloaded or read.
    """
    from transformers import CLIPVisionModelWithProjection

    network: Any = load_pretrained(
        CLIPVisionModelWithProjection, "clip", (REPO, REVISION), weights, device, TEXT_PART
    )
    preprocess = Preprocess(network.config.image_size)

    def embed(images: Images) -> Features:
        return unit(network(pixel_values=preprocess(images)).image_embeds)

    return FeatureExtractor("clip", network.config.projection_dim, embed)
