"""The Fréchet distance of two whole samples, and what each image does to it to first order.

The distance D(m1, S1; m2, S2) of `frechet.py` changes with the first sample's moments by

    dD = 2 (m1 - m2)^T dm1 + tr(A dS1),    A = I - T

with T the optimal map from the first Gaussian to the second (Takatsu, Osaka J. Math. 48, 2011). An
image x among n that weighs a little more moves the mean by x - m1 and the unbiased covariance by
n / (n - 1) (x - m1)(x - m1)^T - S1, so its influence (Hampel, JASA 69, 1974) is

    2 (m1 - m2)^T (x - m1) + n / (n - 1) (x - m1)^T A (x - m1) - tr(A S1)

whose mean over the images is zero. D is, to first order, a mean of such contributions over the
images of either sample, and has the standard error of that mean. A bootstrap of D would give each
drawn sample the upward bias of a finite sample once more.

One factor of one covariance is enough for all of it. With S1 = R R^T and R^T S2 R = V diag(l) V^T,

    tr (S1 S2)^{1/2} = sum_k l_k^{1/2}
    x^T T x      = sum_k l_k^{1/2} (V^T z)_k^2,  R z = x,    of the first sample's images
    y^T T^{-1} y = sum_k l_k^{-1/2} (V^T R^T y)_k^2,         of the second's

as the singular values of R^T S2^{1/2} show, where either covariance has directions of no variance
too: there x and y have no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.metrics.frechet import Moments

LEAST_PIVOT = 1e-10
"""Of a Cholesky factor's squared pivots over their greatest: with less it is no factor to solve by.

Then the covariance's own axes are, which takes as long as all else together.
"""


@dataclass(frozen=True)
class Influences:
    """Float64, in the distance's units: squared units of the feature.

    Attributes:
        distance: the plug-in value.
        first: (n,), of each image of the first sample.
        second: (m,).
    """

    distance: float
    first: Float[Tensor, "sample"]
    second: Float[Tensor, "reference"]


def frechet_influences(
    x: Float[Tensor, "sample feature"], y: Float[Tensor, "reference feature"]
) -> Influences:
    """The distance of two samples of float64 rows, and the influence of each row on it."""
    first, second = sample_moments(x), sample_moments(y)
    x, y, shift = x - first.mean, y - second.mean, first.mean - second.mean
    root, solved = _factor(first.covariance, x)
    overlap, turn = torch.linalg.eigh(root.T @ second.covariance @ root)
    root_overlap = overlap.clamp_min(0.0).sqrt()
    varies = overlap > len(overlap) * torch.finfo(overlap.dtype).eps * overlap[-1:]
    inverse = torch.where(varies, 1.0 / root_overlap, 0.0)
    common = root_overlap.sum()
    return Influences(
        (shift.square().sum() + _trace(first) + _trace(second) - 2.0 * common).item(),
        2.0 * x @ shift + _spread(x, solved @ turn, root_overlap) - (_trace(first) - common),
        -2.0 * y @ shift + _spread(y, y @ (root @ turn), inverse) - (_trace(second) - common),
    )


def sample_moments(points: Float[Tensor, "sample feature"]) -> Moments:
    """The mean (d,) and the unbiased covariance (d, d) of (n, d) float64 rows."""
    return Moments(points.mean(0), points.T.cov())


def _factor(
    covariance: Float[Tensor, "feature feature"], points: Float[Tensor, "sample feature"]
) -> tuple[Tensor, Tensor]:
    """R (d, r) with R R^T the covariance, and z (n, r) with R z = x for each of the points."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    pivots = lower.diagonal().square()
    if not failed and pivots.min() > LEAST_PIVOT * pivots.max():
        return lower, torch.linalg.solve_triangular(lower, points.T, upper=False).T
    scale, axes = torch.linalg.eigh(covariance)
    varies = scale > len(scale) * torch.finfo(scale.dtype).eps * scale[-1]
    root, axes = scale[varies].sqrt(), axes[:, varies]
    return axes * root, points @ axes / root


def _spread(centred: Tensor, turned: Tensor, weights: Tensor) -> Float[Tensor, "sample"]:
    """The part x^T A x of each row's influence, times n / (n - 1)."""
    n = len(centred)
    return n / (n - 1) * (centred.square().sum(1) - turned.square() @ weights)


def _trace(moments: Moments) -> Tensor:
    return moments.covariance.diagonal().sum()
