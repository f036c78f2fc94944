"""Fréchet distance of two whole samples, as in FID (Heusel et al., arXiv 1706.08500).

`frechet.py` has the distance within each prompt, in few dimensions and with its bias taken off.
This is the figure that papers print: all prompts together, all dimensions, bias and all.
"""

from __future__ import annotations

from math import hypot

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.metrics.bootstrap import (
    Counts,
    Measured,
    ReferenceCounts,
    Resampling,
    error_of_mean,
    measured_with_error,
    require_images,
)
from nablaflow.metrics.contract import View, double, require_finite
from nablaflow.metrics.frechet import Moments, frechet_between_gaussians
from nablaflow.metrics.frechet_influence import frechet_influence

LEAST = 2
"""Images of a prompt."""


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
        counts: (replicate, n), how much each row weighs.
        reference_counts: (replicate, m).
    """
    x, y = _centred(features, reference)
    by_rows = min(len(x), len(y)) < x.shape[1]
    distance = _by_rows if by_rows else _by_moments
    pairs = zip(counts, reference_counts, strict=True)
    return torch.stack([distance(x, y, c, e) for c, e in pairs])


def measure_frechet(own: View, reference: View, resampling: Resampling) -> Measured:
    """`frechet_of_samples` of all prompts together, with its interval to first order.

    The standard error is that of the mean over images of `frechet_influence`, of both samples, each
    image drawn within its prompt; nothing is drawn, and of ``resampling`` only the level is used.
    The interval is of the printed figure: the figure's own bias, of order 1/n, stays in it.

    Args:
        own: features (n, d), finite.
        reference: features (m, d), finite, of images drawn independently of the first.

    Raises:
        UserError: either sample has no more images than dimensions, a prompt has fewer than `LEAST`
            images, or features are not finite.
    """
    _require_full_rank(own, reference)
    for view in (own, reference):
        require_images("Fréchet distance", view.prompt_index, LEAST)
    require_finite("Fréchet distance", own, reference)
    x, y = _centred(own.rows, reference.rows)
    first, second = _moments(x), _moments(y)
    error = hypot(
        error_of_mean(frechet_influence(x, first, second), own.prompt_index),
        error_of_mean(frechet_influence(y, second, first), reference.prompt_index),
    )
    value = frechet_between_gaussians(first, second).item()
    bounds = (0.0, float("inf"))
    return measured_with_error(value, error, resampling.level, n=len(own), bounds=bounds)


def _require_full_rank(own: View, reference: View) -> None:
    dim, found = own.rows.shape[1], min(len(own), len(reference))
    if found <= dim:
        raise UserError(
            f"Fréchet distance: {found} images are too few for covariances in {dim} dimensions; "
            f"use --n {dim + 1} or more, or a kernel distance, which is unbiased at any number"
        )


def _centred(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 about the reference's mean: no figure depends on it, and fewer digits cancel."""
    x, y = double(features), double(reference)
    return x - y.mean(0), y - y.mean(0)


def _moments(points: Tensor, counts: Tensor | None = None) -> Moments:
    counts = points.new_ones(len(points)) if counts is None else counts
    mean, root = _root(points, counts)
    return Moments(mean, root.T @ root)


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
    return frechet_between_gaussians(_moments(x, x_counts), _moments(y, y_counts))
