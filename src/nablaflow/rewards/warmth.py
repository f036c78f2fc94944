"""How much the colours of an image lean toward orange red."""

from __future__ import annotations

import math

from nablaflow.rewards.pixels import chroma, smooth_sqrt
from nablaflow.typing import Batch, Images

TARGET_HUE = math.radians(20)
"""Orange red, as an angle on the hue circle: red is at 0, yellow at 60 degrees."""

GREY = 0.02
"""Chroma of a pixel, in [0, 1], at which its hue starts to count: five 8-bit levels."""


def warmth(images: Images, prompts: list[str]) -> Batch:
    """Chroma-weighted mean of cos(hue - ``TARGET_HUE``), in [-1, 1]; the prompts are not read.

    ``GREY`` is added to the mean chroma in the denominator. A grey image is therefore 0 and one
    with a faint tint close to 0, where the plain weighted mean would jump to 1 or -1 on the
    slightest tint; in return, a coloured object scores a little less the less it covers.
    """
    first, second = chroma(images)
    along = first * math.cos(TARGET_HUE) + second * math.sin(TARGET_HUE)
    length = smooth_sqrt(first.square() + second.square())
    return along.mean((1, 2)) / (length.mean((1, 2)) + GREY)
