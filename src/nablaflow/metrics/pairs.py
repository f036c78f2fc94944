"""Weighted means of Euclidean distances over pairs, and what each would be without any one row.

Both follow from the weighted row sums of the distance matrix, so the matrix is never kept whole,
and the delete-one jackknife of a mean over n^2 pairs costs only n more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nablaflow.metrics.prompts import by_prompt

_HELD = 2**21  # distances held at a time: 16 MiB in float64


@dataclass(frozen=True)
class PairMean:
    """A weighted mean over pairs.

    Attributes:
        value: scalar.
        without: (n,) the mean with each row left out in turn.
    """

    value: Tensor
    without: Tensor


@dataclass(frozen=True)
class Cloud:
    """A weighted sample of one prompt.

    Attributes:
        points: (n, d) float64, n at least 2.
        weights: (n,) float64, sum 1.
    """

    points: Tensor
    weights: Tensor

    @classmethod
    def of(cls, points: Tensor, weights: Tensor | None = None) -> Cloud:
        """From (n, d) features and (n,) weights of any scale; None weighs all the same."""
        weights = torch.ones(len(points)) if weights is None else weights
        points, weights = (part.detach().to("cpu", torch.float64) for part in (points, weights))
        return cls(points, weights / weights.sum())

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def within(self) -> PairMean:
        """sum_{i≠j} w_i w_j |x_i - x_j| / sum_{i≠j} w_i w_j; made once and kept."""
        row_sums = []
        for start, block in _distances(self.points, self.points):
            # A row is no pair with itself, and that distance comes out as rounding error.
            block.diagonal(start).zero_()
            row_sums.append(block @ self.weights)
        sums = torch.cat(row_sums)
        w = self.weights
        total, mass = w @ sums, 1.0 - w.square().sum()
        # Each row is in 2 (n - 1) of the ordered pairs.
        return PairMean(total / mass, (total - 2.0 * w * sums) / (mass - 2.0 * w * (1.0 - w)))


def clouds(
    features: Tensor, prompt_index: Tensor, weights: Tensor | None = None
) -> dict[int, Cloud]:
    """One cloud for each prompt of a sample.

    Args:
        features: (n, d).
        prompt_index: (n,) integers.
        weights: (n,) importance weights, any scale in each prompt; None weighs all the same.

    Raises:
        UserError: a prompt has a single row.
    """
    weights = torch.ones(len(features)) if weights is None else weights
    groups = by_prompt(prompt_index, features, weights)
    return {prompt: Cloud.of(*columns) for prompt, columns in groups.items()}


def between(first: Cloud, second: Cloud) -> tuple[PairMean, PairMean]:
    """sum_ij v_i w_j |x_i - y_j|: without each row of the first, and without each of the second."""
    v, w = first.weights, second.weights
    row_sums, column_sums = [], torch.zeros_like(w)
    for start, block in _distances(first.points, second.points):
        row_sums.append(block @ w)
        column_sums += v[start : start + len(block)] @ block
    rows = torch.cat(row_sums)
    mean = v @ rows
    return (
        PairMean(mean, (mean - v * rows) / (1.0 - v)),
        PairMean(mean, (mean - w * column_sums) / (1.0 - w)),
    )


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the distance matrix, a few rows at a time, each with the index of its first row."""
    height = max(1, _HELD // len(columns))
    for start in range(0, len(rows), height):
        yield start, torch.cdist(rows[start : start + height], columns)
