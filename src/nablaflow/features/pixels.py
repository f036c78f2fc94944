"""RGB averaged over a lattice of cells; needs no network.

Distances in pooled pixels see colour, layout and size of what is drawn, and no texture. They are
the embedded model's default; for photographs pass a perceptual embedding (the papers use DreamSim,
arXiv 2306.09344) instead.
"""

from __future__ import annotations

import torch
from torch.nn.functional import adaptive_avg_pool2d

from nablaflow.errors import UserError
from nablaflow.features.contract import FeatureExtractor
from nablaflow.typing import Features, Images

CELLS = 8  # on each side of the lattice


def pooled_pixels(images: Images, size: int = CELLS) -> Features:
    """RGB averaged over a ``size`` x ``size`` lattice of cells: (batch, 3 * size**2), float32."""
    return adaptive_avg_pool2d(images.float(), size).flatten(1)


def load_pixels(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``pixels``.

    Raises:
        UserError: weights were given.
    """
    if weights is not None:
        raise UserError(f"features pixels: they have no weights; leave {weights} out")
    return FeatureExtractor("pixels", 3 * CELLS**2, pooled_pixels)
