"""Means of a number that each image has for itself: its reward, its CLIPScore."""

from __future__ import annotations

from nablaflow.metrics.bootstrap import Resampling, measured, prompt_means, require_images
from nablaflow.metrics.contract import View, scores
from nablaflow.metrics.estimate import Estimate
from nablaflow.typing import Batch

LEAST = 2
"""Images of a prompt."""


def measure_reward(own: View, reference: View, resampling: Resampling) -> Estimate:
    """The mean reward within each prompt, averaged over prompts.

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    return _measure("reward", scores(own), own, resampling)


def measure_clip_score(own: View, reference: View, resampling: Resampling) -> Estimate:
    """CLIPScore: 100 max(cos(image, prompt), 0), averaged as the reward is.

    Hessel et al. (arXiv 2104.08718), equation 1, scale by 2.5; 100 is what torchmetrics and most
    papers on diffusion print.

    Args:
        own: its rows are 100 times the cosine of an image and its prompt in CLIP's space.

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    return _measure("clip-score", scores(own).clamp_min(0.0), own, resampling)


def _measure(what: str, values: Batch, own: View, resampling: Resampling) -> Estimate:
    require_images(what, own.prompt_index, LEAST)
    return measured(
        lambda counts: prompt_means(values, own.prompt_index, counts),
        resampling,
        resampling.counts(own.prompt_index),
        n=len(own),
    )
