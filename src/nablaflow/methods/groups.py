"""Figures of a rollout's trajectories that compare the images of a prompt with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "trajectory"]
Deviation = Literal["prompt", "batch"]

EPSILON = 1e-6  # beside a standard deviation


def by_group(
    function: Callable[[Scores, Scores | None], Scores],
    groups: list[str],
    scores: Scores,
    log_ratio: Scores | None,
) -> Scores:
    """``function`` of each group's scores and log ratios by themselves, at their places."""
    found = torch.empty_like(scores)
    for group in dict.fromkeys(groups):
        rows = torch.tensor([own == group for own in groups], device=scores.device)
        own_ratio = None if log_ratio is None else log_ratio[rows]
        found[rows] = function(scores[rows], own_ratio).to(found)
    return found


def tells_apart(scores: Scores, prompts: list[str]) -> bool:
    """Whether scores differ among the images of a prompt, or of all where each has one.

    Of a single image that cannot be told, and nothing is held against it.
    """
    if len(set(prompts)) == len(prompts):
        prompts = [""] * len(prompts)
    alike = by_group(lambda own, _: (own == own[0]).float(), prompts, scores, None)
    return len(scores) == 1 or not bool(alike.all())


def standardized(scores: Scores) -> Scores:
    """Mean 0, standard deviation 1; all 0 where the scores are equal."""
    return (scores - scores.mean()) / (scores.std(correction=0) + EPSILON)


def standardized_by_prompt(scores: Scores, prompts: list[str], deviation: Deviation) -> Scores:
    """Each score less its prompt's mean, over the prompt's or all the scores' deviation."""
    if deviation == "prompt":
        return by_group(lambda own, _: standardized(own), prompts, scores, None)
    centred = by_group(lambda own, _: own - own.mean(), prompts, scores, None)
    return centred / (scores.std(correction=0) + EPSILON)


def less_the_others(scores: Scores) -> Scores:
    """Each score less the mean of the others: a baseline that does not depend on the score."""
    return (scores - scores.mean()) * len(scores) / max(1, len(scores) - 1)


def with_mean_one(log_weight: Scores) -> Scores:
    """Weights in proportion to exp(log_weight), whose mean is 1."""
    return len(log_weight) * torch.softmax(log_weight, 0)
