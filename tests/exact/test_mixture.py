"""Gaussian mixtures against scipy's densities, finite differences and Monte Carlo."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.exact.mixture import GaussianMixture, as_float64
from tests.support.numeric import finite_difference

LEVELS = [1.0, 0.999, 0.6, 0.02, 0.0]


def random_mixture(dim: int, components: int = 3, seed: int = 0) -> GaussianMixture:
    """Skewed covariances that overlap, and unequal weights."""
    generator = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    roots = torch.randn(components, dim, dim, generator=generator, dtype=torch.float64)
    covariances = 0.4 * roots @ roots.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    weights = torch.arange(1.0, components + 1.0, dtype=torch.float64)
    return GaussianMixture(means, covariances, weights / weights.sum())


def random_points(n: int, dim: int, scale: float = 2.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def scipy_joint(mixture: GaussianMixture, x: Tensor, alpha_bar: float) -> np.ndarray:
    """Log of weight times density of each component, (batch, component)."""
    identity = np.eye(mixture.dim)
    parts = zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    scipy_normal: Any = stats.multivariate_normal  # whose covariance pyright takes for an integer
    densities = [
        scipy_normal.logpdf(
            x.numpy(),
            alpha_bar**0.5 * mean.numpy(),
            alpha_bar * covariance.numpy() + (1 - alpha_bar) * identity,
        )
        + np.log(weight.item())
        for weight, mean, covariance in parts
    ]
    return np.stack(densities, axis=1)


@pytest.mark.parametrize("alpha_bar", LEVELS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_log_prob_is_that_of_scipy_at_each_noise_level(dim: int, alpha_bar: float) -> None:
    mixture = random_mixture(dim)
    # The second are so far away that each density is 0 in float64.
    x = torch.cat([random_points(30, dim), random_points(5, dim, scale=200.0)])
    expected = logsumexp(scipy_joint(mixture, x, alpha_bar), axis=1)
    np.testing.assert_allclose(mixture.log_prob(x, alpha_bar), expected, rtol=1e-9)


def test_without_a_level_it_is_the_mixture_itself() -> None:
    mixture, x = random_mixture(2), random_points(30, 2)
    expected = logsumexp(scipy_joint(mixture, x, 1.0), axis=1)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-9)


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_responsibilities_are_those_of_bayes(alpha_bar: float) -> None:
    mixture, x = random_mixture(3), random_points(30, 3)
    joint = np.exp(scipy_joint(mixture, x, alpha_bar))
    expected = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mixture.responsibilities(x, alpha_bar), expected, atol=1e-12)


@pytest.mark.parametrize("alpha_bar", [1.0, 0.4, 0.01])
def test_a_noised_mixture_is_the_one_built_by_hand(alpha_bar: float) -> None:
    mixture, x = random_mixture(4), random_points(30, 4)
    by_hand = GaussianMixture(
        alpha_bar**0.5 * mixture.means,
        alpha_bar * mixture.covariances + (1 - alpha_bar) * torch.eye(4, dtype=torch.float64),
        mixture.weights,
    )
    torch.testing.assert_close(mixture.log_prob(x, alpha_bar), by_hand.log_prob(x))
    torch.testing.assert_close(mixture.score(x, alpha_bar), by_hand.score(x))


@pytest.mark.parametrize("alpha_bar", LEVELS)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_score_is_the_derivative_of_the_log_density(dim: int, alpha_bar: float) -> None:
    mixture, x = random_mixture(dim), random_points(8, dim)
    expected = finite_difference(lambda value: mixture.log_prob(value, alpha_bar).sum(), x)
    torch.testing.assert_close(mixture.score(x, alpha_bar), expected, rtol=1e-6, atol=1e-6)


def test_score_can_be_differentiated_again() -> None:
    mixture, x = random_mixture(2), random_points(6, 2)
    direction = random_points(6, 2, seed=2)

    def along(value: Tensor) -> Tensor:
        return (mixture.score(value, 0.8) * direction).sum()

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(along(leaf), leaf)
    torch.testing.assert_close(found, finite_difference(along, x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("what", ["log_prob", "score", "responsibilities"])
def test_a_level_for_each_point_is_that_level_alone(what: str) -> None:
    mixture, x = random_mixture(2), random_points(len(LEVELS), 2)
    function = getattr(mixture, what)
    alone = [function(x[row : row + 1], level) for row, level in enumerate(LEVELS)]
    together = function(x, torch.tensor(LEVELS, dtype=torch.float64))
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("what", ["log_prob", "score", "responsibilities"])
def test_the_dtype_is_that_of_the_points(what: str) -> None:
    mixture, x = random_mixture(2), random_points(20, 2)
    function = getattr(mixture, what)
    single = function(x.float(), torch.full((20,), 0.7))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), function(x, 0.7), rtol=1e-4, atol=1e-5)


def test_a_component_without_weight_is_not_there() -> None:
    mixture, x = random_mixture(2), random_points(20, 2)
    means = torch.cat([mixture.means, torch.zeros(1, 2)])
    covariances = torch.cat([mixture.covariances, 0.01 * torch.eye(2)[None]])
    padded = GaussianMixture(means, covariances, [*mixture.weights.tolist(), 0.0])
    torch.testing.assert_close(padded.log_prob(x), mixture.log_prob(x))
    torch.testing.assert_close(padded.score(x), mixture.score(x))
    at_zero = padded.sample(2000, torch.Generator().manual_seed(0)).norm(dim=1) < 0.01
    assert at_zero.float().mean() < 0.005


def test_mean_and_covariance_are_the_samples() -> None:
    mixture, n = random_mixture(3), 200_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 3)
    assert x.dtype == torch.float64
    error = mixture.covariance.diagonal().div(n).sqrt()
    assert ((x.mean(0) - mixture.mean).abs() < 4 * error).all()
    centred = x - mixture.mean
    products = centred[:, :, None] * centred[:, None]
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - mixture.covariance).abs() < 4 * error).all()


def test_covariance_is_that_of_the_moments() -> None:
    """E[x x^T] - E[x] E[x]^T, where each component's second moment is S + m m^T."""
    mixture = random_mixture(4)
    w, m, S = mixture.weights.numpy(), mixture.means.numpy(), mixture.covariances.numpy()
    mean = (w[:, None] * m).sum(0)
    second = sum(w[j] * (S[j] + np.outer(m[j], m[j])) for j in range(3))
    np.testing.assert_allclose(mixture.mean, mean)
    np.testing.assert_allclose(mixture.covariance, second - np.outer(mean, mean))


@pytest.mark.parametrize("seed", range(4))
def test_samples_have_the_distribution_along_any_direction(seed: int) -> None:
    """A projection of the mixture is a mixture of scalars, whose distribution scipy knows."""
    mixture = random_mixture(4, seed=seed)
    u = random_points(1, 4, seed=seed)[0]
    spreads = torch.einsum("i,cij,j->c", u, mixture.covariances, u).sqrt().numpy()
    centres = (mixture.means @ u).numpy()

    def cumulative(t: np.ndarray) -> np.ndarray:
        return stats.norm.cdf(t[:, None], centres, spreads) @ mixture.weights.numpy()

    drawn = mixture.sample(20_000, torch.Generator().manual_seed(seed)) @ u
    assert stats.kstest(drawn.numpy(), cumulative).pvalue > 0.01


def test_samples_follow_the_generator() -> None:
    mixture = random_mixture(2)
    first, again, other = (mixture.sample(9, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    without = mixture.sample(9)
    torch.manual_seed(3)
    torch.testing.assert_close(without, mixture.sample(9), rtol=0, atol=0)


def test_parts_may_be_lists_tensors_or_arrays() -> None:
    lists = GaussianMixture([[0, 1], [2, 3]], [[[1, 0], [0, 1]], [[2, 0], [0, 2]]])
    torch.testing.assert_close(lists.weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
    tensors = GaussianMixture(
        [torch.tensor([0.0, 1.0], requires_grad=True), torch.tensor([2.0, 3.0])],
        (torch.eye(2), 2 * torch.eye(2)),
        torch.tensor([0.5, 0.5]),
    )
    arrays = GaussianMixture([np.array([0, 1]), [2, 3]], [np.eye(2), 2 * np.eye(2)], [0.5, 0.5])
    x = random_points(5, 2)
    for other in (tensors, arrays):
        torch.testing.assert_close(other.log_prob(x), lists.log_prob(x))
        assert not other.means.requires_grad


def test_it_keeps_no_hold_of_what_it_was_made_from() -> None:
    means = torch.zeros(1, 2, dtype=torch.float64)
    mixture = GaussianMixture(means, [torch.eye(2)])
    means += 5
    assert mixture.means.tolist() == [[0.0, 0.0]]
    assert as_float64("means", np.zeros(2)).tolist() == [0.0, 0.0]


def test_covariances_and_weights_rounded_to_float32_are_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(20, 5, 5, generator=generator)).Q
    covariances = rotations @ torch.diag(torch.logspace(-2, 2, 5)) @ rotations.mT
    assert not torch.equal(covariances, covariances.mT)
    weights = torch.rand(20, generator=generator).softmax(0)
    mixture = GaussianMixture(torch.zeros(20, 5), covariances, weights)
    assert mixture.weights.sum().item() == pytest.approx(1.0, abs=1e-15)


ONE = [[0.0, 0.0]]
ROUND = [[[1.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0.0, 0.0], ROUND), r"means: shape \(2,\); give \(component, dim\)"),
        ((torch.zeros(0, 2), ROUND), r"means: shape \(0, 2\)"),
        ((torch.zeros(1, 0), ROUND), r"means: shape \(1, 0\)"),
        (([["a", "b"]], ROUND), r"means: not an array of numbers"),
        (("abc", ROUND), r"means: not an array of numbers"),
        (([[0.0], [0.0, 1.0]], ROUND), r"means: not an array of numbers"),
        (([[10**400, 0]], ROUND), r"means: not an array of numbers"),
        (([[1j, 0]], ROUND), r"means: not an array of numbers"),
        (([[float("nan"), 0.0]], ROUND), r"means: holds a value that is not finite"),
        ((ONE, [[[float("inf"), 0.0], [0.0, 1.0]]]), r"covariances: holds a value that is not f"),
        ((ONE, ROUND[0]), r"covariances: shape \(2, 2\) for 1 .* 2; give \(1, 2, 2\)"),
        ((ONE, ROUND * 2), r"covariances: shape \(2, 2, 2\) .* give \(1, 2, 2\)"),
        ((ONE * 2, [*ROUND, [[1.0, 0.5], [0.4, 1.0]]]), r"covariances\[1\]: not symmetric; use"),
        (
            (ONE * 2, [*ROUND, [[1.0, 2.0], [2.0, 1.0]]]),
            r"covariances\[1\]: not positive definite, .* from -1 to 3; all must be above 0",
        ),
        ((ONE, [[[0.0, 0.0], [0.0, 0.0]]]), r"covariances\[0\]: not positive definite"),
        ((ONE, [[[0.04, 0.14], [0.14, 0.49]]]), r"covariances\[0\]: not positive definite"),
        ((ONE, ROUND, [0.5, 0.5]), r"weights: shape \(2,\); give one for each of 1"),
        ((ONE * 2, ROUND * 2, [0.5, 0.6]), r"weights: their sum is 1\.1, not 1; divide them by it"),
        ((ONE * 2, ROUND * 2, [1.5, -0.5]), r"weights: one is -0\.5; give none below 0"),
        ((ONE * 2, ROUND * 2, [float("nan"), 1.0]), r"weights: holds a value that is not finite"),
    ],
)
def test_what_is_no_mixture_is_refused_in_one_line(parts: tuple, message: str) -> None:
    with pytest.raises(UserError) as caught:
        GaussianMixture(*parts)
    text = str(caught.value)
    assert re.match(message, text)
    assert "\n" not in text


def test_none_is_no_array() -> None:
    with pytest.raises(UserError, match="b: not an array of numbers"):
        as_float64("b", None)


@pytest.mark.parametrize("dim", [1, 3])
def test_points_of_another_dimension_are_refused(dim: int) -> None:
    with pytest.raises(UserError, match=f"x: of dimension {dim}; the mixture is of dimension 2"):
        random_mixture(2).log_prob(torch.zeros(4, dim))
