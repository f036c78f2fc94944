"""How much an image is its own mirror image."""

from __future__ import annotations

from nablaflow.rewards.pixels import smooth_sqrt
from nablaflow.typing import Batch, Images


def symmetry(images: Images, prompts: list[str]) -> Batch:
    """One minus the mean distance to the image mirrored left to right, in [0, 1]; 1 is symmetric.

    The distance is the absolute difference of a channel, rounded off at 0. The prompts are not
    read.
    """
    difference = images - images.flip(-1)
    return 1.0 - smooth_sqrt(difference.square()).mean((1, 2, 3))
