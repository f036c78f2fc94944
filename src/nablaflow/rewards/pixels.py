"""Rewards that read nothing but pixels, and the colour arithmetic that they share.

None reads the prompts. Every function keeps the dtype of its input and has finite gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nablaflow.typing import Batch, Images

SMOOTHING = 1e-4
"""Lengths below this, a fortieth of an 8-bit level, are rounded off to keep gradients finite."""

REC709 = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in luma (ITU-R BT.709)."""

TARGET_HUE = math.radians(20)
"""Orange red, as an angle on the hue circle: red is at 0, yellow at 60 degrees."""

GREY = 0.02
"""Chroma of a pixel, in [0, 1], at which its hue starts to count: five 8-bit levels."""


# --- the rewards ----------------------------------------------------------------------------------


def brightness(images: Images, prompts: list[str]) -> Batch:
    """Mean Rec. 709 luma, 0 black to 1 white."""
    return luma(images).mean((1, 2))


def contrast(images: Images, prompts: list[str]) -> Batch:
    """Root-mean-square contrast: the pixels' standard deviation of luma, in [0, 0.5]."""
    return smooth_sqrt(luma(images).var((1, 2), correction=0))


def symmetry(images: Images, prompts: list[str]) -> Batch:
    """One minus the mean distance to the image mirrored left to right, in [0, 1]; 1 is symmetric.

    The distance is the absolute difference of a channel, rounded off at 0.
    """
    difference = images - images.flip(-1)
    return 1.0 - smooth_sqrt(difference.square()).mean((1, 2, 3))


def warmth(images: Images, prompts: list[str]) -> Batch:
    """Chroma-weighted mean of cos(hue - ``TARGET_HUE``), in [-1, 1].

    ``GREY`` is added to the mean chroma in the denominator. A grey image is therefore 0 and one
    with a faint tint close to 0, where the plain weighted mean would jump to 1 or -1 on the
    slightest tint; in return, a coloured object scores a little less the less it covers.
    """
    first, second = chroma(images)
    along = first * math.cos(TARGET_HUE) + second * math.sin(TARGET_HUE)
    length = smooth_sqrt(first.square() + second.square())
    return along.mean((1, 2)) / (length.mean((1, 2)) + GREY)


def colorfulness(images: Images, prompts: list[str]) -> Batch:
    """The metric M3 of Hasler & Süsstrunk, "Measuring colorfulness in natural images" (2003).

    Spread plus 0.3 times the mean offset of the opponent colours red-green and yellow-blue. The
    paper's images are in [0, 255] (15 slightly, 109 extremely colourful); for ours in [0, 1] divide
    those by 255. Grey is 0.
    """
    red, green, blue = images.unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    variance = opponents.var((2, 3), correction=0).sum(1)
    offset = opponents.mean((2, 3)).square().sum(1)
    return smooth_sqrt(variance) + 0.3 * smooth_sqrt(offset)


# --- colour arithmetic ----------------------------------------------------------------------------


def smooth_sqrt(square: Tensor) -> Tensor:
    """A square root that is 0 at 0 with a finite slope there; it errs by less than ``SMOOTHING``.

    Equal to ``sqrt(square + s^2) - s``, written as a quotient so that no digits cancel.
    """
    return square / ((square + SMOOTHING**2).sqrt() + SMOOTHING)


def luma(images: Tensor) -> Tensor:
    """Rec. 709 luma of RGB images (batch, 3, h, w): shape (batch, h, w), in [0, 1]."""
    red, green, blue = images.unbind(1)
    return REC709[0] * red + REC709[1] * green + REC709[2] * blue


def chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """The two coordinates of the hue circle, each (batch, h, w); red lies at (1, 0), grey at 0."""
    red, green, blue = images.unbind(1)
    return red - (green + blue) / 2, (green - blue) * (math.sqrt(3) / 2)
