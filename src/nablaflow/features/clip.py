"""Image embeddings of CLIP ViT-L/14 (Radford et al., arXiv 2103.00020), of length 1."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize as unit

from nablaflow.features.contract import FeatureExtractor
from nablaflow.features.preprocess import normalize, square
from nablaflow.features.pretrained import load_pretrained
from nablaflow.typing import Features, Images

REPO = "openai/clip-vit-large-patch14"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def load_clip(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``clip``: the vision tower and its projection, 768 numbers.

    Args:
        weights: folder of another ``CLIPModel``.

    Raises:
        UserError: the weights cannot be had or read.
    """
    from transformers import CLIPVisionModelWithProjection

    network: Any = load_pretrained(CLIPVisionModelWithProjection, "clip", REPO, weights, device)
    size, dim = network.config.image_size, network.config.projection_dim

    def embed(images: Images) -> Features:
        seen = normalize(square(images, size), MEAN, STD)
        return unit(network(pixel_values=seen).image_embeds, dim=-1)

    return FeatureExtractor("clip", dim, embed)
