"""Figures of a rollout's trajectories that compare the images of a prompt with each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, "trajectory"]


def by_prompt(function: Callable[[Scores], Scores], scores: Scores, prompts: list[str]) -> Scores:
    """``function`` of each prompt's scores by themselves, at their places."""
    found = torch.empty_like(scores)
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([own == prompt for own in prompts], device=scores.device)
        found[rows] = function(scores[rows])
    return found


def standardized(scores: Scores) -> Scores:
    """Mean 0, standard deviation 1; all 0 where the scores are equal."""
    return (scores - scores.mean()) / (scores.std(correction=0) + 1e-6)


def less_the_others(scores: Scores) -> Scores:
    """Each score less the mean of the others: a baseline that does not depend on the score."""
    return (scores - scores.mean()) * len(scores) / max(1, len(scores) - 1)
