"""Fréchet distance between Gaussians fitted to two samples (FID: Heusel et al., arXiv 1706.08500).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^{1/2})

in squared units of the feature. Taken within each prompt, where samples are few, so it is taken in
a low-dimensional projection in which covariances have full rank.

The plug-in value is too large by an amount of order 1/n (Chong and Forsyth, arXiv 1911.07023),
which would make a sample of 100 rows and one of 1,000 incomparable. The jackknife that gives the
standard error also gives that amount, and it is taken off: between two samples of one distribution
the figure scatters about zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.metrics.estimate import Estimate, average, jackknife_variance
from nablaflow.metrics.prompts import by_prompt, check_prompts

_PARTS = 32  # of the jackknife: its standard error is itself known to 1 / sqrt(2 * 31) = 13 %


@dataclass(frozen=True)
class Projection:
    """Principal components of the reference samples: the one frame every sample is measured in.

    Attributes:
        mean: (d,) float64.
        basis: (d, dim) float64, orthonormal columns, most variance first.
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, features: Tensor, dim: int = 32) -> Projection:
        """The ``dim`` leading components of (n, d) features; all d where there are fewer."""
        points = features.detach().to("cpu", torch.float64)
        mean = points.mean(0)
        _, vectors = torch.linalg.eigh((points - mean).T @ (points - mean))
        return cls(mean, vectors.flip(1)[:, :dim])

    def apply(self, features: Tensor) -> Tensor:
        """(n, d) to (n, dim), float64 on the CPU."""
        return (features.detach().to("cpu", torch.float64) - self.mean) @ self.basis

    @property
    def dim(self) -> int:
        return self.basis.shape[1]


@dataclass(frozen=True)
class Moments:
    """Means and covariances of a batch of samples: shapes (..., d) and (..., d, d)."""

    mean: Tensor
    covariance: Tensor


def frechet_between_gaussians(first: Moments, second: Moments) -> Tensor:
    """The distance in closed form, shape (...); batches broadcast.

    (S1 S2)^{1/2} has the trace of the symmetric (S1^{1/2} S2 S1^{1/2})^{1/2}, which needs no
    complex root.
    """
    scale, axes = torch.linalg.eigh(first.covariance)
    root = axes * scale.clamp_min(0.0).sqrt()[..., None, :] @ axes.mT
    overlap = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0.0).sqrt().sum(-1)
    spread = _trace(first.covariance) + _trace(second.covariance) - 2.0 * overlap
    return (first.mean - second.mean).square().sum(-1) + spread


def has_full_rank(prompt_index: Tensor, dim: int) -> bool:
    """Whether every prompt has rows enough for covariances in ``dim`` dimensions: twice as many.

    From ``dim`` rows on they have full rank, but up to about there the bias is not yet of order
    1/n and the jackknife takes off too much.
    """
    return bool((prompt_index.unique(return_counts=True)[1] >= 2 * dim).all())


def frechet_distance(
    features: Tensor,
    prompt_index: Tensor,
    reference: Tensor,
    reference_index: Tensor,
    *,
    weights: Tensor | None = None,
) -> Estimate:
    """Distance between two independent samples within each prompt, averaged over prompts.

    The jackknife leaves out each of up to 32 parts of the first sample, then of the second; bias
    and variance are the sums of the two.

    Args:
        features: (n, dim), projected.
        prompt_index: (n,) integers.
        reference: (m, dim), projected alike.
        reference_index: (m,) integers; may hold further prompts.
        weights: (n,) importance weights of the first sample; None weighs all the same.

    Raises:
        UserError: a prompt has a single row, or none in the reference.
    """
    weights = torch.ones(len(features)) if weights is None else weights
    known = by_prompt(reference_index, reference, torch.ones(len(reference)))
    sample = by_prompt(prompt_index, features, weights)
    check_prompts(sample, known)
    return average(_independent(_Parts.of(*sample[p]), _Parts.of(*known[p])) for p in sample)


def frechet_to_reweighted(features: Tensor, prompt_index: Tensor, weights: Tensor) -> Estimate:
    """Distance between a sample and its own reweighting within each prompt, averaged over prompts.

    The two share their rows and so their chance errors, which cancel in part: the jackknife leaves
    a part out of both at once.

    Args:
        features: (n, dim), projected.
        prompt_index: (n,) integers.
        weights: (n,) importance weights, any scale in each prompt.

    Raises:
        UserError: a prompt has a single row.
    """
    sample = by_prompt(prompt_index, features, weights)
    return average(_reweighted(points, w) for points, w in sample.values())


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


@dataclass(frozen=True)
class _Parts:
    """Weighted power sums of the parts of one sample: a part is left out by subtraction.

    Attributes, for each of g parts:
        weight: (g,) sum w.
        weight_square: (g,) sum w^2.
        first: (g, d) sum w x.
        second: (g, d, d) sum w x x^T.
    """

    weight: Tensor
    weight_square: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, points: Tensor, weights: Tensor) -> _Parts:
        """Deal (n, d) points with (n,) weights to parts in turn."""
        count = min(_PARTS, len(points))
        dealt = [(points[i::count], weights[i::count, None]) for i in range(count)]
        return cls(
            torch.stack([w.sum() for _, w in dealt]),
            torch.stack([w.square().sum() for _, w in dealt]),
            torch.stack([(w * x).sum(0) for x, w in dealt]),
            torch.stack([(w * x).T @ x for x, w in dealt]),
        )

    def whole(self) -> Moments:
        """Of all the parts together; mean (d,), covariance (d, d)."""
        sums = (self.weight, self.weight_square, self.first, self.second)
        return _moments(*(each.sum(0) for each in sums))

    def without_each(self) -> Moments:
        """With each part left out in turn; mean (g, d), covariance (g, d, d)."""
        sums = (self.weight, self.weight_square, self.first, self.second)
        return _moments(*(each.sum(0) - each for each in sums))


def _moments(weight: Tensor, weight_square: Tensor, first: Tensor, second: Tensor) -> Moments:
    """From power sums; the covariance is unbiased for equal weights."""
    mean = first / weight[..., None]
    spread = second / weight[..., None, None] - mean[..., :, None] * mean[..., None, :]
    freedom = 1.0 - weight_square / weight.square()
    return Moments(mean, spread / freedom[..., None, None])


def _independent(first: _Parts, second: _Parts) -> Estimate:
    whole = frechet_between_gaussians(first.whole(), second.whole())
    without_first = frechet_between_gaussians(first.without_each(), second.whole())
    without_second = frechet_between_gaussians(first.whole(), second.without_each())
    return _corrected(whole, without_first, without_second)


def _reweighted(points: Tensor, weights: Tensor) -> Estimate:
    plain, tilted = _Parts.of(points, torch.ones_like(weights)), _Parts.of(points, weights)
    whole = frechet_between_gaussians(tilted.whole(), plain.whole())
    without = frechet_between_gaussians(tilted.without_each(), plain.without_each())
    return _corrected(whole, without)


def _corrected(whole: Tensor, *leave_outs: Tensor) -> Estimate:
    """Take Quenouille's jackknife estimate of the bias off; one set of leave-outs per sample."""
    bias = sum(((len(each) - 1) * (each.mean() - whole)).item() for each in leave_outs)
    variance = sum(jackknife_variance(each) for each in leave_outs)
    return Estimate(whole.item() - bias, math.sqrt(variance))
