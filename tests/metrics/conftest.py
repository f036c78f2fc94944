"""Repeated draws, to hold a reported standard error against the spread it claims to be."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from nablaflow.metrics import Estimate


@dataclass(frozen=True)
class Draws:
    """Values and standard errors of the same estimate on independent data."""

    values: torch.Tensor
    errors: torch.Tensor

    @property
    def error_over_spread(self) -> float:
        """1 where the mean reported variance is the variance there is."""
        return (self.errors.square().mean() / self.values.var()).sqrt().item()

    def is_unbiased_for(self, truth: float) -> bool:
        """Whether the mean of the values is within four of its own standard errors of the truth."""
        standard_error = self.values.std() / len(self.values) ** 0.5
        return abs(self.values.mean().item() - truth) < 4 * standard_error.item()


@pytest.fixture(scope="session")
def repeat() -> Callable[..., Draws]:
    def draw(estimate: Callable[[torch.Generator], Estimate], times: int = 300) -> Draws:
        generator = torch.Generator().manual_seed(0)
        drawn = [estimate(generator) for _ in range(times)]
        values, errors = zip(*((e.value, e.se) for e in drawn), strict=True)
        return Draws(torch.tensor(values), torch.tensor(errors))

    return draw
