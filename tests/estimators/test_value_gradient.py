"""What the estimators say on average, against grad V of a Gaussian model and a quadratic reward.

There grad V is known and so is the tilted chain, see `tests.support.chain`. As all is affine, an
estimate's expectation given a state is its value on the path without noise, which makes equalities
of what else is Monte Carlo; that is done too.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import Transitions, build_process
from nablaflow.estimators import (
    Adjoint,
    Estimator,
    ForwardLooking,
    ForwardLookingFlow,
    Networks,
    NStep,
    Path,
    TemporalDifference,
    Terminal,
    ValueGradients,
)
from nablaflow.models import Condition
from tests.support.chain import Chain, Quadratic, kernel_of, solve
from tests.support.gaussian import GaussianModel
from tests.support.numeric import finite_difference, normal_quadrature
from tests.support.paths import Nothing
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.5
STEPS = 6
PATHS = 4000
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
IDENTITY = torch.eye(2, dtype=torch.float64)
NEAR = {"rtol": 1e-6, "atol": 1e-7}
LINEAR = torch.tensor([0.7, -1.1], dtype=torch.float64)
REWARDS = {
    "linear": Quadratic(torch.zeros(2, 2, dtype=torch.float64), LINEAR),
    "quadratic": Quadratic(torch.tensor([[0.8, 0.3], [0.3, 0.2]], dtype=torch.float64), LINEAR),
}
UNBIASED = [
    Adjoint(),
    TemporalDifference(td_lambda=0.0),
    TemporalDifference(td_lambda=0.5),
    TemporalDifference(td_lambda=0.9, gamma=0.0),
    NStep(n=0),
    NStep(n=2),
    NStep(n=2, gamma=0.0),
]


def name_of(estimator: Estimator) -> str:
    return "-".join(str(value) for value in estimator.model_dump().values())


@cache
def solved(reward: str, sampler: str = "ddim", eta: float = 1.0) -> tuple[GaussianModel, Chain]:
    process = build_process(STABLE_DIFFUSION, sampler, STEPS, eta, sigma_floor=0.01)
    model = GaussianModel(process, MEAN, COVARIANCE, Nothing())
    return model, solve(model, REWARDS[reward], BETA)


def points(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path_through(chain: Chain, x: Tensor, x_next: Tensor, k: int, noise: Tensor) -> Path:
    """From ``x`` at x_k by ``x_next`` at x_{k-1} and on by the tilted chain; k is kept."""
    rows = chain.walk(x_next, k - 1, noise) + [x] * (STEPS + 1 - k)
    states = torch.stack(rows).reshape(STEPS + 1, len(x), 1, 1, 2)
    steps, trajectory = torch.full((len(x),), k), torch.arange(len(x))
    transitions = Transitions(states[k], states[k - 1], steps, states[k], trajectory)
    return Path(states[0], states, Condition(), [""] * len(x), transitions)


def path_from(chain: Chain, x: Tensor, k: int, noise: Tensor) -> Path:
    """The same with x_{k-1} from the tilted kernel too."""
    return path_through(chain, x, chain.walk(x, k, noise)[k - 1], k, noise)


def still(n: int) -> Tensor:
    return torch.zeros(STEPS + 1, n, 2, dtype=torch.float64)


def estimates(
    estimator: Estimator, reward: str, path: Path, sampler: tuple[str, float] = ("ddim", 1.0)
) -> ValueGradients:
    """With the exact flow score."""
    model, chain = solved(reward, *sampler)
    flow = chain.flow(0.0 if getattr(estimator, "gamma", None) == 0.0 else None)
    networks = Networks(model, REWARDS[reward].named(), flow, flow)
    return estimator.estimate(path, networks, BETA)


def flat(values: Tensor | None) -> Tensor:
    assert values is not None
    return values.flatten(1)


# The truth's own truth.


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_the_values_are_gaussian_integrals(k: int) -> None:
    """V_k(x) = log E exp V_{k-1}, by quadrature and finite differences."""
    model, chain = solved("quadratic")
    nodes, weights = normal_quadrature(40)

    def value(x: Tensor) -> Tensor:
        following = chain.kernels[k](x) + model.process.sigma[k].double() * nodes
        slope, offset = chain.values[k - 1].slope, chain.values[k - 1].offset
        log = following @ offset + 0.5 * ((following @ slope) * following).sum(1)
        return (weights.log() + log).logsumexp(0)

    x = points(1)[0]
    torch.testing.assert_close(finite_difference(value, x), chain.values[k](x), **NEAR)


@pytest.mark.parametrize("reward", list(REWARDS))
def test_the_tilted_chain_ends_in_the_tilt(reward: str) -> None:
    """The start tilted by V_K and then the tilted kernels, or the end tilted: the same normal."""
    model, chain = solved(reward)
    mean, covariance = torch.zeros(2, dtype=torch.float64), IDENTITY
    for k in range(STEPS, 0, -1):
        kernel, variance = kernel_of(model, k), model.process.sigma[k].double().square()
        mean = kernel(mean)
        covariance = kernel.slope @ covariance @ kernel.slope.T + variance * IDENTITY
    expected = (covariance.inverse() - chain.values[0].slope).inverse()
    expected_mean = expected @ (covariance.inverse() @ mean + chain.values[0].offset)
    covariance = (IDENTITY - chain.values[STEPS].slope).inverse()
    mean = covariance @ chain.values[STEPS].offset
    for k in range(STEPS, 0, -1):
        kernel, root = chain.tilted[k], chain.roots[k]
        mean = kernel(mean)
        covariance = kernel.slope @ covariance @ kernel.slope.T + root @ root.T
    torch.testing.assert_close(mean, expected_mean, **NEAR)
    torch.testing.assert_close(covariance, expected, **NEAR)


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_matching_ends_at_the_tilted_kernels_mean(k: int) -> None:
    """(mu - mu_ref) / sigma^2 = E grad V_{k-1} where x_{k-1} has mean mu, however it spreads."""
    model, chain = solved("quadratic")
    x = points(5)
    mean = chain.tilted[k](x)
    shift = (mean - chain.kernels[k](x)) / model.process.sigma[k].double().square()
    torch.testing.assert_close(chain.values[k - 1](mean), shift, **NEAR)


# Unbiased ones.


@pytest.mark.parametrize("estimator", [*UNBIASED, ForwardLookingFlow()], ids=name_of)
@pytest.mark.parametrize("reward", list(REWARDS))
@pytest.mark.parametrize("sampler", [("ddim", 1.0), ("ddim", 0.4), ("sde-dpmsolver++", 1.0)])
def test_the_expectation_under_the_tilt_is_the_value_gradient(
    estimator: Estimator, reward: str, sampler: tuple[str, float]
) -> None:
    _, chain = solved(reward, *sampler)
    for k in (1, 2, 4, STEPS):
        x_next = points(5)
        path = path_through(chain, points(5, seed=1), x_next, k, still(5))
        found = estimates(estimator, reward, path, sampler)
        torch.testing.assert_close(flat(found.target), chain.values[k - 1](x_next), **NEAR)


@pytest.mark.parametrize("estimator", [part for part in UNBIASED if part.uses_flow], ids=name_of)
@pytest.mark.parametrize("k", [1, 2, 4, STEPS])
def test_the_expectation_of_what_the_flow_should_be_is_the_exact_flow_score(
    estimator: Estimator, k: int
) -> None:
    _, chain = solved("quadratic")
    x = points(5)
    found = flat(estimates(estimator, "quadratic", path_from(chain, x, k, still(5))).flow)
    without = getattr(estimator, "gamma", None) == 0.0
    torch.testing.assert_close(
        found, chain.values[k](x) if without else chain.flow_score(x, k), **NEAR
    )


@pytest.mark.parametrize("spread", ["tilted", "policy"])
@pytest.mark.parametrize("estimator", UNBIASED, ids=name_of)
@pytest.mark.parametrize("k", [2, 4, STEPS])
def test_the_mean_over_sampled_paths_is_the_value_gradient(
    estimator: Estimator, k: int, spread: str
) -> None:
    """E[estimate - grad V_{k-1} | x_{k-1}] = 0: neither a mean nor a correlation is left.

    By kernels of the tilted covariance, and by those of a policy, sigma^2 I.
    """
    model, chain = solved("quadratic")
    if spread == "policy":
        chain = replace(chain, roots=[float(sigma) * IDENTITY for sigma in model.process.sigma])
    generator = torch.Generator().manual_seed(k)
    noise = torch.randn(STEPS + 1, PATHS, 2, generator=generator, dtype=torch.float64)
    path = path_from(chain, points(1, seed=9).expand(PATHS, 2), k, noise)
    x_next = flat(path.transitions.x_next)
    found = flat(estimates(estimator, "quadratic", path).target)
    error = found - chain.values[k - 1](x_next)
    features = torch.cat([torch.ones(PATHS, 1, dtype=torch.float64), x_next - x_next.mean(0)], 1)
    products = (error[:, :, None] * features[:, None]).flatten(1)
    standard_error = products.std(0) / PATHS**0.5
    assert (products.mean(0).abs() < 4 * standard_error + 1e-6).all()
    if isinstance(estimator, Adjoint):
        assert error.std(0).max() > 0.01  # there was noise to average


# Biased ones, and by how much.


def carried(chain: Chain, k: int) -> Tensor:
    """J_{k-1}^T ... J_1^T: takes E[beta grad r(x_0) | x_{k-1}] to grad V_{k-1}(x_{k-1})."""
    product = IDENTITY
    for level in range(1, k):
        product = chain.kernels[level].slope.T @ product
    return product


@pytest.mark.parametrize("k", [2, 4, STEPS])
@pytest.mark.parametrize("reward", list(REWARDS))
def test_the_bias_of_the_terminal_estimate(reward: str, k: int) -> None:
    """A number in place of the Jacobians: s_{k-1} (J_{k-1}^T ... J_1^T)^-1 grad V_{k-1}."""
    model, chain = solved(reward)
    x_next = points(5)
    path = path_through(chain, points(5, seed=1), x_next, k, still(5))
    found = flat(estimates(Terminal(), reward, path).target)
    truth = chain.values[k - 1](x_next)
    scale = model.process.alpha_bar[k - 1].double().sqrt()
    torch.testing.assert_close(found, scale * truth @ carried(chain, k).inverse().T, **NEAR)
    assert (found - truth).abs().max() > 1e-3


@pytest.mark.parametrize("k", [2, 4, STEPS])
@pytest.mark.parametrize("reward", list(REWARDS))
def test_the_bias_of_the_forward_looking_estimate(reward: str, k: int) -> None:
    """It is what the exact flow score would have added."""
    _, chain = solved(reward)
    x_next = points(5)
    path = path_through(chain, points(5, seed=1), x_next, k, still(5))
    bias = flat(estimates(ForwardLooking(), reward, path).target) - chain.values[k - 1](x_next)
    torch.testing.assert_close(bias, -chain.flow_score(x_next, k - 1), **NEAR)
    assert bias.abs().max() > 1e-3


@pytest.mark.parametrize("k", [3, 4, STEPS])
@pytest.mark.parametrize("stride", [2, 5])
def test_the_bias_of_long_strides(stride: int, k: int) -> None:
    """A jump has the slope of the noising's E[x_j | x_k], sqrt(a_k / a_j) S_j S_k^-1."""
    sampler = ("ddim", 0.4)
    model, chain = solved("quadratic", *sampler)
    x_next = points(5)
    path = path_through(chain, points(5, seed=1), x_next, k, still(5))
    found = flat(estimates(Adjoint(stride=stride), "quadratic", path, sampler).target)
    alpha_bar = model.process.alpha_bar.double()
    marginals = [a * COVARIANCE + (1 - a) * IDENTITY for a in alpha_bar]
    product, level = IDENTITY, 0
    while level < k - 1:
        to = min(level + stride, k - 1)
        slope = (alpha_bar[to] / alpha_bar[level]).sqrt() * marginals[level]
        slope = slope @ marginals[to].inverse() if to > level + 1 else chain.kernels[to].slope
        product, level = slope.T @ product, to
    truth = chain.values[k - 1](x_next)
    torch.testing.assert_close(found, truth @ carried(chain, k).inverse().T @ product.T, **NEAR)
    assert (found - truth).abs().max() > 1e-3
