"""How colourful an image looks to people."""

from __future__ import annotations

import torch

from nablaflow.rewards.pixels import smooth_sqrt
from nablaflow.typing import Batch, Images


def colorfulness(images: Images, prompts: list[str]) -> Batch:
    """The metric M3 of Hasler & Süsstrunk, "Measuring colorfulness in natural images" (2003).

    Spread plus 0.3 times the mean offset of the opponent colours red-green and yellow-blue. The
    paper's images are in [0, 255] (15 slightly, 109 extremely colourful); for ours in [0, 1] divide
    those by 255. Grey is 0; the prompts are not read.
    """
    red, green, blue = images.unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    variance = opponents.var((2, 3), correction=0).sum(1)
    offset = opponents.mean((2, 3)).square().sum(1)
    return smooth_sqrt(variance) + 0.3 * smooth_sqrt(offset)
