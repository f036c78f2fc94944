"""What each image does to the Fréchet distance to first order, and so the distance's error.

The distance D(m1, S1; m2, S2) of `frechet.py` changes with the first sample's moments by

    dD = 2 (m1 - m2)^T dm1 + tr(A dS1),    A = I - S1^{-1/2} (S1^{1/2} S2 S1^{1/2})^{1/2} S1^{-1/2}

(Takatsu, Osaka J. Math. 48, 2011: I - A is the optimal map from the first Gaussian to the second).
An image x among n that weighs a little more moves the mean by x - m1 and the unbiased covariance by
n / (n - 1) (x - m1)(x - m1)^T - S1, so its influence (Hampel, JASA 69, 1974) is

    2 (m1 - m2)^T (x - m1) + n / (n - 1) (x - m1)^T A (x - m1) - tr(A S1)

whose mean over the images is zero. D is, to first order, a mean of such contributions over the
images of either sample, and has the standard error of that mean. A bootstrap of D would give each
drawn sample the upward bias of a finite sample once more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.metrics.frechet import Moments


def frechet_influence(
    points: Float[Tensor, "sample feature"], own: Moments, other: Moments
) -> Float[Tensor, "sample"]:
    """The influence of each image of a sample on its distance from another, as above.

    With S1 = U diag(s) U^T, z = diag(s)^{-1/2} U^T (x - m1) and V diag(l) V^T the matrix
    diag(s)^{1/2} U^T S2 U diag(s)^{1/2}, (x - m1)^T A (x - m1) is |x - m1|^2 less
    sum_k l_k^{1/2} (V^T z)_k^2, and tr(A S1) is tr(S1) - sum_k l_k^{1/2}. Directions in which the
    sample does not vary have no part in either: x - m1 is zero there.

    Args:
        points: (n, d) float64, the sample whose moments ``own`` are, each row counting once.
        own: mean (d,) and unbiased covariance (d, d) of ``points``, float64.
        other: the same of the sample that it is compared with.

    Returns:
        (n,) float64, in the distance's units: squared units of the feature.
    """
    n, d = points.shape
    centred = points - own.mean
    scale, axes = torch.linalg.eigh(own.covariance)
    varies = scale > d * torch.finfo(scale.dtype).eps * scale[-1]
    root, axes = scale[varies].sqrt(), axes[:, varies]
    overlap, turn = torch.linalg.eigh(root[:, None] * (axes.T @ other.covariance @ axes) * root)
    overlap = overlap.clamp_min(0.0).sqrt()
    whitened = centred @ axes / root @ turn
    spread = centred.square().sum(1) - whitened.square() @ overlap
    whole = own.covariance.diagonal().sum() - overlap.sum()
    return 2.0 * centred @ (own.mean - other.mean) + n / (n - 1) * spread - whole
