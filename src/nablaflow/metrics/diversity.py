"""How much the images of one prompt differ from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from nablaflow.metrics.estimate import Estimate, average, jackknife_variance
from nablaflow.metrics.pairs import Cloud, clouds
from nablaflow.typing import Batch, Features


def diversity(features: Features, prompt_index: Tensor, weights: Batch | None = None) -> Estimate:
    """Mean distance between two images of a prompt, averaged over prompts.

    Nabla-GFlowNet (arXiv 2412.07775) takes the mean pairwise DreamSim distance; this is the
    Euclidean distance in any feature. With weights each prompt's mean is self-normalised
    over pairs, sum_{i≠j} w_i w_j d_ij / sum_{i≠j} w_i w_j.

    The standard error is the delete-one jackknife's, within each prompt.

    Args:
        features: (n, d).
        prompt_index: (n,) integers.
        weights: (n,) importance weights, any scale in each prompt; None weighs all the same.

    Raises:
        UserError: a prompt has a single row.
    """
    return diversity_of_clouds(clouds(features, prompt_index, weights))


def diversity_of_clouds(sample: Mapping[int, Cloud]) -> Estimate:
    """The same for clouds made before, whose distances need not be measured again."""
    return average(_diversity(cloud) for cloud in sample.values())


def _diversity(cloud: Cloud) -> Estimate:
    within = cloud.within
    return Estimate(within.value.item(), math.sqrt(jackknife_variance(within.without)))
