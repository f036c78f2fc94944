"""Rewards whose tilt is known: linear and quadratic in closed form, bumps by rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.errors import UserError, show
from nablaflow.exact.mixture import GaussianMixture, Points, as_float64, check_points
from nablaflow.exact.rejection import RejectionTilt, Target

_SINGULAR = 1e-12  # the least precision over the largest: with less a covariance is rounding


@runtime_checkable
class ExactReward(Protocol):
    """A reward of points, and the distribution that it tilts a mixture to.

    Attributes:
        dim: dimension of the points.
    """

    @property
    def dim(self) -> int: ...

    def __call__(self, x: Points) -> Float[Tensor, "batch"]:
        """Reward of each point, differentiable, in the dtype of ``x``."""
        ...

    def tilt(self, prior: GaussianMixture, beta: float) -> Target:
        """p*(x) proportional to prior(x) exp(beta r(x)).

        Raises:
            UserError: it cannot be normalised, or the dimensions disagree.
        """
        ...


class QuadraticReward:
    """r(x) = b.x - x.A x / 2, with A symmetric: a mixture's tilt is again a mixture.

    Raises:
        UserError: A or b is not of such a form.
    """

    def __init__(self, A: Tensor | Sequence[Any], b: Tensor | Sequence[float]) -> None:
        self.b = as_float64("b", b)
        if self.b.ndim != 1 or len(self.b) == 0:
            raise UserError(f"b: shape {tuple(self.b.shape)}; give (dim,)")
        self.A = as_float64("A", A)
        if self.A.shape != (self.dim, self.dim):
            raise UserError(
                f"A: shape {tuple(self.A.shape)} with b of dimension {self.dim}; "
                f"give {(self.dim, self.dim)}"
            )
        if not torch.allclose(self.A, self.A.T):
            raise UserError("A: not symmetric; use (A + A.T) / 2, the reward is the same")
        self.A = (self.A + self.A.T) / 2

    @property
    def dim(self) -> int:
        return len(self.b)

    def __call__(self, x: Points) -> Float[Tensor, "batch"]:
        check_points(x, self.dim, "reward")
        A, b = self.A.to(x), self.b.to(x)
        return x @ b - 0.5 * ((x @ A) * x).sum(1)

    def tilt(self, prior: GaussianMixture, beta: float) -> GaussianMixture:
        """Complete the square in each component.

        The precision becomes P = S^-1 + beta A, the mean P^-1 (S^-1 m + beta b), and the weight is
        multiplied by |S P|^-1/2 exp of half the difference of the squared norms.
        """
        means, covariances, log_weights = self._components(prior, beta)
        weights = log_weights.softmax(0)
        if not (means.isfinite().all() and weights.isfinite().all()):
            raise UserError(
                f"beta: {beta:g} is too much, the tilt's means or weights are no finite numbers; "
                "use a smaller one"
            )
        return GaussianMixture(means, covariances, weights)

    def log_normaliser(self, prior: GaussianMixture, beta: float) -> float:
        """Log of E exp(beta r) under the prior.

        Raises:
            UserError: it is infinite, or the dimensions disagree.
        """
        return self._components(prior, beta)[2].logsumexp(0).item()

    def largest_beta(self, prior: GaussianMixture) -> float:
        """Every tilt from 0 to below it can be normalised; infinite where all of them can."""
        check_dimension(self, prior)
        return self._limit(torch.linalg.inv(prior.covariances), 1.0)

    def _components(self, prior: GaussianMixture, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Means and covariances of the tilted components, and logs of their unnormalised weights.

        Raises:
            UserError: one of them has no density, or the dimensions disagree.
        """
        check_dimension(self, prior)
        precision = torch.linalg.inv(prior.covariances)
        tilted = precision + beta * self.A
        ends = torch.linalg.eigvalsh(tilted)[:, [0, -1]]
        for index, (least, largest) in enumerate(ends.tolist()):
            if least <= _SINGULAR * abs(largest):
                raise UserError(
                    f"beta: {beta:g} is too much, the tilt of component {index} has no density "
                    f"(smallest precision {least:.3g}); use one {self._allowed(precision, beta)}"
                )
        covariances = torch.linalg.inv(tilted)
        pull = torch.einsum("cij,cj->ci", precision, prior.means)
        means = torch.einsum("cij,cj->ci", covariances, pull + beta * self.b)
        log_weights = (
            prior.weights.log()
            + 0.5 * (torch.linalg.slogdet(precision)[1] - torch.linalg.slogdet(tilted)[1])
            + 0.5 * ((pull + beta * self.b) * means).sum(1)
            - 0.5 * (pull * prior.means).sum(1)
        )
        return means, (covariances + covariances.mT) / 2, log_weights

    def _limit(self, precision: Tensor, sign: float) -> float:
        """Up to which size, on one side of 0, every S^-1 + beta A is positive definite."""
        half = torch.linalg.inv(torch.linalg.cholesky(precision))
        least = torch.linalg.eigvalsh(half @ (sign * self.A) @ half.mT).min().item()
        return -1.0 / least if least < 0 else math.inf

    def _allowed(self, precision: Tensor, beta: float) -> str:
        limit = self._limit(precision, math.copysign(1.0, beta))
        unit = 10.0 ** (math.floor(math.log10(limit)) - 2)
        limit = math.floor(limit / unit) * unit  # to nearest could name one that is refused
        return f"below {limit:.3g}" if beta > 0 else f"above {-limit:.3g}"


class LinearReward(QuadraticReward):
    """r(x) = a.x: the tilt moves each mean by beta S a, and weighs it by exp(beta r) of its own."""

    def __init__(self, a: Tensor | Sequence[float]) -> None:
        a = as_float64("a", a)
        if a.ndim != 1 or len(a) == 0:
            raise UserError(f"a: shape {tuple(a.shape)}; give (dim,)")
        super().__init__(torch.zeros(len(a), len(a), dtype=torch.float64), a)


class BumpReward:
    """r(x) = sum_j h_j exp(-|x - c_j|^2 / 2 w^2): bounded, so that its tilt can be sampled.

    Args:
        centers: (bump, dim).
        heights: (bump,).
        width: w, a number, in the units of x.

    Raises:
        UserError: they do not fit together.
    """

    def __init__(
        self, centers: Tensor | Sequence[Any], heights: Tensor | Sequence[float], width: float
    ) -> None:
        self.centers, self.heights = as_float64("centers", centers), as_float64("heights", heights)
        shape = self.centers.shape
        if len(shape) != 2 or 0 in shape or self.heights.shape != shape[:1]:
            raise UserError(
                f"heights: shape {tuple(self.heights.shape)} for centers of shape "
                f"{tuple(shape)}; give (bump,) and (bump, dim)"
            )
        if not (isinstance(width, Real) and 0 < width < math.inf):
            said = f"{width:g}" if isinstance(width, Real) else show(width)
            raise UserError(f"width: {said}; give a length above 0")
        self.width = width

    @property
    def dim(self) -> int:
        return self.centers.shape[1]

    def __call__(self, x: Points) -> Float[Tensor, "batch"]:
        check_points(x, self.dim, "reward")
        squares = (x[:, None] - self.centers.to(x)).square().sum(2)
        return (-0.5 * squares / self.width**2).exp() @ self.heights.to(x)

    def tilt(self, prior: GaussianMixture, beta: float) -> RejectionTilt:
        """By rejection: accept a point of the prior with probability exp(beta (r - bound))."""
        check_dimension(self, prior)
        return RejectionTilt(prior, lambda x: beta * self(x), self._bound(beta))

    def _bound(self, beta: float) -> float:
        """Nowhere is beta r above it.

        A point whose nearest centre is c_i is at least |c_i - c_j| / 2 from any other c_j. Bumps
        far apart do not add up, and a sum of their heights would have next to nothing accepted.
        """
        squares = (self.centers[:, None] - self.centers).square().sum(2)
        overlaps = (-0.125 * squares / self.width**2).exp()
        return (overlaps @ (beta * self.heights).clamp_min(0.0)).max().item()


def check_dimension(reward: ExactReward, prior: GaussianMixture) -> None:
    if reward.dim != prior.dim:
        raise UserError(
            f"reward: of dimension {reward.dim}, the prior is of dimension {prior.dim}; "
            "give both the same"
        )
