"""How a value gradient moves a kernel's mean, against quadrature over a mixture on a line."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process, check_step, kernel_mean, predict_from, value_step
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.value_step import Step
from nablaflow.diffusion.variance import widened
from nablaflow.errors import UserError
from tests.support.schedules import STABLE_DIFFUSION

SAMPLERS = ["ddim", "ddpm", "sde-dpmsolver++"]
BETA = 1.7
NODES = torch.linspace(-6.0, 6.0, 6001, dtype=torch.float64)


def log_prior(x: Tensor) -> Tensor:
    """Three modes of unequal weight and width."""
    weights, means, deviations = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([0.5, 0.3, 0.2], [-1.2, 0.4, 1.9], [0.3, 0.5, 0.2])
    )
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.Normal(means, deviations)
    ).log_prob(x)


def reward(x: Tensor) -> Tensor:
    return torch.sin(1.3 * x) + 0.4 * x


def posterior(x: Tensor, alpha_bar: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_k] under the tilt, and log E[exp(beta r) | x_k] up to a constant.

    By sums over a fine lattice of x_0.
    """
    log_noise = -0.5 * (x[:, None] - alpha_bar.sqrt() * NODES) ** 2 / (1 - alpha_bar)
    log_weight = log_prior(NODES) + beta * reward(NODES) + log_noise
    return torch.softmax(log_weight, 1) @ NODES, torch.logsumexp(log_weight, 1)


def mean_by(x0_hat: Tensor, x: Tensor, k: Tensor, process: ReverseProcess) -> Tensor:
    """The kernel's mean, from the process's own coefficients, for any posterior mean."""
    states, ends = (values.reshape(-1, 1, 1, 1) for values in (x, x0_hat))
    alpha_bar = process.alpha_bar[k].double().reshape(-1, 1, 1, 1)
    prediction = predict_from(ends, states, alpha_bar, "sample")
    return kernel_mean(process, states, prediction, k).flatten()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_the_exact_step_is_the_shift_of_the_tilts_posterior_mean(sampler: str, steps: int) -> None:
    process = build_process(STABLE_DIFFUSION, sampler, steps, 1.0, sigma_floor=0.01)
    table = value_step("exact", process)
    x = torch.tensor([-2.1, -0.7, 0.2, 1.4], dtype=torch.float64)
    for level in range(2, steps + 1):
        alpha_bar, k = process.alpha_bar[level].double(), torch.full((4,), level)
        shift = mean_by(posterior(x, alpha_bar, BETA)[0], x, k, process) - mean_by(
            posterior(x, alpha_bar, 0.0)[0], x, k, process
        )
        width = 1e-4

        def value(at: Tensor, alpha_bar: Tensor = alpha_bar) -> Tensor:
            return posterior(at, alpha_bar, BETA)[1] - posterior(at, alpha_bar, 0.0)[1]

        gradient = (value(x + width) - value(x - width)) / (2 * width)
        assert table.level[level] == level
        # The coefficients are of float32, and near the image they are differences of near numbers.
        torch.testing.assert_close(table.scale[level] * gradient, shift, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_steps_meet_where_the_steps_are_short(sampler: str) -> None:
    process = build_process(STABLE_DIFFUSION, sampler, 500, 1.0, sigma_floor=0.001)
    exact, published = (value_step(name, process).scale[100:] for name in ("exact", "published"))
    torch.testing.assert_close(exact, published, rtol=0.06, atol=0.0)


def test_the_published_step_is_the_variance_times_what_the_next_state_says() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 10, 1.0, sigma_floor=0.01)
    table = value_step("published", process)
    torch.testing.assert_close(table.scale[1:], process.sigma[1:].double().square())
    assert table.level.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("variance", "step"), [("posterior", "published"), ("analytic", "exact")])
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_which_step_tilts_where_the_sampler_ends(steps: int, variance: str, step: Step) -> None:
    """A normal prior, where r(x0_hat) says all of a linear reward: the tilt moves by the variance.

    The kernels of either variance end in a normal of their own, and what x_K decides is not theirs.
    """
    process = build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.0)
    if variance == "analytic":
        process = widened(process, 1.0 - process.alpha_bar)
    table, level = value_step(step, process), torch.arange(1, steps + 1)
    one, signal = torch.ones(steps, dtype=torch.float64), process.alpha_bar.double().sqrt()
    through = mean_by(signal[level], one, level, process).cumprod(0)
    onward = torch.cat([one[:1], through[:-1]])  # of x_{k-1} to the end
    gradient = signal[table.level[level]]
    shift = (table.scale[level] * gradient * onward).sum()
    spread = (process.sigma[level].double() * onward).square().sum()
    torch.testing.assert_close(shift, spread, rtol=2e-3, atol=0.0)
    other = value_step("exact" if step == "published" else "published", process)
    elsewhere = (other.scale[level] * signal[other.level[level]] * onward).sum()
    assert (elsewhere > 1.1 * spread) == (step == "published")


def test_from_pure_noise_the_published_step_is_taken() -> None:
    """At alpha_bar 0 Tweedie's factor is infinite and the value gradient 0; sigma is finite."""
    process = build_process(STABLE_DIFFUSION, "ddim", 10, 1.0, sigma_floor=0.01)
    alpha_bar = process.alpha_bar.clone()
    alpha_bar[10] = 0.0
    table = value_step("exact", replace(process, alpha_bar=alpha_bar))
    assert table.level.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert table.scale.isfinite().all()
    assert table.scale[10] == process.sigma[10].double().square()


def test_the_exact_step_is_refused_where_the_means_are_not_posterior() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 10, 0.5, sigma_floor=0.01)
    with pytest.raises(UserError, match=r"method\.step: .*sampler\.eta=1"):
        check_step("exact", process)
    check_step("published", process)
