"""What tells whether features are those that something was fitted to: their output on fixed images.

A name says which network, not which weights: another revision, another folder or a model that was
trained again gives other numbers under the same name. The output is looked at, and not the bytes
of the weights: it stays where only the file's form or the precision changed, and it differs as well
where the preprocessing changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.features.contract import FeatureExtractor
from nablaflow.typing import Images

SIZE = 64  # pixels, each side of the fixed images
DIRECTIONS = 16  # that the features of each image are projected on
TOLERANCE = 0.02
"""Of the spread over the fixed images: the root mean square difference that is let pass. Weights
rounded to bf16 differ by an eighth of it, weights with noise of 5 % by four times it
(the embedded model, tests/features/test_fingerprint.py)."""


@torch.no_grad()
def fingerprint(extractor: FeatureExtractor, device: str | torch.device = "cpu") -> list[float]:
    """Features of ``fixed_images`` along fixed directions, image after image.

    Args:
        device: that of the extractor's weights.

    Returns:
        ``DIRECTIONS`` numbers of each image, to six digits.
    """
    features = extractor(fixed_images().to(device)).cpu().double()
    found = features @ _directions(features.shape[1])
    return [float(f"{value:.6g}") for value in found.flatten().tolist()]


def same_features(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two fingerprints differ by no more than devices and precisions do.

    The root mean square of the difference is held against what images differ by, in ``one``: a
    change that is small beside it moves no score by much.
    """
    if len(one) != len(other) or len(one) % DIRECTIONS or not one:
        return False
    first, second = (torch.tensor(values).reshape(-1, DIRECTIONS) for values in (one, other))
    spread = (first - first.mean(0)).square().mean().sqrt()
    return bool((first - second).square().mean().sqrt() <= TOLERANCE * spread)


def fixed_images() -> Images:
    """Six, (6, 3, SIZE, SIZE): a disc, colours, waves, checks, rings, specks; of 8-bit levels."""
    y, x = torch.meshgrid(*[torch.arange(SIZE, dtype=torch.float64) / SIZE] * 2, indexing="ij")
    away = ((x - 0.4) ** 2 + (y - 0.55) ** 2).sqrt()
    disc = away < 0.25
    waves = 0.5 + 0.5 * (2 * math.pi * (3 * x + 5 * y)).sin()
    checks = ((8 * x).floor() + (8 * y).floor()) % 2
    rings = 0.5 + 0.5 * (40 * away).cos()
    specks = (97 * x * SIZE + 389 * y * SIZE + 31 * x * y * SIZE**2) % 17 / 16
    images = [
        [torch.where(disc, 0.95, 0.15), torch.where(disc, 0.45, 0.15), torch.where(disc, 0.1, 0.2)],
        [x, y, 1 - x],
        [waves, 0.3 + 0.4 * waves, 1 - waves],
        [checks, 0.5 * checks, 0.2 + 0.6 * checks],
        [0.2 * rings, rings, 0.8 * y],
        [specks, specks, specks],
    ]
    pixels = torch.stack([torch.stack(channels) for channels in images])
    return ((pixels * 255).round() / 255).float()


def _directions(dim: int) -> Float[Tensor, "dim direction"]:
    """Unit vectors without a pattern that features share: waves of incommensurable lengths."""
    steps = torch.arange(1, dim + 1, dtype=torch.float64)[:, None]
    lengths = (torch.arange(1, DIRECTIONS + 1, dtype=torch.float64) * math.sqrt(2)).frac() * math.pi
    waves = (steps * lengths + steps.square() * math.sqrt(3)).cos()
    return waves / waves.norm(dim=0)
