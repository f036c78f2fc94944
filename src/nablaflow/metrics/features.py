"""What images are compared by. A feature is any callable images -> (n, d); this one needs no net.

Distances in pooled pixels see colour, layout and size of what is drawn, and no texture. They are
the embedded model's default; for photographs pass a perceptual embedding (the papers use DreamSim,
arXiv 2306.09344) instead.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nablaflow.typing import Features, Images

Feature = Callable[[Tensor], Tensor]
"""``images in [0, 1] -> features``: shapes (batch, 3, h, w) to (batch, d)."""


def pooled_pixels(images: Images, size: int = 8) -> Features:
    """RGB averaged over a ``size`` x ``size`` lattice of cells: (batch, 3 * size**2), float32."""
    return adaptive_avg_pool2d(images.detach().float(), size).flatten(1)
