"""Random problems against quadrature and importance sampling, and within the ranges they state."""

from __future__ import annotations

import math

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.exact import GaussianMixture, LinearReward, Problem, QuadraticReward, named_problem
from nablaflow.exact.random_problems import (
    DIMENSIONS,
    MODES,
    SHARES,
    Draws,
    effective_share,
    random_mixture,
    random_problem,
    random_reward,
    tilt_of_share,
)

NUMBERS = range(16)
AXIS = torch.linspace(-9, 9, 721, dtype=torch.float64)
PLANE = torch.cartesian_prod(AXIS, AXIS)
CELL = float(AXIS[1] - AXIS[0]) ** 2
FIRST_MEAN = (0.179016294634, 0.682754165411, 0.550550146396, 0.332947702205)
SLOPE = (-0.310523233159, 0.155402312073, 1.55867047441, 0.462532681679)
BETA = 0.311093487


@pytest.fixture(scope="module")
def family() -> list[Problem]:
    return [random_problem(number) for number in NUMBERS]


def drawn(seed: int, dim: int, modes: int, share: float, *, quadratic: bool) -> Problem:
    draws = Draws(seed)
    prior = random_mixture(draws, dim, modes)
    reward = random_reward(draws, prior, quadratic=quadratic)
    return Problem(prior, reward, tilt_of_share(prior, reward, share))


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_plane_target_and_share_are_those_of_quadrature(seed: int, quadratic: bool) -> None:
    problem = drawn(seed, 2, 5, 0.2, quadratic=quadratic)
    prior = problem.prior.log_prob(PLANE).exp() * CELL
    assert float(prior.sum()) == pytest.approx(1.0, abs=1e-6)
    weight = (problem.beta * problem.reward(PLANE)).exp()
    once, twice = float(prior @ weight), float(prior @ weight.square())
    assert once**2 / twice == pytest.approx(0.2, rel=1e-3)
    assert effective_share(problem.prior, problem.reward, problem.beta) == pytest.approx(0.2)
    target = problem.target.log_prob(PLANE).exp() * CELL
    assert float(target.sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(target, prior * weight / once, rtol=1e-5, atol=1e-12)


def test_sixteen_dimensions_five_modes_and_a_quadratic_reward() -> None:
    """Importance sampling from the prior: the normaliser, the share and the tilt's mean."""
    n = 200_000
    problem = drawn(5, 16, 5, 0.7, quadratic=True)
    x = problem.prior.sample(n, torch.Generator().manual_seed(0))
    weight = (problem.beta * problem.reward(x)).exp()
    ratio = (problem.target.log_prob(x) - problem.prior.log_prob(x)).exp()
    torch.testing.assert_close(ratio / ratio[0], weight / weight[0])
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / n**0.5)
    share = float(weight.mean().square() / weight.square().mean())
    assert share == pytest.approx(0.7, rel=0.02)
    expected, found = weight @ x / weight.sum(), problem.target
    assert isinstance(found, GaussianMixture)
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=0.03 * problem.prior.scale)


def test_all_are_within_the_ranges_that_are_stated(family: list[Problem]) -> None:
    for problem in family:
        prior, reward = problem.prior, problem.reward
        assert isinstance(reward, QuadraticReward)
        assert DIMENSIONS[0] <= prior.dim <= DIMENSIONS[1]
        assert MODES[0] <= len(prior.weights) <= MODES[1]
        share = effective_share(prior, reward, problem.beta)
        assert 0.999 * SHARES[0] <= share <= 1.001 * SHARES[1]
        assert float(prior.weights.max() / prior.weights.min()) <= 5.0
        widths = prior.variances.sqrt()
        assert float((widths[:, -1] / widths[:, 0]).max()) <= 3.0 + 1e-9
        assert float(widths.max() / widths.min()) <= 6.0 + 1e-9
        within = float(prior.weights @ prior.variances.sum(1))
        between = float(prior.covariance.trace()) - within
        assert 1.0 <= (between / within) ** 0.5 <= 4.0


def test_the_family_is_no_single_kind(family: list[Problem]) -> None:
    linear = [isinstance(problem.reward, LinearReward) for problem in family]
    assert 4 <= sum(linear) <= 12
    dims = [problem.prior.dim for problem in family]
    assert min(dims) <= 4
    assert max(dims) >= 16
    assert len({len(problem.prior.weights) for problem in family}) >= 6
    for problem in family:
        distances = torch.pdist(problem.prior.covariances.flatten(1))
        assert float(distances.min()) > 0.01  # every mode has a shape of its own


def test_no_direction_of_a_mode_loses_more_than_half_of_its_precision(
    family: list[Problem],
) -> None:
    """So that every tilt can be normalised, and not merely just."""
    for problem in family:
        assert isinstance(problem.reward, QuadraticReward)
        root = torch.linalg.cholesky(problem.prior.covariances)
        relative = root.mT @ (problem.beta * problem.reward.A) @ root
        assert float(torch.linalg.eigvalsh(relative).min()) > -0.5


def test_a_number_names_one_problem_whatever_was_drawn_before() -> None:
    """By figures that were written down: any machine, and any later version, has to agree."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    problem = named_problem("random-7")
    assert torch.equal(torch.get_rng_state(), state)
    assert (problem.name, problem.prior.dim, len(problem.prior.weights)) == ("random-7", 4, 4)
    assert isinstance(problem.reward, QuadraticReward)
    found = [*problem.prior.means[0].tolist(), *problem.reward.b.tolist(), problem.beta]
    assert found == pytest.approx([*FIRST_MEAN, *SLOPE, BETA], rel=1e-8)


def test_different_numbers_are_different_problems(family: list[Problem]) -> None:
    assert len({round(problem.beta, 9) for problem in family}) == len(family)


@pytest.mark.parametrize("name", ["random", "random-", "random--1", "random-07", "random-x"])
def test_a_random_problem_without_a_number_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^name: no problem '{name}'; random ones are random-"):
        named_problem(name)


def test_normal_draws_are_normal_and_rotations_orthogonal() -> None:
    draws = Draws(0)
    z = draws.normal(20_000)
    assert float(z.mean()) == pytest.approx(0.0, abs=4 / 20_000**0.5)
    assert float(z.square().mean()) == pytest.approx(1.0, abs=4 * (2 / 20_000) ** 0.5)
    assert float((z.abs() < 1.0).double().mean()) == pytest.approx(0.6827, abs=0.013)
    q = draws.rotation(7)
    torch.testing.assert_close(q @ q.T, torch.eye(7, dtype=torch.float64))
    whole = [draws.whole((3, 5)) for _ in range(300)]
    assert set(whole) == {3, 4, 5}
    even = [math.log(draws.between((0.1, 10.0)), 10.0) for _ in range(4000)]
    assert sum(even) / 4000 == pytest.approx(0.0, abs=4 * 3**-0.5 / 4000**0.5)
    assert -1.0 <= min(even) < -0.95 < 0.95 < max(even) <= 1.0
