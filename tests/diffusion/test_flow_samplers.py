"""Kernels of flow matching against diffusers' Euler step, published formulas and closed forms."""

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from nablaflow.diffusion import (
    FlowSchedule,
    ReverseProcess,
    build_process,
    check_step,
    kernel_mean,
    network_input,
    predict_from,
    sample_trajectories,
    value_step,
)
from nablaflow.diffusion.flow_schedule import flow_levels
from nablaflow.diffusion.levels import ddim_kernels
from nablaflow.diffusion.prediction import Prediction
from nablaflow.diffusion.process import at
from nablaflow.errors import UserError
from tests.diffusion.test_value_step import BETA, posterior
from tests.support.schedules import FLOW

SHAPE = (2, 3, 4, 4)
SD3 = FlowSchedule(FLOW)


def sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """s by k of Stable Diffusion 3's scheduler, from diffusers."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.double().flip(0)


def unit(s: Tensor) -> Tensor:
    return ((1 - s) ** 2 + s**2).sqrt()


def velocity(x: Tensor, timestep: float) -> Tensor:
    """Some smooth network."""
    return torch.sin(1.7 * x + timestep / 90) + 0.3 * x.roll(1, dims=-1)


def kernel(
    process: ReverseProcess, x: Tensor, v: Tensor, k: int, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_{s'} given x_s, both in the network's own units."""
    steps = torch.full((len(x),), k)
    state = x / unit(s[k])
    prediction = predict_from(v, state, at(process.alpha_bar, steps, state), "flow_prediction")
    following = unit(s[k - 1])
    return kernel_mean(process, state, prediction, steps) * following, process.sigma[k] * following


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [4, 28])
def test_ddim_without_noise_is_the_stock_euler_step(shift: float, steps: int) -> None:
    """The whole chain, each on its own: (1 - s') x0_hat + s' epsilon = x + (s' - s) v."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    process = ddim_kernels(flow_levels(FlowSchedule(dict(scheduler.config)), steps), 0.0)
    assert process.sigma.eq(0).all()
    generator = torch.Generator().manual_seed(0)
    theirs = ours = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    for k, timestep in zip(range(steps, 0, -1), scheduler.timesteps, strict=True):
        output = velocity(theirs, float(timestep))
        theirs = scheduler.step(output, timestep, theirs).prev_sample.double()
        alpha_bar = at(process.alpha_bar, torch.full((2,), k), ours)
        state = network_input(ours, alpha_bar, "flow_prediction")
        found = velocity(state, float(process.timestep[k]))
        prediction = predict_from(found, ours, alpha_bar, "flow_prediction")
        ours = kernel_mean(process, ours, prediction, torch.full((2,), k))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_euler_step_is_met_to_the_last_digits() -> None:
    s = torch.tensor([0.31, 0.64], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    alpha_bar = (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
    prediction = predict_from(v, x / unit(s[1]), alpha_bar[1], "flow_prediction")
    ddim = alpha_bar[0].sqrt() * prediction.x0_hat + (1 - alpha_bar[0]).sqrt() * prediction.epsilon
    torch.testing.assert_close(ddim * unit(s[0]), x + (s[0] - s[1]) * v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["memoryless", "ddim"])
def test_the_default_noise_is_the_posteriors_of_the_straight_line(name: str) -> None:
    """q(x_s' | x_s, x_0) by Bayes, from x_s = (a_s / a_s') x_s' + noise; no alpha_bar in it."""
    steps = 6
    process, s = build_process(SD3, name, steps, 1.0, 1e-9), sigmas(steps)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    for k in range(2, steps):
        here, after = s[k], s[k - 1]
        slope = (1 - here) / (1 - after)
        added = here**2 - slope**2 * after**2  # variance of x_s given x_s'
        x0_hat = x - here * v
        precision = slope**2 / added + 1 / after**2
        mean = (slope * x / added + (1 - after) * x0_hat / after**2) / precision
        found, deviation = kernel(process, x, v, k, s)
        torch.testing.assert_close(found, mean, rtol=2e-4, atol=1e-5)
        assert deviation.item() == pytest.approx(precision.item() ** -0.5, rel=2e-4)


def test_memoryless_noise_is_that_of_the_published_sde_in_the_limit() -> None:
    """g^2 = 2 s / (1 - s) (arXiv 2409.08861), per unit of s."""
    process, s = build_process(SD3, "memoryless", 900, 1.0, 1e-9), sigmas(900)
    for k in (300, 600, 800):
        variance = (process.sigma[k] * unit(s[k - 1])) ** 2
        expected = 2 * s[k] / (1 - s[k]) * (s[k] - s[k - 1])
        assert variance.item() == pytest.approx(expected.item(), rel=0.02)


def test_flow_grpos_kernel_is_the_published_one() -> None:
    """x + [v + g^2 / (2 s) (x + (1 - s) v)] d + g sqrt(-d) noise (arXiv 2505.05470)."""
    steps = 6
    process, s = build_process(SD3, "flow-grpo", steps, 1.0, 1e-9), sigmas(steps)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    for k in range(1, steps + 1):
        here, d = s[k], s[k - 1] - s[k]
        noise = 0.7 * math.sqrt(here / (1 - (s[k - 1] if here == 1 else here)))
        mean = x + (v + noise**2 / (2 * here) * (x + (1 - here) * v)) * d
        found, deviation = kernel(process, x, v, k, s)
        torch.testing.assert_close(found, mean, rtol=2e-4, atol=1e-5)
        assert deviation.item() == pytest.approx(noise * (-d).sqrt().item(), rel=1e-4)


def test_only_memoryless_kernels_take_the_exact_step() -> None:
    for name in ("memoryless", "ddim"):
        check_step("exact", build_process(SD3, name, 8, 1.0, 0.01))
    with pytest.raises(UserError, match=r"method\.step: .*flow-grpo"):
        check_step("exact", build_process(SD3, "flow-grpo", 8, 1.0, 0.01))


def test_names_and_settings_that_flow_matching_has_not_are_refused() -> None:
    with pytest.raises(UserError, match=r"sampler\.name: flow matching has no sampler 'ddpm'"):
        build_process(SD3, "ddpm", 8, 1.0, 0.01)
    for name in ("memoryless", "flow-grpo", "euler"):
        with pytest.raises(UserError, match=r"sampler\.eta: .*no eta"):
            build_process(SD3, name, 8, 0.5, 0.01)
    with pytest.raises(UserError, match=r"sampler\.variance: flow-grpo"):
        build_process(SD3, "flow-grpo", 8, 1.0, 0.01, torch.zeros(9))


def open_variance(s: Tensor, deviation: float) -> Tensor:
    """Var(x_0 | x_s) of x_0 ~ N(m, deviation^2)."""
    return 1.0 / (1.0 / deviation**2 + ((1 - s) / s) ** 2)


def law_of_samples(
    process: ReverseProcess, mean: float, deviation: float, n: int, pull: float = 0.0
) -> Tensor:
    """Samples of the reverse process with the exact velocity of N(mean, deviation^2).

    Args:
        pull: b of a reward b x_0, whose value gradient b d x0_hat / d x_s moves the velocity.
    """
    s = sigmas(process.steps).float()

    def predict(x: Tensor, k: Tensor) -> Prediction:
        here = s[k].reshape(-1, 1, 1, 1)
        x_s = x * unit(here)
        total = (1 - here) ** 2 * deviation**2 + here**2
        x0_hat = mean + (1 - here) * deviation**2 / total * (x_s - (1 - here) * mean)
        alpha_bar = at(process.alpha_bar, k, x)
        moved = -here * pull * deviation**2 / total  # -s / (1 - s) grad V, finite at s = 1 too
        return predict_from((x_s - x0_hat) / here + moved, x, alpha_bar, "flow_prediction")

    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    return sample_trajectories(predict, process, (1, 1, 1), generator, cpu, n=n).x0.flatten()


@pytest.mark.parametrize("kind", ["euler", "memoryless"])
def test_sampling_a_gaussian_gives_its_law(kind: str) -> None:
    """By the ODE in many steps; with kernels as wide as what x_s leaves open, in six."""
    mean, deviation, n = 0.7, 0.5, 20000
    if kind == "euler":
        process = build_process(SD3, "euler", 400, 1.0, 0.01)
        assert process.sigma.eq(0).all(), "no noise, and no floor under it"
    else:
        left_open = torch.cat([torch.zeros(1), open_variance(sigmas(6)[1:], deviation)])
        process = build_process(SD3, "memoryless", 6, 1.0, 1e-9, left_open)
    x0 = law_of_samples(process, mean, deviation, n)
    assert x0.mean().item() == pytest.approx(mean, abs=4 * deviation / n**0.5)
    assert x0.std().item() == pytest.approx(deviation, abs=4 * deviation / (2 * n) ** 0.5)


def spread_of(name: str, steps: int, deviation: float) -> float:
    """Of x_0, by the recursion of an affine chain's variance, in the network's own units."""
    process, s = build_process(SD3, name, steps, 1.0, 1e-9), sigmas(steps)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    variance = 1.0
    for k in range(steps, 0, -1):
        slope = (1 - s[k]) * deviation**2 / ((1 - s[k]) ** 2 * deviation**2 + s[k] ** 2)
        mean, noise = kernel(process, one, (1 - slope) / s[k] * one, k, s)
        variance = mean.item() ** 2 * variance + noise.item() ** 2
    return variance**0.5


@pytest.mark.parametrize(
    ("name", "spread"), [("memoryless", 0.3840), ("flow-grpo", 0.4582), ("euler", 0.4295)]
)
def test_few_steps_narrow_a_gaussian_by_as_much_as_is_documented(name: str, spread: float) -> None:
    assert spread_of(name, 20, 0.5) == pytest.approx(spread, abs=1e-4)
    process = build_process(SD3, name, 20, 1.0, 1e-9)
    found = law_of_samples(process, 0.7, 0.5, 20000).std().item()
    assert found == pytest.approx(spread, abs=4 * spread / 40000**0.5)


def test_what_memoryless_noise_aligns_the_euler_sampler_keeps() -> None:
    """The velocity that the exact step aims at is the tilt's own: no noise is needed to sample it.

    N(m, c^2) tilted by exp(b x) is N(m + b c^2, c^2).
    """
    mean, deviation, pull, n = 0.7, 0.5, 1.6, 20000
    process = build_process(SD3, "euler", 400, 1.0, 0.01)
    x0 = law_of_samples(process, mean, deviation, n, pull)
    expected = mean + pull * deviation**2
    assert x0.mean().item() == pytest.approx(expected, abs=4 * deviation / n**0.5)
    assert x0.std().item() == pytest.approx(deviation, abs=4 * deviation / (2 * n) ** 0.5)


@pytest.mark.parametrize("s", [0.95, 0.6, 0.1])
def test_the_exact_step_moves_the_velocity_by_the_value_gradient(s: float) -> None:
    """v_theta = v_ref - (s / (1 - s)) grad V(x_s), for a mixture on a line, by quadrature."""
    level = torch.tensor(s, dtype=torch.float64)
    alpha_bar = (1 - level) ** 2 / unit(level) ** 2
    x = torch.tensor([-2.1, -0.7, 0.2, 1.4], dtype=torch.float64)  # in the kernels' units

    def by_tilt(beta: float) -> Tensor:
        x0_hat = posterior(x, alpha_bar, beta)[0]
        return (x * unit(level) - x0_hat) / level  # v = (x_s - x0_hat) / s

    def value(x_s: Tensor) -> Tensor:
        state = x_s / unit(level)
        return posterior(state, alpha_bar, BETA)[1] - posterior(state, alpha_bar, 0.0)[1]

    x_s, width = x * unit(level), 1e-4
    gradient = (value(x_s + width) - value(x_s - width)) / (2 * width)
    expected = -s / (1 - s) * gradient
    torch.testing.assert_close(by_tilt(BETA) - by_tilt(0.0), expected, rtol=1e-6, atol=1e-7)


def test_the_exact_steps_table_is_that_move_of_the_velocity() -> None:
    """Through the kernel: the mean of x_s' moves by its slope in v times - s / (1 - s) grad V."""
    steps = 12
    process, s = build_process(SD3, "memoryless", steps, 1.0, 1e-9), sigmas(steps)
    table = value_step("exact", process)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for k in range(2, steps):
        gradient = 0.8  # of V by x_s; by the kernels' state it is n_s times that
        change = -s[k].item() / (1 - s[k].item()) * gradient
        moved, _ = kernel(process, x, torch.full_like(x, change), k, s)
        still, _ = kernel(process, x, torch.zeros_like(x), k, s)
        expected = ((moved - still) / unit(s[k - 1])).item()
        found = table.scale[k].item() * gradient * unit(s[k]).item()
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert table.level[steps] == steps - 1  # from pure noise the published step is taken
