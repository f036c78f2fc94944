"""The named problems: each is hard for a different reason."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nablaflow.errors import UserError, nearest, show
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.problem import Problem
from nablaflow.exact.random_problems import random_number, random_problem
from nablaflow.exact.rewards import BumpReward, LinearReward, QuadraticReward


def _isotropic(components: int, dim: int, deviation: float) -> Tensor:
    return deviation**2 * torch.eye(dim, dtype=torch.float64).expand(components, dim, dim)


def ring() -> Problem:
    """Six modes on a circle, linear reward: the tilt's weights lie between 0.01 and 0.5."""
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    means = 4.0 * torch.stack([angles.cos(), angles.sin()], 1)
    prior = GaussianMixture(means, _isotropic(6, 2, 0.5))
    return Problem(prior, LinearReward([0.45, 0.1]), beta=1.0, name="ring")


def grid() -> Problem:
    """Twenty-five modes, five by five: many decisions, each of them small."""
    side = torch.arange(-2, 3, dtype=torch.float64)
    prior = GaussianMixture(torch.cartesian_prod(side, side), _isotropic(25, 2, 0.2))
    return Problem(prior, LinearReward([0.6, 0.3]), beta=1.0, name="grid")


def unequal() -> Problem:
    """Four modes of unequal shape, size and weight that overlap, linear reward."""
    means = [[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0], [3.0, 0.0]]
    covariances = [
        [[0.3, 0.2], [0.2, 1.0]],
        [[1.0, -0.6], [-0.6, 0.6]],
        [[0.15, 0.0], [0.0, 0.15]],
        [[0.4, 0.3], [0.3, 1.5]],
    ]
    prior = GaussianMixture(means, covariances, [0.4, 0.3, 0.2, 0.1])
    return Problem(prior, LinearReward([0.3, 0.6]), beta=1.0, name="unequal")


def quadratic() -> Problem:
    """Six modes on a circle whose tilt is drawn to a line: every covariance changes."""
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3 + 0.3
    means = 3.0 * torch.stack([angles.cos(), angles.sin()], 1)
    prior = GaussianMixture(means, _isotropic(6, 2, 0.7))
    reward = QuadraticReward([[0.5, 0.2], [0.2, 0.1]], [0.3, 0.2])
    return Problem(prior, reward, beta=1.0, name="quadratic")


def bumps() -> Problem:
    """Four modes and three bumps of reward beside them: no closed form, exact by rejection."""
    means = [[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]]
    prior = GaussianMixture(means, _isotropic(4, 2, 0.8))
    reward = BumpReward([[2.5, 2.0], [-2.0, 1.0], [1.0, -2.5]], [2.0, 1.5, -1.5], width=1.0)
    return Problem(prior, reward, beta=1.0, name="bumps")


def high_dimensional() -> Problem:
    """Four modes in 32 dimensions, linear reward."""
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.randn(4, 32, dtype=torch.float64, generator=generator)
    direction = torch.randn(32, dtype=torch.float64, generator=generator)
    prior = GaussianMixture(means, _isotropic(4, 32, 0.5))
    reward = LinearReward(direction / direction.norm())
    return Problem(prior, reward, beta=1.0, name="32-dimensional")


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ring": ring,
    "grid": grid,
    "unequal": unequal,
    "quadratic": quadratic,
    "bumps": bumps,
    "32-dimensional": high_dimensional,
}
"""Adding a problem is one function and one line here."""


def named_problem(name: str, field: str = "name") -> Problem:
    """A problem of the list, or ``random-<number>``.

    Args:
        field: what the name is called where it comes from.

    Raises:
        UserError: there is none of the name.
    """
    if not isinstance(name, str):
        raise UserError(f"{field}: must be a problem's name, not {show(name)}")
    number = random_number(name)
    if number is not None:
        return random_problem(number)
    if name.startswith("random"):
        raise UserError(f"{field}: no problem {name!r}; random ones are random-0, random-1, ...")
    if name not in PROBLEMS:
        raise UserError(f"{field}: no problem {name!r}; {nearest(name, PROBLEMS)}")
    return PROBLEMS[name]()
