"""Means of a number that each image has for itself: its reward, its CLIPScore."""

from __future__ import annotations

from functools import partial

from nablaflow.metrics.bootstrap import Measured, Resampling, measured, prompt_means, require_images
from nablaflow.metrics.contract import View, scores

LEAST = 2
"""Images of a prompt."""


def _measure(what: str, own: View, reference: View, resampling: Resampling) -> Measured:
    """The mean within each prompt, averaged over prompts.

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    require_images(what, own.prompt_index, LEAST)
    return measured(
        lambda counts: prompt_means(scores(own), own.prompt_index, counts),
        resampling,
        resampling.counts(own.prompt_index),
        n=len(own),
    )


measure_reward = partial(_measure, "reward")
measure_clip_score = partial(_measure, "CLIPScore")
