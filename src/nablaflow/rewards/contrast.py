"""How far light and dark are apart in an image."""

from __future__ import annotations

from nablaflow.rewards.pixels import luma, smooth_sqrt
from nablaflow.typing import Batch, Images


def contrast(images: Images, prompts: list[str]) -> Batch:
    """Root-mean-square contrast: the pixels' standard deviation of luma, in [0, 0.5].

    The prompts are not read.
    """
    return smooth_sqrt(luma(images).var((1, 2), correction=0))
