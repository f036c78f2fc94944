"""What images are compared and judged by: frozen feature extractors, found by name.

To add one, write its file here and its line in ``FEATURES``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from nablaflow.errors import UserError, nearest
from nablaflow.features.clip import load_clip
from nablaflow.features.contract import Feature, FeatureExtractor
from nablaflow.features.dinov2 import load_dinov2
from nablaflow.features.dreamsim import load_dreamsim
from nablaflow.features.fingerprint import fingerprint, same_features
from nablaflow.features.nano import load_nano
from nablaflow.features.pixels import load_pixels, pooled_pixels

__all__ = [
    "FEATURES",
    "Feature",
    "FeatureExtractor",
    "check_name",
    "fingerprint",
    "load",
    "pooled_pixels",
    "same_features",
]

FEATURES: dict[str, Callable[[str | None, torch.device], FeatureExtractor]] = {
    "clip": load_clip,
    "dinov2": load_dinov2,
    "dreamsim": load_dreamsim,
    "nano": load_nano,
    "pixels": load_pixels,
}
"""Name to ``(weights, device) -> extractor``."""


def check_name(name: str) -> None:
    """Find out whether there is such an extractor, its weights not read yet.

    Raises:
        UserError: there is none.
    """
    if name not in FEATURES:
        raise UserError(f"unknown features {name!r}: {nearest(name, FEATURES)}")


def load(
    name: str, *, weights: str | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """The extractor of a name, with its weights on ``device``.

    Args:
        name: a name of ``FEATURES``.
        weights: a folder in place of the extractor's own weights.

    Raises:
        UserError: there is no such extractor, or its weights cannot be downloaded.
    """
    check_name(name)
    return FEATURES[name](weights, torch.device(device))
