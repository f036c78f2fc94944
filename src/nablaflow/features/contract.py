"""What every feature extractor promises: frozen, float32, differentiable to the pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.devices import without_autocast
from nablaflow.typing import Features, Images

Feature = Callable[[Tensor], Tensor]
"""``images in [0, 1] -> features``: shapes (batch, 3, h, w) to (batch, d)."""


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen map from images to vectors.

    Attributes:
        name: under which ``features.load`` finds it.
        dim: length of a vector.
        function: the map itself; its weights, if any, take no gradient.
    """

    name: str
    dim: int
    function: Feature

    def __call__(self, images: Images) -> Features:
        """Features (batch, dim), float32, of images in [0, 1] of any size.

        The graph goes from the features to the pixels where the images ask for a gradient.
        Half-precision images are raised to float32 and autocast is off.
        """
        with without_autocast(images.device):
            return self.function(images.float())


def frozen(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network in float32 on ``device``, in evaluation mode, its weights without gradients."""
    return network.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
