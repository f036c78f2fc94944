"""What metrics look at, by name: features, the images themselves, scores that need the prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError, nearest
from nablaflow.evaluation.sampled import ImageLook
from nablaflow.features import FEATURES, FeatureExtractor, load
from nablaflow.metrics.inception import DIM, Inception
from nablaflow.metrics.quadratic import Kernel, cosine, euclidean
from nablaflow.rewards.clip import image_features
from nablaflow.rewards.clip_score import ClipScore
from nablaflow.rewards.scorer import ScoringNetwork

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

    look: ImageLook
    dim: int
    distance: Kernel = euclidean


def load_spaces(names: Collection[str], device: torch.device) -> dict[str, Space]:
    """The looks of several names; ``clip`` and ``clip-score`` share one network.

    Raises:
        UserError: a package or weights are missing.
    """
    found = {}
    if {"clip", "clip-score"} <= set(names):
        # Both are of the same repository and commit, in float32, on the same device.
        network = _clip_network(device)
        found = {"clip": _clip_features(network), "clip-score": _clip_cosine(network)}
    return found | {name: load_space(name, device) for name in sorted(names) if name not in found}


def load_space(name: str, device: torch.device) -> Space:
    """The look of a name that is known to be one, its network loaded.

    Raises:
        UserError: its package or weights are missing.
    """
    if name in _OTHERS:
        return _OTHERS[name](device)
    return _features(load(name, device=device))


def _features(extractor: FeatureExtractor) -> Space:
    distance = cosine if extractor.name in COSINE else euclidean
    return Space(lambda images, prompts: extractor(images), extractor.dim, distance)


def check_features(name: str) -> None:
    """Raise ``UserError`` unless ``--features`` may name it."""
    if name not in FEATURES:
        raise UserError(f"--features: no features {name!r}; {nearest(name, FEATURES)}")


def _inception(device: torch.device) -> Space:
    network = Inception(device=device)
    return Space(lambda images, prompts: network(images), DIM)


def _clip_network(device: torch.device) -> ScoringNetwork:
    return ClipScore().network().freeze(torch.float32, device)


def _clip_features(network: ScoringNetwork) -> Space:
    """What ``features.load("clip")`` finds, by a network that has the texts' encoder as well."""
    config: Any = network.backbone.config
    return _features(
        FeatureExtractor("clip", config.projection_dim, partial(image_features, network))
    )


def _clip_cosine(network: ScoringNetwork) -> Space:
    @torch.no_grad()
    def look(images: Tensor, prompts: list[str]) -> Tensor:
        return network(images, prompts)

    return Space(look, 1)


def _pictures(device: torch.device) -> Space:
    def look(images: Tensor, prompts: list[str]) -> Tensor:
        return (images.clamp(0.0, 1.0) * 255.0).round().byte()

    return Space(look, 0)


_OTHERS: dict[str, Callable[[torch.device], Space]] = {
    "clip-score": lambda device: _clip_cosine(_clip_network(device)),
    "inception": _inception,
    "pictures": _pictures,
}
