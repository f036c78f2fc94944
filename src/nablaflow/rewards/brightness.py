"""How light an image is."""

from __future__ import annotations

from nablaflow.rewards.pixels import luma
from nablaflow.typing import Batch, Images


def brightness(images: Images, prompts: list[str]) -> Batch:
    """Mean Rec. 709 luma, 0 black to 1 white; the prompts are not read."""
    return luma(images).mean((1, 2))
