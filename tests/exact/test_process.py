"""The laboratory's sampler against closed forms and quadrature."""

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import kernel_mean, mean_per_x0, predict_from, sample_trajectories
from nablaflow.errors import UserError
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.paths import ALPHA_BAR, TIMESTEPS
from nablaflow.exact.process import MOMENT_SAMPLES, exact_process
from nablaflow.models import Condition

NORMAL = GaussianMixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]])
SKEWED = GaussianMixture([[0.0, 0.0]], [[[1.7, 0.4], [0.4, 0.3]]])
LINE = GaussianMixture([[-1.0], [0.9], [1.2]], [[[0.05]], [[0.2]], [[0.1]]], [0.5, 0.3, 0.2])


class Zero(nn.Module):
    def forward(self, x: Tensor, timestep: Tensor, x0_hat: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_noise_levels_follow_a_logistic_distribution_from_clean_to_noise() -> None:
    """The share of timesteps whose signal over noise is above e^s is 1 / (1 + e^(s / 1.5))."""
    log_snr = (ALPHA_BAR / (1 - ALPHA_BAR)).log()
    assert (ALPHA_BAR.diff() < 0).all()
    for s in (-6.0, -2.0, 0.0, 1.0, 5.0):
        share = float((log_snr > s).double().mean())
        assert share == pytest.approx(float(torch.sigmoid(torch.tensor(-s / 1.5))), abs=1e-3)
    process = exact_process(NORMAL, 10)
    assert float(process.alpha_bar[0]) == 1.0
    assert float(process.alpha_bar[10]) == pytest.approx(1e-5, rel=0.2)
    torch.testing.assert_close(
        process.alpha_bar[1:].double(), ALPHA_BAR[process.timestep[1:]], rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("steps", [3, 10])
def test_analytic_variances_are_those_of_the_next_state_by_quadrature(steps: int) -> None:
    """E Var(x_{k-1} | x_k) of the noising process, with no kernel's formula in it."""
    process = exact_process(LINE, steps)
    grid = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    for k in range(2, steps + 1):
        here, following = process.alpha_bar.double()[[k, k - 1]].tolist()
        before = LINE.log_prob(grid[:, None], following)
        kept = here / following
        noising = torch.distributions.Normal(kept**0.5 * grid, (1 - kept) ** 0.5)
        joint = before + noising.log_prob(grid[::4, None])
        posterior, marginal = joint.softmax(1), joint.logsumexp(1).softmax(0)
        mean = posterior @ grid
        expected = float(marginal @ (posterior @ grid.square() - mean.square()))
        tolerance = 4 * (2 / MOMENT_SAMPLES) ** 0.5
        assert float(process.sigma[k]) ** 2 == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("steps", [3, 10])
def test_posterior_variances_are_those_of_ddim_with_the_images_floor(steps: int) -> None:
    process = exact_process(SKEWED, steps, "posterior")
    here, following = process.alpha_bar.double()[1:], process.alpha_bar.double()[:-1]
    expected = ((1 - following) / (1 - here) * (1 - here / following)).sqrt().clamp_min(0.01)
    torch.testing.assert_close(process.sigma[1:].double(), expected, rtol=1e-3, atol=0)
    wide = exact_process(SKEWED, steps)
    assert torch.equal(process.alpha_bar, wide.alpha_bar)
    assert torch.equal(process.from_x0, wide.from_x0)
    assert (wide.sigma[1:] > process.sigma[1:]).all()


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_of_a_round_normal_the_variances_add_up_to_the_priors(steps: int) -> None:
    """All kernels are affine: the variance of x_0 is known, with as few steps as one likes."""
    process = exact_process(NORMAL, steps)
    variance = 1.0
    for k in range(steps, 0, -1):
        alpha_bar, following = float(process.alpha_bar[k]), float(process.alpha_bar[k - 1])
        # E[x_{k-1} | x_k] = cov(x_{k-1}, x_k) x_k, as x_k has the variance 1
        slope = (alpha_bar / following) ** 0.5
        sigma = float(process.sigma[k])
        assert sigma**2 == pytest.approx(1 - slope**2, rel=0.03)  # of x_{k-1} given x_k
        variance = slope**2 * variance + sigma**2
    assert variance == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("steps", [2, 5])
def test_of_a_round_normal_few_steps_sample_the_prior(steps: int) -> None:
    prior = GaussianMixture([[5.0, -2.0]], [[[4.0, 0.0], [0.0, 4.0]]])
    process = exact_process(prior.standardized(), steps)
    model = MixtureModel(prior, process, Zero(), PassCounter())
    n = 20_000
    x0 = sample_trajectories(
        lambda x, k: model.predict(x, k, Condition()),
        process,
        model.state_shape,
        torch.Generator().manual_seed(2),
        torch.device("cpu"),
        n=n,
    ).x0
    points = model.points(x0)
    error = 2.0 / n**0.5
    assert (points.mean(0) - prior.means[0]).abs().max() < 4 * error
    # Monte Carlo has an error of sqrt(2 / n) here, and of about 0.01 in the process's variances.
    torch.testing.assert_close(points.T.cov(), prior.covariances[0], rtol=0.06, atol=0.12)


def test_ddims_own_variance_would_have_been_too_small() -> None:
    """What x_k leaves open of x_0 is a large part of the whole when steps are few."""
    process = exact_process(NORMAL, 5)
    for k in range(2, 6):
        here, following = float(process.alpha_bar[k]), float(process.alpha_bar[k - 1])
        ddim = (1 - following) / (1 - here) * (1 - here / following)
        assert float(process.sigma[k]) ** 2 > 1.1 * ddim


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_mean_per_x0_is_the_slope_of_the_kernels_mean_at_one_state(steps: int) -> None:
    process = exact_process(NORMAL, steps)
    k = torch.arange(1, steps + 1)
    x = torch.full((steps, 1, 1, 1), 0.7, dtype=torch.float64)
    alpha_bar = process.alpha_bar.double()[k].reshape(-1, 1, 1, 1)

    def mean(x0: float) -> Tensor:
        output = torch.full_like(x, x0)
        prediction = predict_from(output, x, alpha_bar, "sample")
        return kernel_mean(process, x, prediction, k).flatten()

    expected = (mean(0.5 + 1e-3) - mean(0.5 - 1e-3)) / 2e-3
    found = mean_per_x0(process)
    torch.testing.assert_close(found[1:], expected, rtol=1e-6, atol=1e-9)
    assert float(found[0]) == 0.0
    # Of q(x_{k-1} | x_k, x_0) it is known: sqrt(a_{k-1}) (1 - a_k / a_{k-1}) / (1 - a_k).
    here, following = process.alpha_bar.double()[1:], process.alpha_bar.double()[:-1]
    known = following.sqrt() * (1 - here / following) / (1 - here)
    torch.testing.assert_close(found[1:], known, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 61, 1000])
def test_any_number_of_steps_up_to_the_schedules(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nablaflow.exact.process.MOMENT_SAMPLES", 100)
    prior = GaussianMixture([[0.0]], [[[1.0]]])
    process = exact_process(prior, steps)
    assert process.steps == steps
    assert len(process.timestep[1:].unique()) == steps
    assert (process.sigma[1:] > 0).all()
    assert process.sigma.isfinite().all()
    assert process.clip is None
    with pytest.raises(UserError, match=r"^sampler\.steps: 1001 are more than the model's 1000"):
        exact_process(prior, TIMESTEPS + 1)


def test_a_process_depends_on_no_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = exact_process(LINE, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(exact_process(LINE, 5).sigma, first.sigma)
