"""Class tokens of DINOv2 ViT-B/14 (Oquab et al., arXiv 2304.07193), after the last layer norm."""

from __future__ import annotations

from typing import Any

import torch

from nablaflow.features.contract import FeatureExtractor
from nablaflow.features.preprocess import Preprocess
from nablaflow.features.pretrained import load_pretrained
from nablaflow.typing import Features, Images

REPO, REVISION = "facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415"
PREPROCESS = Preprocess(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), shorter=256)
"""As the published weights' ``preprocessor_config.json``: ImageNet's statistics."""


def load_dinov2(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``dinov2``, 768 numbers.

    Args:
        weights: folder of another ``Dinov2Model``.

    Raises:
        UserError: the weights cannot be downloaded or read.
    """
    from transformers import Dinov2Model

    network: Any = load_pretrained(Dinov2Model, "dinov2", (REPO, REVISION), weights, device)

    def embed(images: Images) -> Features:
        return network(pixel_values=PREPROCESS(images)).pooler_output

    return FeatureExtractor("dinov2", network.config.hidden_size, embed)
