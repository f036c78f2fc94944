"""The exact tilt by importance weights on reference samples, and whether to believe it.

The tilt is of each prompt on its own, p*(x | c) ∝ p_ref(x | c) exp(beta r(x, c)), so weights are
normalised within each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.metrics.prompts import by_prompt
from nablaflow.typing import Batch

MIN_EFFECTIVE_SAMPLE_SIZE = 200
"""Below this many effective samples in any prompt no figure of the tilt is reported.

At 200 a mean is known to 7 % of the tilt's own spread. With far fewer a handful of rows carries
all the weight, and an error estimated from those rows cannot tell that better ones are missing.
"""


def effective_sample_size(weights: Tensor) -> float:
    """Kish's (sum w)^2 / sum w^2: between 1, one row has all the weight, and n, all the same."""
    return (weights.sum().square() / weights.square().sum()).item()


@dataclass(frozen=True)
class ImportanceWeights:
    """Weights that turn reference samples into samples of the tilt.

    Attributes:
        weights: (n,) float64, sum 1 within each prompt, in the order of the samples.
        effective_sample_sizes: one for each prompt, by ascending prompt index.
    """

    weights: Batch
    effective_sample_sizes: tuple[float, ...]

    @classmethod
    def of_rewards(cls, rewards: Batch, prompt_index: Tensor, beta: float) -> ImportanceWeights:
        """Weights ∝ exp(beta r) within each prompt.

        Args:
            rewards: (n,) of samples of the reference.
            prompt_index: (n,) integers.
            beta: the tilt.

        Raises:
            UserError: a prompt has a single row.
        """
        positions = torch.arange(len(rewards))
        weights = torch.empty(len(rewards), dtype=torch.float64)
        sizes = []
        for values, rows in by_prompt(prompt_index, rewards, positions).values():
            within = torch.softmax(beta * values, dim=0)
            weights[rows.long()] = within
            sizes.append(effective_sample_size(within))
        return cls(weights, tuple(sizes))

    @property
    def effective_sample_size(self) -> float:
        """The smallest over the prompts."""
        return min(self.effective_sample_sizes)

    @property
    def trustworthy(self) -> bool:
        """Whether every prompt has enough effective samples for its figures to be reported."""
        return self.effective_sample_size >= MIN_EFFECTIVE_SAMPLE_SIZE
