"""Problems: what they say of their own answer against quadrature, and what is no problem."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.exact import (
    PROBLEMS,
    BumpReward,
    GaussianMixture,
    LinearReward,
    Problem,
    QuadraticReward,
    named_problem,
)
from nablaflow.exact.rejection import Target

AXIS = torch.linspace(-12, 12, 601, dtype=torch.float64)
CELL = float(AXIS[1] - AXIS[0]) ** 2
PLANE = torch.cartesian_prod(AXIS, AXIS)
FLAT = ["ring", "grid", "unequal", "quadratic", "bumps"]
NORMAL = GaussianMixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 2.0]]])
LINEAR = LinearReward([1.0, 0.5])


@pytest.fixture(scope="module", params=FLAT)
def flat(request: pytest.FixtureRequest) -> tuple[Problem, Tensor]:
    """A problem in the plane, and its tilt on the grid: prior times exp(beta r), normalised."""
    problem = named_problem(request.param)
    density = (problem.prior.log_prob(PLANE) + problem.beta * problem.reward(PLANE)).exp()
    return problem, density / (density.sum() * CELL)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_every_named_problem_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nablaflow.exact.process.MOMENT_SAMPLES", 500)
    problem = named_problem(name)
    assert problem.name == name
    assert isinstance(problem.target, Target)
    assert problem.process.steps == problem.steps
    assert problem.reward.dim == problem.prior.dim == problem.target.dim
    weights = problem.mode_weights
    assert len(weights) == len(problem.modes.weights)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_an_unknown_name_is_answered_with_one_that_is_near() -> None:
    with pytest.raises(UserError, match=r"^name: no problem 'rings'.*did you mean ring\?$"):
        named_problem("rings")
    with pytest.raises(UserError, match="choose one of 32-dimensional, bumps, grid"):
        named_problem("xyzzy")


def test_the_target_is_a_normalised_density(flat: tuple[Problem, Tensor]) -> None:
    problem, density = flat
    found = problem.target.log_prob(PLANE).exp()
    tolerance = 0.01 if problem.name == "bumps" else 1e-6  # whose normaliser is by Monte Carlo
    assert float(found.sum() * CELL) == pytest.approx(1.0, rel=tolerance)
    torch.testing.assert_close(found, density, rtol=2 * tolerance, atol=1e-9)


def test_what_a_problem_says_of_its_target(flat: tuple[Problem, Tensor]) -> None:
    problem, density = flat
    chances = density * CELL
    reward = problem.reward(PLANE)
    mean = float(chances @ reward)
    spread = float(chances @ (reward - mean).square()) ** 0.5
    assert problem.mean_reward == pytest.approx(mean, abs=4 * spread / 200_000**0.5)
    centred = PLANE - chances @ PLANE
    covariance = (chances[:, None] * centred).T @ centred
    assert problem.log_det == pytest.approx(float(torch.logdet(covariance)), abs=0.02)
    shares = chances @ problem.modes.responsibilities(PLANE)
    torch.testing.assert_close(problem.mode_weights, shares, rtol=0, atol=5e-3)


def test_the_rings_weights_lie_where_its_description_says() -> None:
    """The modes are of one shape, so that exp(beta r) of their centres weighs them."""
    problem = named_problem("ring")
    angles = [index * math.pi / 3 for index in range(6)]
    tilts = [math.exp(0.45 * 4 * math.cos(a) + 0.1 * 4 * math.sin(a)) for a in angles]
    expected = torch.tensor([tilt / sum(tilts) for tilt in tilts], dtype=torch.float64)
    torch.testing.assert_close(problem.mode_weights, expected)
    assert float(expected.min()) > 0.01
    assert float(expected.max()) < 0.5


def test_the_tilt_in_many_dimensions_is_normalised() -> None:
    """The mean of target over prior under the prior, with four standard errors."""
    problem = named_problem("32-dimensional")
    x = problem.prior.sample(50_000, torch.Generator().manual_seed(0))
    ratio = (problem.target.log_prob(x) - problem.prior.log_prob(x)).exp()
    error = float(ratio.std()) / 50_000**0.5
    assert abs(float(ratio.mean()) - 1) < 4 * error < 0.05
    assert len(problem.prior.weights) == 4
    assert problem.prior.dim == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, r"steps: 1; a sampler has at least 2"),
        ({"steps": -3}, r"steps: -3; a sampler has at least 2"),
        ({"beta": -0.5}, r"beta: -0\.5; give a finite tilt of at least 0"),
        ({"beta": math.inf}, r"beta: inf; give a finite tilt of at least 0"),
        (
            {"variance": "analytical"},
            r"variance: no variance 'analytical'; did you mean analytic\?",
        ),
        ({"beta": math.nan}, r"beta: nan; give a finite tilt of at least 0"),
        ({"reward": LinearReward([1.0])}, r"reward: of dimension 1, the prior is of dimension 2.*"),
        (
            {"reward": QuadraticReward([[-1.0, 0.0], [0.0, 0.0]], [0.0, 0.0]), "beta": 1.5},
            r"beta: 1\.5 is too much.*use one below 1",
        ),
        (
            {"reward": BumpReward([[9.0, 9.0]], [40.0], 0.1)},
            r"beta: the tilt would accept .* use a smaller beta, or lower bumps",
        ),
    ],
    ids=lambda part: str(part)[:30],
)
def test_what_is_no_problem_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    parts = {"prior": NORMAL, "reward": LINEAR, "beta": 1.0} | settings
    with pytest.raises(UserError, match=rf"^{message}$"):
        Problem(**parts)


def test_more_steps_than_the_schedule_has_are_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"^steps: 1001; the laboratory's schedule has 1000$"):
        Problem(NORMAL, LINEAR, 1.0, steps=1001)


def test_without_a_tilt_the_target_is_the_prior() -> None:
    problem = Problem(NORMAL, LINEAR, 0.0)
    x = NORMAL.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(problem.target.log_prob(x), NORMAL.log_prob(x))


def test_the_reward_of_an_image_is_that_of_its_point() -> None:
    problem = Problem(NORMAL, LINEAR, 1.0)
    points = NORMAL.sample(5, torch.Generator().manual_seed(0))
    images = points[:, None, None, :].expand(5, 3, 1, 2)
    found = problem.named_reward()(images, [""] * 5)
    torch.testing.assert_close(found, points[:, 0] + 0.5 * points[:, 1])
    assert problem.named_reward().name == "LinearReward"
