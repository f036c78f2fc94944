"""Colour arithmetic that several rewards share; every function keeps the dtype of its input."""

from __future__ import annotations

import math

from torch import Tensor

SMOOTHING = 1e-4
"""Lengths below this, a fortieth of an 8-bit level, are rounded off to keep gradients finite."""

REC709 = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in luma (ITU-R BT.709)."""


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
