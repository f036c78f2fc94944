"""What the judge of the shipped pairs would say of an image: the truth behind ``preference``."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from nablaflow.nano.preferences import utility
from nablaflow.nano.reader import read
from nablaflow.nano.scenes import RADIUS, SHADE
from nablaflow.nano.shown import CLEAN_OVERLAP
from nablaflow.typing import Batch, Images

LOWEST = -math.sqrt(2) - 2 * math.sqrt(3)
"""The utility of the smallest, coldest object on the brightest background."""


@torch.no_grad()
def preference_rule(images: Images, prompts: list[str]) -> Batch:
    """The judge's utility of the scene that is read off the pixels; no gradient.

    ``preference`` was fitted to 200 judgements by this rule, so this is what it stands for: a
    reward that grows while this one falls is being exploited (Gao et al., arXiv 2210.10760, hold
    such a "gold" reward against a learned one). Sizes and shades beyond those of scenes count as
    the nearest; an image without one clean object scores ``LOWEST``. The prompts are not read.

    Args:
        images: (batch, 3, 64, 64) in [0, 1].
        prompts: one for each.

    Returns:
        (batch,), from ``LOWEST`` to ``-LOWEST``; scenes have mean 0 and standard deviation 1.7.
    """
    reading = read(images.float())
    scenes = replace(
        reading.scenes,
        radius=reading.scenes.radius.clamp(*RADIUS),
        shade=reading.scenes.shade.clamp(*SHADE),
    )
    clean = reading.overlap > CLEAN_OVERLAP
    return torch.where(clean, utility(scenes), torch.full_like(reading.overlap, LOWEST))
