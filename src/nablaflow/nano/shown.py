"""Does an image of the embedded model still show what its prompt names? A reward to hold out."""

from __future__ import annotations

import torch

from nablaflow.nano.reader import read
from nablaflow.nano.scenes import SHAPES
from nablaflow.typing import Batch, Images

CLEAN_OVERLAP = 0.7  # below it there is no clean object, see `Reading.overlap`


@torch.no_grad()
def shape_shown(images: Images, prompts: list[str]) -> Batch:
    """1 where one clean object of the prompt's shape is read off the pixels, else 0; no gradient.

    A prompt that names no shape asks for any. The mean over images is the share that is legible:
    an image made for the reward alone is not.

    Args:
        images: (batch, 3, 64, 64) in [0, 1].
        prompts: one for each.
    """
    reading = read(images.float())
    clean = reading.overlap > CLEAN_OVERLAP
    wanted = torch.tensor([_shape(prompt) for prompt in prompts], device=images.device)
    return (clean & ((wanted < 0) | (reading.scenes.shape == wanted))).float()


def _shape(prompt: str) -> int:
    """Index of the shape that a prompt names, -1 for none."""
    words = prompt.split()
    return next((index for index, shape in enumerate(SHAPES) if shape in words), -1)
