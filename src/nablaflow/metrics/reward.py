"""Mean reward."""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow.metrics.estimate import Estimate, average
from nablaflow.metrics.prompts import by_prompt
from nablaflow.typing import Batch


def weighted_mean(values: Tensor, weights: Tensor) -> Estimate:
    """Self-normalised importance estimate of a mean, with its delta-method standard error.

    With v the weights scaled to sum 1: mean = sum v r, se^2 = sum v^2 (r - mean)^2 (Owen, Monte
    Carlo theory, methods and examples, section 9.2), times n / (n - 1) so that equal weights give
    the usual standard error of a mean.

    Args:
        values: (n,), n at least 2.
        weights: (n,), not negative, any scale.
    """
    share = weights / weights.sum()
    # About the first: of values that are all the same the mean is that value, and the error 0.
    mean = values[0] + share @ (values - values[0])
    n = len(values)
    variance = n / (n - 1) * (share * (values - mean)).square().sum()
    return Estimate(mean.item(), variance.sqrt().item())


def reward_mean(rewards: Batch, prompt_index: Tensor, weights: Batch | None = None) -> Estimate:
    """Mean reward within each prompt, averaged over prompts.

    Args:
        rewards: (n,).
        prompt_index: (n,) integers.
        weights: (n,) importance weights, any scale in each prompt; None weighs all the same.

    Raises:
        UserError: a prompt has a single row.
    """
    weights = torch.ones_like(rewards) if weights is None else weights
    groups = by_prompt(prompt_index, rewards, weights)
    return average(weighted_mean(*columns) for columns in groups.values())
