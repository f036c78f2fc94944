"""Reward-weighted regression: its weights, and where the regression ends for a known tilt."""

import math

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import (
    ReverseProcess,
    Transitions,
    build_process,
    has_posterior_means,
)
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import RewardWeightedRegression
from nablaflow.models import Condition
from tests.support.chain import kernel_of
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.numeric import normal_quadrature
from tests.support.schedules import DDPM, STABLE_DIFFUSION

STEPS = 6
BETA = 1.2
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
SAMPLERS = ["ddim", "ddpm", "sde-dpmsolver++"]
X = torch.tensor([0.4, -0.8], dtype=torch.float64)


def process_of(sampler: str = "ddim", eta: float = 1.0, steps: int = STEPS) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, sampler, steps, eta, sigma_floor=0.01)


# --- weights --------------------------------------------------------------------------------------

SCORES = torch.tensor([1.0, 2.0, 3.0, 1000.0, 1000.5])
PROMPTS = ["a", "b", "a", "c", "c"]


def test_weights_have_the_mean_1_within_each_prompt_or_over_the_rollout() -> None:
    found = RewardWeightedRegression(beta=2.0).credits(SCORES, PROMPTS)
    low, high = torch.tensor([2.0, 6.0]).exp()
    expected = [2 * low / (low + high), 1.0, 2 * high / (low + high)]
    torch.testing.assert_close(found[:3], torch.tensor(expected))
    assert float(found[4] / found[3]) == pytest.approx(torch.tensor(1.0).exp().item(), rel=1e-3)
    whole = RewardWeightedRegression(beta=0.5, normalization="batch").credits(SCORES[:3], PROMPTS)
    assert float(whole.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(whole[1:] / whole[:-1], torch.full((2,), 0.5).exp())


# --- where the regression ends --------------------------------------------------------------------


def ends_of(model: GaussianModel, k: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the x_0 that the reference's chain reaches from X at k."""
    mean, covariance = X, torch.zeros(2, 2, dtype=torch.float64)
    for level in range(k, 0, -1):
        kernel = kernel_of(model, level)
        noise = model.process.sigma[level].double().square() * torch.eye(2, dtype=torch.float64)
        mean = kernel(mean)
        covariance = kernel.slope @ covariance @ kernel.slope.T + noise
    return mean, covariance


def batch_from(model: GaussianModel, k: int, ends: Tensor, credit: Tensor) -> TrainingBatch:
    """Transitions from X at k whose trajectories end at ``ends``."""
    n = len(ends)
    x = X.expand(n, 1, 1, 2)
    states = torch.zeros(STEPS + 1, n, 1, 1, 2, dtype=torch.float64)
    states[0] = ends[:, None, None]
    levels = torch.full((n,), k)
    transitions = Transitions(x, states[k - 1], levels, torch.zeros_like(x), torch.arange(n))
    return TrainingBatch(transitions, Condition(), [""] * n, credit=credit, x0=states[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("k", [1, 3, STEPS])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_from_the_reference_the_regression_ends_at_the_tilt(
    sampler: str, k: int, beta: float
) -> None:
    """r = a . x_0 moves a normal x_0 given x_k by beta covariance a; without beta, nowhere.

    The shift of the policy moves what it expects in proportion, so one step to the end is exact.
    """
    process = process_of(sampler)
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    networks = Networks(model, linear_reward(DIRECTION))
    mean, covariance = ends_of(model, k)
    nodes, weights = normal_quadrature(24)
    ends = mean + nodes @ torch.linalg.cholesky(covariance).T
    batch = batch_from(model, k, ends, torch.exp(beta * ends @ DIRECTION))
    mass = weights @ torch.exp(beta * ends @ DIRECTION)

    def gradient() -> Tensor:
        loss = RewardWeightedRegression(beta=beta).losses(batch, networks).total @ weights / mass
        (found,) = torch.autograd.grad(loss, model.network.shift)
        return found[k]

    start = gradient()
    expected = -beta * covariance @ DIRECTION  # what it expects less what the tilt does
    model.network.shift.data[k, 0] = 1.0
    slope = (gradient() - start)[0]
    model.network.shift.data[k, 0] = 0.0
    kept = process.alpha_bar[k].double() / process.alpha_bar[0].double()
    unit = kept / (1 - kept)  # of a squared noise in squares of x_0; the mean is over two values
    per_shift = (slope / unit).sqrt()
    torch.testing.assert_close(start, unit * per_shift * expected, rtol=1e-3, atol=1e-4 * unit)
    model.network.shift.data[k] -= start / slope
    assert gradient().abs().max() < 1e-6 * unit


def test_each_row_is_regressed_on_its_own_end_in_units_of_noise() -> None:
    process = process_of()
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    ends = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    credit = torch.tensor([0.3, 1.7], dtype=torch.float64)
    batch = batch_from(model, 1, ends, credit)
    found = RewardWeightedRegression(beta=1.0).losses(
        batch, Networks(model, linear_reward(DIRECTION))
    )
    expected = kernel_of(model, 1)(X)
    kept = float(process.alpha_bar[1] / process.alpha_bar[0])
    for row in range(2):
        error = float((expected - ends[row]).square().mean()) * kept / (1 - kept)
        loss = float(found.terms["regression"][row].detach())
        assert loss == pytest.approx(float(credit[row]) * error, rel=1e-3)
        assert float(found.metrics["error"][row].detach()) == pytest.approx(error, rel=1e-3)
        assert float(found.metrics["weight"][row]) == pytest.approx(float(credit[row]))


# --- the weights of the tilt ----------------------------------------------------------------------


LOG_RATIO = torch.tensor([0.3, 0.0, -0.2, 0.4, 0.1], dtype=torch.float64)


def test_the_weights_of_the_tilt_are_exponentials_of_mean_1() -> None:
    scores, prompts = torch.tensor([1.0, 2.0, 0.5]), ["a", "b", "a"]
    found = RewardWeightedRegression(beta=2.0, weights="tilt").credits(
        scores, prompts, LOG_RATIO[:3]
    )
    first, last = math.exp(2.0 - 0.3), math.exp(1.0 + 0.2)
    expected = [2 * first / (first + last), 1.0, 2 * last / (first + last)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_at_the_tilt_all_weights_are_1_whatever_the_rewards() -> None:
    """There log p_theta / p_ref of a trajectory is beta r - log Z, with a Z for each prompt."""
    scores, prompts = torch.tensor([1.0, 2.0, -3.0, 0.4, 5.0]), ["a", "b", "a", "b", "a"]
    log_z = torch.tensor([0.7, -1.0, 0.7, -1.0, 0.7], dtype=torch.float64)
    method = RewardWeightedRegression(beta=1.3, weights="tilt")
    found = method.credits(scores, prompts, 1.3 * scores.double() - log_z)
    torch.testing.assert_close(found, torch.ones(5), rtol=0.0, atol=1e-5)
    assert method.needs_path_ratio
    assert not RewardWeightedRegression(beta=1.3).needs_path_ratio


# --- what does not fit ----------------------------------------------------------------------------


def test_samplers_whose_noise_is_not_the_noising_process_are_refused() -> None:
    method = RewardWeightedRegression(beta=1.0)
    for sampler in SAMPLERS:
        for config in (STABLE_DIFFUSION, DDPM):
            for steps in (2, 10, 50):
                process = build_process(config, sampler, steps, 1.0, sigma_floor=0.01)
                assert has_posterior_means(process)
                method.check(process, flow=False, on_policy=False)
    for eta in (0.1, 0.9):
        with pytest.raises(
            UserError, match=r"^sampler: [^\n]*; set sampler\.name=ddim and sampler\.eta=1$"
        ):
            method.check(process_of(eta=eta), flow=False, on_policy=True)
