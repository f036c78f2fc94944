"""Scores a folder of images with any reward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nablaflow.fitting.images import batches, check_images, list_images
from nablaflow.progress import StartProgress
from nablaflow.rewards import NamedReward
from nablaflow.rewards.fitted import FittedReward


@dataclass(frozen=True)
class ScoredImage:
    """An image and its score.

    Attributes:
        uncertainty: standard deviation over a fitted reward's ensemble; None: the reward has none.
    """

    image: Path
    score: float
    uncertainty: float | None


@torch.no_grad()
def score_folder(
    folder: Path,
    reward: NamedReward,
    prompt: str,
    start: StartProgress,
    *,
    device: str | torch.device = "cpu",
) -> list[ScoredImage]:
    """Score every image of a folder with one prompt for all; best first.

    Args:
        start: shows how the work goes.
        device: that the images are scored on.

    Raises:
        UserError: no folder, no images, or one that cannot be decoded.
    """
    paths = list_images(folder)
    check_images(paths, start("images", len(paths)))
    told = start("score", len(paths))
    scores: list[float] = []
    spreads: list[float | None] = []
    for batch in batches(paths):
        images = batch.to(device)
        scores += reward(images, [prompt] * len(images)).tolist()
        fitted = reward.function
        if isinstance(fitted, FittedReward):
            spreads += fitted.mean_and_spread(images)[1].tolist()
        else:
            spreads += [None] * len(images)
        told(len(images))
    found = [ScoredImage(*row) for row in zip(paths, scores, spreads, strict=True)]
    return sorted(found, key=lambda scored: -scored.score)
