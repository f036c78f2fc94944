"""Tilts in closed form against the density they are meant to have, and against quadrature."""

import re

import numpy as np
import pytest
import torch
from scipy import integrate, linalg
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.rewards import BumpReward, ExactReward, LinearReward, QuadraticReward
from tests.support.numeric import finite_difference

AXIS = np.linspace(-12.0, 12.0, 161)
GRID = torch.as_tensor(np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), axis=-1).reshape(-1, 2))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mixture(dim: int, seed: int = 0) -> GaussianMixture:
    roots = normal(3, dim, dim, seed=seed + 1)
    covariances = 0.2 * roots @ roots.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(1.5 * normal(3, dim, seed=seed), covariances, [0.5, 0.3, 0.2])


def random_quadratic(dim: int, seed: int = 0) -> QuadraticReward:
    """With curvature of both signs, so small that each tilt of a `random_mixture` exists."""
    A = normal(dim, dim, seed=seed + 2)
    return QuadraticReward(0.015 * (A + A.T), normal(dim, seed=seed + 3))


def integral(values: Tensor) -> float:
    """Over the plane, by the trapezoid rule on `GRID`."""
    table = values.reshape(len(AXIS), len(AXIS)).numpy()
    return float(integrate.trapezoid(integrate.trapezoid(table, AXIS), AXIS))


REWARDS = {
    "linear": lambda dim: LinearReward(normal(dim, seed=4)),
    "quadratic": random_quadratic,
    "bumps": lambda dim: BumpReward(normal(3, dim, seed=5), [1.0, -0.5, 2.0], 0.7),
}
named = pytest.mark.parametrize("name", REWARDS)
closed = pytest.mark.parametrize("name", ["linear", "quadratic"])


def test_values_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    assert LinearReward([3.0, -1.0])(x).tolist() == [1.0, -3.5]
    # The first: 3 - 2 - (2 + 2 * 0.5 * 2 + 4 * 4) / 2.
    quadratic = QuadraticReward([[2.0, 0.5], [0.5, 4.0]], [3.0, -1.0])
    assert quadratic(x).tolist() == [-9.0, -4.75]
    bumps = BumpReward([[1.0, 2.0], [1.0, 4.0]], [2.0, -1.0], 2.0)
    expected = [2 - np.exp(-0.5), 2 * np.exp(-6.25 / 8) - np.exp(-16.25 / 8)]
    np.testing.assert_allclose(bumps(x), expected, rtol=1e-6)


@named
def test_gradient_is_the_derivative_and_the_dtype_that_of_the_points(name: str) -> None:
    reward, x = REWARDS[name](3), normal(5, 3, seed=6)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(reward(leaf).sum(), leaf)
    expected = finite_difference(lambda value: reward(value).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert reward(x.float()).dtype == torch.float32
    torch.testing.assert_close(reward(x.float()).double(), reward(x), rtol=1e-5, atol=1e-5)


@named
def test_each_meets_the_contract(name: str) -> None:
    reward = REWARDS[name](3)
    assert isinstance(reward, ExactReward)
    assert reward.dim == 3


@closed
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_tilt_is_the_prior_times_exp_beta_r(name: str, dim: int, beta: float) -> None:
    prior, reward = random_mixture(dim), REWARDS[name](dim)
    x = 4.0 * normal(50, dim, seed=7)
    difference = reward.tilt(prior, beta).log_prob(x) - prior.log_prob(x) - beta * reward(x)
    torch.testing.assert_close(difference, difference[:1].expand(50), rtol=1e-9, atol=1e-9)


@closed
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_tilt_is_normalised(name: str, beta: float) -> None:
    prior, reward = random_mixture(2), REWARDS[name](2)
    tilt = reward.tilt(prior, beta)
    assert integral(prior.log_prob(GRID).exp()) == pytest.approx(1.0, abs=1e-9)
    assert integral(tilt.log_prob(GRID).exp()) == pytest.approx(1.0, abs=1e-6)
    tilted = (prior.log_prob(GRID) + beta * reward(GRID)).exp()
    expected = (tilted / integral(tilted)).log()
    near = expected > -50
    torch.testing.assert_close(tilt.log_prob(GRID)[near], expected[near], rtol=0, atol=1e-6)


@closed
def test_without_beta_the_tilt_is_the_prior(name: str) -> None:
    prior = random_mixture(2)
    tilt = REWARDS[name](2).tilt(prior, 0.0)
    torch.testing.assert_close(tilt.means, prior.means)
    torch.testing.assert_close(tilt.covariances, prior.covariances)
    torch.testing.assert_close(tilt.weights, prior.weights)


@pytest.mark.parametrize("beta", [0.7, 3.0, -1.5])
def test_a_linear_reward_moves_the_means(beta: float) -> None:
    """By beta S a; and weighs by the moment generating function at beta a."""
    prior, a = random_mixture(3), normal(3, seed=8)
    tilt = LinearReward(a).tilt(prior, beta)
    w, m, S = prior.weights.numpy(), prior.means.numpy(), prior.covariances.numpy()
    moved = np.stack([m[j] + beta * S[j] @ a.numpy() for j in range(3)])
    factors = [np.exp(beta * a.numpy() @ (m[j] + moved[j]) / 2) for j in range(3)]
    np.testing.assert_allclose(tilt.means, moved)
    np.testing.assert_allclose(tilt.covariances, S, atol=1e-12)
    np.testing.assert_allclose(tilt.weights, w * factors / (w @ factors), rtol=1e-9)


def test_a_quadratic_reward_of_a_normal_in_one_dimension() -> None:
    """N(1, 1/2) times exp(2 (3 x - x^2)): precision 2 + 4, and mean (2 + 6) / 6."""
    tilt = QuadraticReward([[2.0]], [3.0]).tilt(GaussianMixture([[1.0]], [[[0.5]]]), 2.0)
    assert tilt.covariances.item() == pytest.approx(1 / 6)
    assert tilt.means.item() == pytest.approx(8 / 6)
    assert tilt.weights.tolist() == [1.0]


def test_components_that_the_tilt_leaves_nothing_of() -> None:
    prior = GaussianMixture([[-20.0, 0.0], [20.0, 0.0]], [torch.eye(2), torch.eye(2)])
    tilt = LinearReward([30.0, 0.0]).tilt(prior, 1.0)
    assert tilt.weights.tolist() == [0.0, 1.0]
    assert tilt.score(torch.zeros(1, 2)).isfinite().all()


def singular_beta(prior: GaussianMixture, A: Tensor) -> float:
    """The least beta > 0 at which A v = -S^-1 v / beta for some component and some v."""
    found = [
        linalg.eigh(A.numpy(), linalg.inv(S.numpy()), eigvals_only=True).min()
        for S in prior.covariances
    ]
    return -1.0 / min(found)


def refusal(reward: QuadraticReward, prior: GaussianMixture, beta: float) -> str:
    with pytest.raises(UserError) as caught:
        reward.tilt(prior, beta)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_a_tilt_without_density_is_refused_and_a_beta_named_that_is_not(seed: int) -> None:
    prior, reward = random_mixture(3, seed), random_quadratic(3, seed)
    limit = singular_beta(prior, reward.A)
    text = refusal(reward, prior, 1.0001 * limit)
    named = re.fullmatch(
        r"beta: (\S+) is too much, the tilt of component \d has no density "
        r"\(smallest precision \S+\); use one below (\S+)",
        text,
    )
    assert named
    below = float(named[2])
    assert 0.99 * limit < below <= limit
    assert reward.tilt(prior, below * 0.9999).weights.sum().item() == pytest.approx(1.0)
    assert reward.tilt(prior, limit * 0.9999).weights.sum().item() == pytest.approx(1.0)


def test_the_limit_of_a_round_component() -> None:
    """N(0, 1/2) times exp(beta x^2 / 2) has precision 2 - beta."""
    prior = GaussianMixture(torch.zeros(2, 2), [0.1 * torch.eye(2), 0.5 * torch.eye(2)])
    reward = QuadraticReward(-torch.eye(2), [0.0, 1.0])
    for beta in (2.0, 2.001, 50.0):
        assert refusal(reward, prior, beta).startswith(f"beta: {beta:g} is too much")
        assert refusal(reward, prior, beta).endswith("use one below 2")
    assert "component 1" in refusal(reward, prior, 2.0)
    torch.testing.assert_close(
        reward.tilt(prior, 1.999).covariances[1].diagonal(),
        torch.full((2,), 1000.0, dtype=torch.float64),
    )


def test_the_limit_of_a_negative_beta() -> None:
    prior = GaussianMixture([[0.0, 0.0]], [0.5 * torch.eye(2)])
    reward = QuadraticReward(torch.eye(2), [0.0, 1.0])
    assert refusal(reward, prior, -3.0).endswith("use one above -2")
    assert reward.tilt(prior, -1.99).covariances[0, 0, 0].item() == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearReward([]), r"a: shape \(0,\); give \(dim,\)"),
        (lambda: LinearReward(torch.eye(2)), r"a: shape \(2, 2\); give \(dim,\)"),
        (lambda: LinearReward(torch.tensor([np.nan])), r"a: holds a value that is not finite"),
        (lambda: QuadraticReward([[1.0]], torch.ones(())), r"b: shape \(\); give \(dim,\)"),
        (lambda: QuadraticReward([[1.0]], [1.0, np.inf]), r"b: holds a value that is not finite"),
        (lambda: QuadraticReward([1.0], [1.0]), r"A: shape \(1,\) with b .* 1; give \(1, 1\)"),
        (lambda: QuadraticReward(torch.eye(3), [1.0, 2.0]), r"A: shape \(3, 3\) .* give \(2, 2\)"),
        (lambda: QuadraticReward([["a"]], [1.0]), r"A: not an array of numbers"),
        (lambda: QuadraticReward([[0.0, 1.0], [0.0, 0.0]], [1.0, 2.0]), r"A: not symmetric; use"),
        (lambda: BumpReward([0.0, 1.0], [1.0, 1.0], 1.0), r"heights: shape \(2,\) for centers of"),
        (lambda: BumpReward([[0.0, 1.0]], [1.0, 1.0], 1.0), r"heights: shape \(2,\) for centers "),
        (lambda: BumpReward(torch.zeros(0, 2), [], 1.0), r"heights: shape \(0,\) for centers of"),
        (lambda: BumpReward([["a"]], [1.0], 1.0), r"centers: not an array of numbers"),
        (lambda: BumpReward([[0.0]], [np.nan], 1.0), r"heights: holds a value that is not finite"),
        (lambda: BumpReward([[0.0]], [1.0], 0.0), r"width: 0; give a length above 0"),
        (lambda: BumpReward([[0.0]], [1.0], -1.0), r"width: -1; give a length above 0"),
        (lambda: BumpReward([[0.0]], [1.0], np.nan), r"width: nan; give a length above 0"),
        (lambda: BumpReward([[0.0]], [1.0], np.inf), r"width: inf; give a length above 0"),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert re.match(message, str(caught.value))
    assert "\n" not in str(caught.value)


@named
def test_a_prior_of_another_dimension_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="reward: of dimension 3, the prior is of dimension 2"):
        REWARDS[name](3).tilt(random_mixture(2), 1.0)


@pytest.mark.parametrize("beta", [3.0, -2.0])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 3.0])
def test_no_reward_of_bumps_is_above_the_bound(
    spread: float, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nablaflow.exact.rejection.NORMALISER_SAMPLES", 2**16)
    prior = GaussianMixture([[0.0, 0.0]], [torch.eye(2)])
    heights = normal(5, seed=9)
    bumps = BumpReward(spread * normal(5, 2, seed=10), heights, 0.6)
    bound = bumps.tilt(prior, beta).bound
    x = torch.cat([bumps.centers, 2 * spread * normal(20_000, 2, seed=11)])
    assert (beta * bumps(x)).max().item() <= bound + 1e-12
    assert bound <= (beta * heights).clamp_min(0.0).sum().item() + 1e-12


def test_bumps_far_apart_do_not_add_up() -> None:
    """A sum of the heights, 12, would have fewer than one in ten thousand accepted."""
    centers = [[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0], [0.0, -4.0]]
    tilt = BumpReward(centers, [3.0, 3.0, 3.0, 2.0], 0.3).tilt(
        GaussianMixture([[0.0, 0.0]], [4.0 * torch.eye(2)]), 1.0
    )
    assert tilt.bound == pytest.approx(3.0, abs=1e-3)
    assert tilt.acceptance > 0.04
