"""Class tokens of DINOv2 ViT-B/14 (Oquab et al., arXiv 2304.07193), after the last layer norm."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.features.contract import FeatureExtractor
from nablaflow.features.preprocess import normalize, square
from nablaflow.features.pretrained import load_pretrained
from nablaflow.typing import Features, Images

REPO = "facebook/dinov2-base"
# The processor of the published weights: shorter side 256, the middle 224 of it.
SHORTER, SIZE = 256, 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load_dinov2(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``dinov2``, 768 numbers.

    Args:
        weights: folder of another ``Dinov2Model``.

    Raises:
        UserError: the weights cannot be had or read.
    """
    from transformers import Dinov2Model

    network: Any = load_pretrained(Dinov2Model, "dinov2", REPO, weights, device)

    def embed(images: Images) -> Features:
        seen = normalize(square(images, SIZE, SHORTER), MEAN, STD)
        return network(pixel_values=seen).pooler_output

    return FeatureExtractor("dinov2", network.config.hidden_size, embed)
