"""What metrics look at, by name: features, the images themselves, scores that need the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.errors import UserError, nearest
from nablaflow.metrics.features import pooled_pixels
from nablaflow.metrics.inception import DIM, Inception
from nablaflow.metrics.quadratic import Kernel, euclidean
from nablaflow.training.evaluation import Look

FEATURES = ("pixels",)
"""What ``--features`` may name."""
COSINE = ("clip", "dinov2", "dreamsim")
"""Features whose length says nothing; DreamSim's own distance is 1 - cos."""


@dataclass(frozen=True)
class Space:
    """A look at images.

    Attributes:
        look: images in [0, 1] and their prompts to a row each.
        dim: numbers in a row, for features.
        distance: between two rows, for features.
    """

    look: Look
    dim: int
    distance: Kernel = euclidean


def load_space(name: str, device: torch.device) -> Space:
    """The look of a name, its network loaded.

    Raises:
        UserError: there is none, or its package or weights are missing.
    """
    if name in _OTHERS:
        return _OTHERS[name](device)
    return Space(lambda images, prompts: pooled_pixels(images), 192)


def check_features(name: str) -> None:
    """Raise ``UserError`` unless ``--features`` may name it."""
    if name not in FEATURES:
        raise UserError(f"--features: no features {name!r}; {nearest(name, FEATURES)}")


def _inception(device: torch.device) -> Space:
    network = Inception(device=device)
    return Space(lambda images, prompts: network(images), DIM)


def _pictures(device: torch.device) -> Space:
    def look(images: Tensor, prompts: list[str]) -> Tensor:
        return (images.clamp(0.0, 1.0) * 255.0).round().byte()

    return Space(look, 0)


_OTHERS: dict[str, Callable[[torch.device], Space]] = {
    "inception": _inception,
    "pictures": _pictures,
}
