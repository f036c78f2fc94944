"""Tilts by rejection against quadrature, and against a normal tilt in closed form."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.rejection import NORMALISER_SAMPLES, RejectionTilt, Target
from nablaflow.exact.rewards import BumpReward

AXIS = np.linspace(-8.0, 8.0, 161)
GRID = torch.as_tensor(np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), axis=-1).reshape(-1, 2))

PRIOR = GaussianMixture(
    [[-1.0, 0.5], [1.0, 0.0]], [[[0.6, 0.2], [0.2, 0.5]], [[0.4, 0.0], [0.0, 1.0]]], [0.7, 0.3]
)
BUMPS = BumpReward([[1.0, 1.0], [-1.5, 0.0], [0.0, -1.0]], [2.0, -1.0, 1.5], 0.6)
BETAS = [1.5, -1.0]

LINE = np.linspace(-8.0, 8.0, 4001)
LINE_PRIOR = GaussianMixture([[-1.0], [1.0]], [[[0.3]], [[0.5]]], [0.6, 0.4])
LINE_BUMPS = BumpReward([[0.3], [2.0]], [-2.0, 1.5], 0.4)


def integral(values: Tensor) -> float:
    """Over the plane, by the trapezoid rule on `GRID`."""
    table = values.reshape(len(AXIS), len(AXIS)).numpy()
    return float(integrate.trapezoid(integrate.trapezoid(table, AXIS), AXIS))


def tilted(beta: float, power: float = 1.0) -> Tensor:
    """The prior times exp(beta r), not normalised, on `GRID`."""
    return (PRIOR.log_prob(GRID) + power * beta * BUMPS(GRID)).exp()


@pytest.fixture(scope="module", params=BETAS)
def made(request: pytest.FixtureRequest) -> tuple[float, RejectionTilt]:
    return request.param, BUMPS.tilt(PRIOR, request.param)


def normal_tilt(pull: float) -> tuple[RejectionTilt, float]:
    """N(0, 1) times exp(-pull (x - 2)^2 / 2) is a normal; with the log of its normaliser.

    Its precision is 1 + pull, its mean 2 pull / (1 + pull).
    """
    prior = GaussianMixture([[0.0]], [[[1.0]]])
    log_z = stats.norm.logpdf(2.0, 0.0, (1 + 1 / pull) ** 0.5) + 0.5 * np.log(2 * np.pi / pull)
    return RejectionTilt(prior, lambda x: -0.5 * pull * (x[:, 0] - 2.0).square(), 0.0), log_z


def test_it_is_a_target_and_so_is_a_mixture(made: tuple[float, RejectionTilt]) -> None:
    assert isinstance(made[1], Target)
    assert isinstance(PRIOR, Target)
    assert made[1].dim == 2


def test_log_normaliser_and_its_error(made: tuple[float, RejectionTilt]) -> None:
    """Var[exp(beta r)] under the prior is the integral at twice the power, less the square."""
    beta, tilt = made
    first, second = integral(tilted(beta)), integral(tilted(beta, power=2.0))
    assert tilt.log_normaliser == pytest.approx(np.log(first), abs=4 * tilt.log_normaliser_se)
    error = (second / first**2 - 1) ** 0.5 / NORMALISER_SAMPLES**0.5
    assert tilt.log_normaliser_se == pytest.approx(error, rel=0.02)
    assert tilt.acceptance == pytest.approx(first * np.exp(-tilt.bound), rel=0.01)


def test_log_prob_is_the_prior_times_exp_beta_r(made: tuple[float, RejectionTilt]) -> None:
    beta, tilt = made
    difference = tilt.log_prob(GRID) - PRIOR.log_prob(GRID) - beta * BUMPS(GRID)
    torch.testing.assert_close(difference, torch.full_like(difference, -tilt.log_normaliser))
    mass = integral(tilt.log_prob(GRID).exp())
    assert mass == pytest.approx(1.0, abs=4 * tilt.log_normaliser_se)


def test_moments_of_the_samples(made: tuple[float, RejectionTilt]) -> None:
    beta, tilt = made
    x = tilt.sample(20_000, torch.Generator().manual_seed(1))
    density = tilted(beta) / integral(tilted(beta))
    moments = [lambda p: p[:, 0], lambda p: p[:, 1], lambda p: p.prod(1), BUMPS]
    moments += [lambda p: p[:, 0].square(), lambda p: p[:, 1].square()]
    for moment in moments:
        values = moment(x)
        error = values.std().item() / len(x) ** 0.5
        assert values.mean().item() == pytest.approx(
            integral(density * moment(GRID)), abs=4 * error
        )


@pytest.mark.parametrize("beta", [1.0, 2.0, -1.0])
def test_samples_have_the_distribution(beta: float) -> None:
    """In one dimension, where quadrature gives the cumulative distribution."""
    tilt = LINE_BUMPS.tilt(LINE_PRIOR, beta)
    points = torch.as_tensor(LINE)[:, None]
    density = (LINE_PRIOR.log_prob(points) + beta * LINE_BUMPS(points)).exp().numpy()
    cumulative = integrate.cumulative_trapezoid(density, LINE, initial=0.0)
    x = tilt.sample(20_000, torch.Generator().manual_seed(2))[:, 0].numpy()
    found = stats.kstest(x, lambda t: np.interp(t, LINE, cumulative / cumulative[-1]))
    assert found.pvalue > 0.01
    assert tilt.log_normaliser == pytest.approx(
        np.log(cumulative[-1]), abs=4 * tilt.log_normaliser_se
    )


@pytest.mark.parametrize(("pull", "n"), [(1.0, 20_000), (1e3, 1500)])
def test_a_tilt_that_is_a_normal(pull: float, n: int) -> None:
    """The second accepts one point in 200, and takes its samples in many rounds."""
    tilt, log_z = normal_tilt(pull)
    assert tilt.log_normaliser == pytest.approx(log_z, abs=4 * tilt.log_normaliser_se)
    mean, spread = 2 * pull / (1 + pull), (1 + pull) ** -0.5
    x = tilt.sample(n, torch.Generator().manual_seed(3))
    assert x.shape == (n, 1)
    assert x.dtype == torch.float64
    assert stats.kstest(x[:, 0].numpy(), stats.norm(mean, spread).cdf).pvalue > 0.01
    near = spread * torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None] + mean
    expected = torch.as_tensor(stats.norm.logpdf(near[:, 0].numpy(), mean, spread))
    error = 4 * tilt.log_normaliser_se
    torch.testing.assert_close(tilt.log_prob(near), expected, rtol=0, atol=error)


def test_samples_are_independent_of_how_many_are_drawn_at_a_time() -> None:
    """Not the first of each round, or fewer than asked for, or one of them twice."""
    tilt, _ = normal_tilt(1.0)
    generator = torch.Generator().manual_seed(4)
    for n in (1, 2, 100):
        assert tilt.sample(n, generator).shape == (n, 1)
    small = torch.cat([tilt.sample(3, generator) for _ in range(1000)])[:, 0]
    assert len(small.unique()) == 3000
    assert stats.kstest(small.numpy(), stats.norm(1.0, 0.5**0.5).cdf).pvalue > 0.01


def test_samples_follow_the_generator_and_the_normaliser_does_not() -> None:
    torch.manual_seed(0)
    tilt, again = (normal_tilt(1.0)[0] for _ in range(2))
    assert tilt.log_normaliser == again.log_normaliser
    drawn = [tilt.sample(9, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.equal(drawn[1], drawn[2])


def test_log_prob_is_differentiable_in_the_dtype_of_the_points() -> None:
    tilt, _ = normal_tilt(3.0)
    x = torch.tensor([[0.5], [2.0]], requires_grad=True)
    value = tilt.log_prob(x)
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, -4.0 * (x - 1.5))


def test_a_round_of_proposals_is_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one accepted in ten thousand would hold ten thousand times what was asked for."""
    tilt, _ = normal_tilt(1e3)
    sizes: list[int] = []
    sample = GaussianMixture.sample

    def counted(mixture: GaussianMixture, n: int, generator: torch.Generator) -> Tensor:
        sizes.append(n)
        return sample(mixture, n, generator)

    monkeypatch.setattr(GaussianMixture, "sample", counted)
    tilt.sample(800, torch.Generator().manual_seed(0))
    assert len(sizes) > 1
    assert max(sizes) <= 2**16
    assert all(later <= earlier for earlier, later in pairwise(sizes))


@pytest.mark.parametrize("beta", [1e3, float("nan")])
def test_a_tilt_that_accepts_too_little_is_refused_in_one_line(beta: float) -> None:
    with pytest.raises(UserError) as caught:
        BUMPS.tilt(PRIOR, beta)
    assert re.match(
        r"beta: the tilt would accept \S+ of the prior's points; use a", str(caught.value)
    )
    assert "\n" not in str(caught.value)
