"""Sums over pairs of a kernel, for many counts of the rows at once, without the matrix of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nablaflow.metrics.bootstrap import Counts, ReferenceCounts

_HELD = 2**21  # entries held at a time: 16 MiB in float64

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Rows (a, d) and (b, d) to their matrix (a, b)."""


def euclidean(rows: Tensor, columns: Tensor) -> Tensor:
    """|x - y|; from differences, since the usual expansion loses near pairs to rounding."""
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def cosine(rows: Tensor, columns: Tensor) -> Tensor:
    """1 - cos(x, y), between 0 and 2, as |u - v|^2 / 2 of the unit vectors.

    From differences, as `euclidean`: rows that are the same are at zero exactly. A row of zeros has
    no direction; it is at 1/2 from all that have one.
    """
    return euclidean(normalize(rows, dim=1), normalize(columns, dim=1)).square() / 2.0


def cubic(rows: Tensor, columns: Tensor) -> Tensor:
    """(x·y / d + 1)^3, the kernel of KID (arXiv 1801.01401, section 4)."""
    return (rows @ columns.T / rows.shape[1] + 1.0) ** 3


def within_mean(points: Tensor, counts: Counts, kernel: Kernel) -> Float[Tensor, "replicate"]:
    """sum_{i≠j} c_i c_j k(x_i, x_j) / sum_{i≠j} c_i c_j.

    Args:
        points: (n, d) float64.
    """
    total = torch.zeros(len(counts), dtype=torch.float64)
    for start, block in kernel_blocks(points, points, kernel):
        block.diagonal(start).zero_()  # an image is no pair with itself, however often it counts
        total += ((counts[:, start : start + len(block)] @ block) * counts).sum(1)
    return total / _pairs(counts)


def matrix_mean(matrix: Tensor, counts: Counts) -> Float[Tensor, "replicate"]:
    """The same of a kernel's matrix (n, n) float64, whose diagonal must be zero."""
    return ((counts @ matrix) * counts).sum(1) / _pairs(counts)


def between_mean(
    first: Tensor,
    second: Tensor,
    first_counts: Counts,
    second_counts: ReferenceCounts,
    kernel: Kernel,
) -> Float[Tensor, "replicate"]:
    """sum_ij c_i e_j k(x_i, y_j) / sum_ij c_i e_j."""
    total = torch.zeros(len(first_counts), dtype=torch.float64)
    for start, block in kernel_blocks(first, second, kernel):
        total += ((first_counts[:, start : start + len(block)] @ block) * second_counts).sum(1)
    return total / (first_counts.sum(1) * second_counts.sum(1))


def _pairs(counts: Counts) -> Tensor:
    """sum_{i≠j} c_i c_j."""
    return counts.sum(1).square() - counts.square().sum(1)


def kernel_blocks(rows: Tensor, columns: Tensor, kernel: Kernel) -> Iterator[tuple[int, Tensor]]:
    """The kernel's matrix (a, b) a few rows at a time, each with the index of its first row."""
    height = max(1, _HELD // len(columns))
    for start in range(0, len(rows), height):
        yield start, kernel(rows[start : start + height], columns)
