"""Within-prompt diversity with a bootstrap interval, from features or from any pair distance.

`diversity.py` has the same mean with a jackknife error and importance weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nablaflow.metrics.bootstrap import Counts, Resampling, measured, require_images
from nablaflow.metrics.contract import View, double
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.quadratic import within_mean

LEAST = 4
"""Images of a prompt: of three, two drawn ones say nothing about the spread of the pairs."""


def measure_diversity(own: View, reference: View, resampling: Resampling) -> Estimate:
    """Mean distance between two images of a prompt, averaged over prompts.

    With DreamSim's features and the cosine distance this is Nabla-GFlowNet's own figure
    (arXiv 2412.07775, section 4.1).

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """

    def prompt_mean(rows: Tensor, counts: Counts) -> Tensor:
        return within_mean(double(own.rows[rows]), counts, own.distance)

    return measure_pairs("diversity", own, resampling, prompt_mean)


def measure_pairs(
    what: str,
    own: View,
    resampling: Resampling,
    prompt_mean: Callable[[Tensor, Counts], Tensor],
) -> Estimate:
    """A mean over the pairs of a prompt, averaged over prompts.

    Args:
        prompt_mean: which rows are the prompt's, (n,) booleans, and their counts to (replicate,).

    Raises:
        UserError: a prompt has fewer than `LEAST` images.
    """
    require_images(what, own.prompt_index, LEAST)
    groups = [own.prompt_index == prompt for prompt in own.prompt_index.unique().tolist()]

    def statistic(counts: Counts) -> Tensor:
        return torch.stack([prompt_mean(rows, counts[:, rows]) for rows in groups]).mean(0)

    counts = resampling.counts(own.prompt_index, distinct=2)
    return measured(statistic, resampling, counts, n=len(own), bounds=(0.0, float("inf")))
