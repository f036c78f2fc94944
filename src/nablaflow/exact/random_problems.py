"""Problems that nobody chose: mixtures, rewards and tilts drawn at random, each by its number.

The named problems are few, and what is tuned is tuned on them. Of a random one only these are
settled, all in units of the problem itself:

- 2 to 32 dimensions, evenly on a log scale, and 3 to 12 modes,
- modes of any orientation, whose sizes differ by up to 2 and whose widths along their own axes by
  up to 3 besides; their centres are spread 1 to 4 times as far as they are wide,
- weights that differ by up to 5,
- a linear reward, or a quadratic one that curves up as well as down,
- a tilt under which the prior's effective share, (E exp(beta r))^2 / E exp(2 beta r), is between
  0.05 and 0.5: of 1,000 points of the prior 50 to 500 would count.
"""

from __future__ import annotations

import math
import random
import re
from statistics import NormalDist

import torch
from torch import Tensor

from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.problem import Problem
from nablaflow.exact.rewards import LinearReward, QuadraticReward

DIMENSIONS = (2, 32)
MODES = (3, 12)
SHARES = (0.05, 0.5)
_SEPARATIONS = (1.0, 4.0)
_SIZES, _WIDTHS, _WEIGHTS = (0.5, 1.0), (1.0 / 3.0, 1.0), (0.2, 1.0)
_BISECTIONS = 60
_NAME = re.compile(r"random-(0|[1-9]\d*)")


class Draws:
    """Random numbers that a seed names on any machine.

    Python promises the sequence of `random.Random.random` for every version; torch promises none
    between releases or processors. All else is arithmetic on it.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def uniform(self) -> float:
        """In [0, 1)."""
        return self._random.random()

    def between(self, ends: tuple[float, float]) -> float:
        """Even on a log scale."""
        low, high = ends
        return low * (high / low) ** self.uniform()

    def whole(self, ends: tuple[int, int]) -> int:
        """Even, both ends included."""
        low, high = ends
        return low + int(self.uniform() * (high - low + 1))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        inverse = NormalDist().inv_cdf
        # The middle of a cell of 2^-53: never 0, which has no quantile.
        values = [inverse(self.uniform() + 2.0**-54) for _ in range(math.prod(shape))]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)

    def rotation(self, dim: int) -> Tensor:
        """An orthogonal matrix, none likelier than another (Mezzadri, 2007)."""
        q, r = torch.linalg.qr(self.normal(dim, dim))
        return q * r.diagonal().sign()


def random_number(name: str) -> int | None:
    """7 of ``random-7``; None where the name is no random problem's."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def random_name(number: int) -> str:
    return f"random-{number}"


def random_problem(number: int) -> Problem:
    """The problem of a number, the same on any machine but for rounding."""
    draws = Draws(number)
    low, high = DIMENSIONS
    dim = min(high, int(draws.between((low, high + 1))))
    prior = random_mixture(draws, dim, draws.whole(MODES))
    reward = random_reward(draws, prior, quadratic=draws.uniform() < 0.5)
    beta = tilt_of_share(prior, reward, draws.between(SHARES))
    return Problem(prior, reward, beta, name=random_name(number))


def random_mixture(draws: Draws, dim: int, modes: int) -> GaussianMixture:
    """Of mean 0, and with modes whose mean variance of a coordinate is about 0.3."""
    covariances = torch.stack([_covariance(draws, dim) for _ in range(modes)])
    weights = torch.tensor([draws.between(_WEIGHTS) for _ in range(modes)], dtype=torch.float64)
    weights = weights / weights.sum()
    within = torch.einsum("c,cii->", weights, covariances) / dim
    means = draws.normal(modes, dim)
    means = means - weights @ means
    between = (weights @ means.square().sum(1)) / dim
    means = means * draws.between(_SEPARATIONS) * (within / between).sqrt()
    return GaussianMixture(means, covariances, weights)


def _covariance(draws: Draws, dim: int) -> Tensor:
    size, axes = draws.between(_SIZES), draws.rotation(dim)
    widths = torch.tensor([draws.between(_WIDTHS) for _ in range(dim)], dtype=torch.float64)
    covariance = axes * (size * widths).square() @ axes.T
    return (covariance + covariance.T) / 2


def random_reward(
    draws: Draws, prior: GaussianMixture, *, quadratic: bool
) -> LinearReward | QuadraticReward:
    """b.z, less z.A z / 2 where it is quadratic, for z = x / scale: each varies about as much."""
    slope = draws.normal(prior.dim)
    slope = slope / slope.norm() / prior.scale
    if not quadratic:
        return LinearReward(slope)
    axes, curvatures = draws.rotation(prior.dim), draws.normal(prior.dim)
    curvatures = 2.0**0.5 * curvatures / curvatures.norm() / prior.scale**2
    curvature = axes * curvatures @ axes.T
    return QuadraticReward((curvature + curvature.T) / 2, slope)


def effective_share(prior: GaussianMixture, reward: QuadraticReward, beta: float) -> float:
    """(E exp(beta r))^2 / E exp(2 beta r) under the prior, in closed form; it falls with beta.

    Raises:
        UserError: twice the tilt cannot be normalised: the share is 0.
    """
    once, twice = (reward.log_normaliser(prior, power * beta) for power in (1, 2))
    return math.exp(2.0 * once - twice)


def tilt_of_share(prior: GaussianMixture, reward: QuadraticReward, share: float) -> float:
    """The beta of an effective share in (0, 1), by bisection.

    Its double can be normalised, so a tilt leaves each mode at least half of its precision in
    every direction.
    """
    # Of all betas up to the limit, none has a share of 0 but the limit itself.
    limit = 0.5 * reward.largest_beta(prior)
    low, high = 0.0, min(1.0, 0.5 * limit)
    while effective_share(prior, reward, high) > share:
        low, high = high, min(2.0 * high, 0.5 * (high + limit))
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        enough = effective_share(prior, reward, middle) > share
        low, high = (middle, high) if enough else (low, middle)
    return low
