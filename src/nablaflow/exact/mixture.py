"""Gaussian mixtures: samples, log density and score, exact at every noise level."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.errors import UserError, show

Points = Float[Tensor, "batch dim"]
AlphaBar = float | Float[Tensor, "batch"]
"""alpha_bar: one for all points, or one for each of them."""

_SYMMETRIC = 1e-6  # of a covariance, relative to its largest entry: products in float32 pass
_SUM = 1e-6  # of the weights, from one
_SINGULAR = 1e-13  # the least eigenvalue over the largest: below it there is only rounding


def as_float64(name: str, value: Any) -> Tensor:
    """A float64 copy of lists, arrays or tensors, or of a list of those, all finite.

    Raises:
        UserError: it is not numbers, or one of them is not finite.
    """
    if isinstance(value, (list, tuple)):
        value = [part.tolist() if hasattr(part, "tolist") else part for part in value]
    if "complex" in str(getattr(value, "dtype", "")):  # torch would drop the imaginary part
        raise UserError(f"{name}: holds complex numbers; give real ones")
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name}: not an array of numbers ({error})") from None
    if not tensor.isfinite().all():
        raise UserError(f"{name}: holds a value that is not finite")
    return tensor


class GaussianMixture:
    """sum_j w_j N(m_j, S_j), in any dimension.

    Noise of the level ``alpha_bar`` makes x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) epsilon,
    whose density is again a mixture, with the same eigenvectors of each covariance: everything
    here takes the level as an argument, and the default of 1 is the mixture itself.

    Args:
        means: (component, dim).
        covariances: (component, dim, dim), symmetric and positive definite.
        weights: (component,), not negative, of sum 1; None weighs all the same.

    Raises:
        UserError: they do not fit together, or are no means, covariances or weights.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Any],
        covariances: Tensor | Sequence[Any],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        self.means = as_float64("means", means)
        if self.means.ndim != 2 or 0 in self.means.shape:
            raise UserError(f"means: shape {tuple(self.means.shape)}; give (component, dim)")
        components, dim = self.means.shape
        self.covariances = as_float64("covariances", covariances)
        if self.covariances.shape != (components, dim, dim):
            raise UserError(
                f"covariances: shape {tuple(self.covariances.shape)} for {components} means of "
                f"dimension {dim}; give {(components, dim, dim)}"
            )
        if weights is None:
            weights = torch.full((components,), 1.0 / components, dtype=torch.float64)
        self.weights = _checked_weights(as_float64("weights", weights), components)
        self.variances, self.axes = _eigen(self.covariances)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def mean(self) -> Float[Tensor, "dim"]:
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Of the whole mixture: within the components, and between their means."""
        centred = self.means - self.mean
        between = torch.einsum("c,ci,cj->ij", self.weights, centred, centred)
        return torch.einsum("c,cij->ij", self.weights, self.covariances) + between

    @property
    def scale(self) -> float:
        """Root of the mean variance of a coordinate."""
        return (self.covariance.trace() / self.dim).sqrt().item()

    def standardized(self) -> GaussianMixture:
        """The mixture of (x - mean) / scale."""
        return GaussianMixture(
            (self.means - self.mean) / self.scale, self.covariances / self.scale**2, self.weights
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> Points:
        """``n`` independent points, float64; without a generator torch's global one is used.

        Raises:
            UserError: ``n`` is no whole number of at least 1.
        """
        check_count(n)
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        x = torch.empty_like(noise)
        # One component at a time: axes for each point would be dim times the size of the points.
        for index, root in enumerate(self.axes * self.variances.sqrt()[:, None]):
            rows = which == index
            x[rows] = self.means[index] + noise[rows] @ root.T
        return x

    def log_prob(self, x: Points, alpha_bar: AlphaBar = 1.0) -> Float[Tensor, "batch"]:
        """Log density of the noised mixture at ``x``, in the dtype of ``x``.

        Raises:
            UserError: they are no points of this dimension.
        """
        joint, _, _ = self._joint(x, alpha_bar)
        return joint.logsumexp(1)

    def responsibilities(self, x: Points, alpha_bar: AlphaBar = 1.0) -> Float[Tensor, "batch c"]:
        """Probability of each component, given the noised point."""
        joint, _, _ = self._joint(x, alpha_bar)
        return joint.softmax(1)

    def score(self, x: Points, alpha_bar: AlphaBar = 1.0) -> Points:
        """Gradient of `log_prob`, in closed form; it can be differentiated again."""
        joint, coordinates, precisions = self._joint(x, alpha_bar)
        pulls = torch.einsum("cij,ncj->nci", self.axes.to(x), coordinates * precisions)
        return -torch.einsum("nc,nci->ni", joint.softmax(1), pulls)

    def posterior_mean(self, x: Points, alpha_bar: AlphaBar) -> Points:
        """E[x_0 | x] of the noised point, in closed form; at pure noise the mixture's mean."""
        joint, coordinates, precisions = self._joint(x, alpha_bar)
        levels = torch.as_tensor(alpha_bar, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
        pulls = levels.sqrt() * self.variances.to(x) * precisions * coordinates
        means = self.means.to(x) + torch.einsum("cij,ncj->nci", self.axes.to(x), pulls)
        return torch.einsum("nc,nci->ni", joint.softmax(1), means)

    def _joint(self, x: Points, alpha_bar: AlphaBar) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weight times density, coordinates along the axes, and precisions along them."""
        check_points(x, self.dim, "mixture")  # one column would be broadcast
        levels = torch.as_tensor(alpha_bar, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
        means, axes = self.means.to(x), self.axes.to(x)
        centred = x[:, None] - levels.sqrt() * means
        coordinates = torch.einsum("cij,nci->ncj", axes, centred)
        precisions = 1.0 / (levels * self.variances.to(x) + 1.0 - levels)
        exponent = -0.5 * (coordinates.square() * precisions - precisions.log()).sum(2)
        constant = self.weights.to(x).log() - 0.5 * self.dim * torch.log(x.new_tensor(2 * torch.pi))
        return exponent + constant, coordinates, precisions


def check_count(n: Any) -> None:
    """Raise `UserError` unless so many points can be drawn."""
    if not isinstance(n, Integral) or n < 1:
        raise UserError(f"n: {show(n)}; give a whole number of at least 1")


def check_points(x: Any, dim: int, what: str) -> None:
    """Raise `UserError` unless these are points of the dimension of a mixture or a reward."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else show(x)
        raise UserError(f"x: {found}; give a tensor of real numbers, (batch, dim)")
    if x.shape[1] != dim:
        raise UserError(f"x: of dimension {x.shape[1]}; the {what} is of dimension {dim}")


def _checked_weights(weights: Tensor, components: int) -> Tensor:
    if weights.shape != (components,):
        raise UserError(f"weights: shape {tuple(weights.shape)}; give one for each of {components}")
    if (weights < 0).any():
        raise UserError(f"weights: one is {weights.min().item():.6g}; give none below 0")
    total = weights.sum().item()
    if abs(total - 1.0) > _SUM:
        raise UserError(f"weights: their sum is {total:.6g}, not 1; divide them by it")
    return weights / total


def _eigen(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Variances and axes of each covariance."""
    skew = (covariances - covariances.mT).abs().amax((1, 2))
    bad = (skew > _SYMMETRIC * covariances.abs().amax((1, 2))).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(f"covariances[{bad[0]}]: not symmetric; use (S + S.T) / 2")
    variances, axes = torch.linalg.eigh((covariances + covariances.mT) / 2)
    for index, (least, largest) in enumerate(variances[:, [0, -1]].tolist()):
        if least <= _SINGULAR * largest:
            raise UserError(
                f"covariances[{index}]: not positive definite, its eigenvalues are from "
                f"{least:.3g} to {largest:.3g}; all must be above 0"
            )
    return variances, axes
