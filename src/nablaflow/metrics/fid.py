"""Fréchet distance of two whole samples, as in FID (Heusel et al., arXiv 1706.08500).

`frechet.py` has the distance within each prompt, in few dimensions and with its bias taken off.
This is the figure that papers print: all prompts together, all dimensions, bias and all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import Counts, Measured, ReferenceCounts, Resampling, measured
from nablaflow.metrics.contract import View, double
from nablaflow.metrics.frechet import Moments, frechet_between_gaussians


def frechet_of_samples(
    features: Tensor, reference: Tensor, counts: Counts, reference_counts: ReferenceCounts
) -> Tensor:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^{1/2}), covariances unbiased, shape (replicate,).

    With S = A^T A, the last trace is the sum of the singular values of A1 A2^T, a matrix of one
    sample's rows by the other's. So a sample smaller than its dimensions costs what its rows cost;
    others go through the eigenvalues of `frechet_between_gaussians`.

    Args:
        features: (n, d).
        reference: (m, d).
        counts: (replicate, n).
        reference_counts: (replicate, m).
    """
    x, y = double(features), double(reference)
    origin = y.mean(0)  # no figure depends on it; near the data fewer digits cancel
    x, y = x - origin, y - origin
    by_rows = min(len(x), len(y)) < x.shape[1]
    distance = _by_rows if by_rows else _by_moments
    pairs = zip(counts, reference_counts, strict=True)
    return torch.stack([distance(x, y, c, e) for c, e in pairs])


def measure_frechet(own: View, reference: View, resampling: Resampling) -> Measured:
    """`frechet_of_samples` of all prompts together.

    Raises:
        UserError: either sample has no more images than dimensions.
    """
    dim = own.rows.shape[1]
    found = min(len(own), len(reference))
    if found <= dim:
        raise UserError(
            f"Fréchet distance: {found} images are too few for covariances in {dim} dimensions; "
            f"use --n {dim + 1} or more, or a kernel distance, which is unbiased at any number"
        )
    return measured(
        lambda c, e: frechet_of_samples(own.rows, reference.rows, c, e),
        resampling,
        resampling.counts(own.prompt_index),
        resampling.counts(reference.prompt_index),
        n=len(own),
        bounds=(0.0, float("inf")),
    )


def _root(points: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and A (rows, d), with A^T A the unbiased covariance."""
    points, share = points[counts > 0], counts[counts > 0] / counts.sum()
    mean = share @ points
    # Pairs of an image with itself are left out of the spread, see `bootstrap`.
    freedom = 1.0 - share.square().sum()
    return mean, (share / freedom).sqrt()[:, None] * (points - mean)


def _by_rows(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    (m1, a1), (m2, a2) = _root(x, x_counts), _root(y, y_counts)
    overlap = torch.linalg.svdvals(a1 @ a2.T).sum()
    return (m1 - m2).square().sum() + a1.square().sum() + a2.square().sum() - 2.0 * overlap


def _by_moments(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    (m1, a1), (m2, a2) = _root(x, x_counts), _root(y, y_counts)
    return frechet_between_gaussians(Moments(m1, a1.T @ a1), Moments(m2, a2.T @ a2))
