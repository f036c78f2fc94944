"""What metrics look at, by name: features, the images themselves, scores that need the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.errors import UserError, nearest
from nablaflow.features import FEATURES, load
from nablaflow.metrics.inception import DIM, Inception
from nablaflow.metrics.quadratic import Kernel, cosine, euclidean
from nablaflow.rewards.clip_score import ClipScore
from nablaflow.training.evaluation import Look

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
    """The look of a name that is known to be one, its network loaded.

    Raises:
        UserError: its package or weights are missing.
    """
    if name in _OTHERS:
        return _OTHERS[name](device)
    extractor = load(name, device=device)
    distance = cosine if name in COSINE else euclidean
    return Space(lambda images, prompts: extractor(images), extractor.dim, distance)


def check_features(name: str) -> None:
    """Raise ``UserError`` unless ``--features`` may name it."""
    if name not in FEATURES:
        raise UserError(f"--features: no features {name!r}; {nearest(name, FEATURES)}")


def _inception(device: torch.device) -> Space:
    network = Inception(device=device)
    return Space(lambda images, prompts: network(images), DIM)


def _clip_score(device: torch.device) -> Space:
    network = ClipScore().network().freeze(torch.float32, device)

    @torch.no_grad()
    def look(images: Tensor, prompts: list[str]) -> Tensor:
        return network(images, prompts)

    return Space(look, 1)


def _pictures(device: torch.device) -> Space:
    def look(images: Tensor, prompts: list[str]) -> Tensor:
        return (images.clamp(0.0, 1.0) * 255.0).round().byte()

    return Space(look, 0)


_OTHERS: dict[str, Callable[[torch.device], Space]] = {
    "clip-score": _clip_score,
    "inception": _inception,
    "pictures": _pictures,
}
