"""The kernels' scores against torch.distributions, by autograd and by finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.diffusion import (
    SAMPLERS,
    Prediction,
    ReverseProcess,
    build_process,
    jump_mean,
    kernel_mean,
    noising_scores,
    predict_from,
    score_of_next,
    score_of_state,
)
from tests.support.numeric import finite_difference
from tests.support.schedules import DDPM, STABLE_DIFFUSION

SHAPE = (2, 1, 2, 3)


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, x_next = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    return x, x_next


SIGMA = torch.tensor([0.3, 0.02], dtype=torch.float64).reshape(2, 1, 1, 1)


def curved_mean(x: Tensor) -> Tensor:
    return torch.tanh(1.3 * x) + 0.2 * x.roll(1, dims=-1).square()


def log_density(x_next: Tensor, x: Tensor) -> Tensor:
    return Normal(curved_mean(x), SIGMA).log_prob(x_next).sum()


def test_score_of_next_is_the_derivative_of_the_log_density(
    states: tuple[Tensor, Tensor],
) -> None:
    x, x_next = states
    expected = finite_difference(lambda value: log_density(value, x), x_next)
    found = score_of_next(x_next, curved_mean(x), SIGMA)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


def test_score_of_state_is_the_derivative_through_the_mean(
    states: tuple[Tensor, Tensor],
) -> None:
    x, x_next = states
    expected = finite_difference(lambda value: log_density(x_next, value), x)
    leaf = x.clone().requires_grad_()
    found = score_of_state(x_next, curved_mean(leaf), SIGMA, leaf, create_graph=False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    assert not found.requires_grad


def test_score_of_state_can_be_differentiated_by_parameters(
    states: tuple[Tensor, Tensor],
) -> None:
    x, x_next = states
    direction = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(SHAPE)
    slope = torch.tensor(0.8, dtype=torch.float64)

    def projected(value: Tensor, *, create_graph: bool) -> Tensor:
        leaf = x.clone().requires_grad_()
        mean = torch.tanh(value * leaf)
        found = score_of_state(x_next, mean, SIGMA, leaf, create_graph=create_graph)
        return (direction * found).sum()

    parameter = slope.clone().requires_grad_()
    (found,) = torch.autograd.grad(projected(parameter, create_graph=True), parameter)
    expected = finite_difference(lambda value: projected(value, create_graph=False), slope)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not projected(parameter, create_graph=False).requires_grad


def test_kernel_mean_takes_each_rows_own_coefficients(states: tuple[Tensor, Tensor]) -> None:
    x, epsilon = states
    table = [torch.tensor([0.0, *values]) for values in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])]
    process = ReverseProcess(
        timestep=torch.tensor([0, 1, 2]),
        alpha_bar=torch.tensor([1.0, 0.9, 0.5]),
        from_x=table[0],
        from_x0=table[1],
        from_epsilon=table[2],
        sigma=torch.ones(3),
    )
    x0_hat = x.square()
    found = kernel_mean(process, x, Prediction(x0_hat, epsilon), torch.tensor([2, 1]))
    torch.testing.assert_close(found[0], 2 * x[0] + 4 * x0_hat[0] + 6 * epsilon[0])
    torch.testing.assert_close(found[1], 1 * x[1] + 3 * x0_hat[1] + 5 * epsilon[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernel_mean_of_half_precision_states_is_float32(dtype: torch.dtype) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 20, 1.0, sigma_floor=0.01)
    x = torch.full((1, 1, 1, 2), 0.5, dtype=dtype)
    mean = kernel_mean(process, x, Prediction(x, x), torch.tensor([7]))
    assert mean.dtype == torch.float32
    factor = process.from_x0[7] + process.from_epsilon[7]
    torch.testing.assert_close(mean, torch.full((1, 1, 1, 2), 0.5) * factor)


@pytest.mark.parametrize("config", [STABLE_DIFFUSION, DDPM], ids=["stable-diffusion", "linear"])
@pytest.mark.parametrize("k", [1, 2, 11, 20])
def test_noising_scores_are_those_of_the_forward_process(
    config: dict, k: int, states: tuple[Tensor, Tensor]
) -> None:
    changed = config | {"timestep_spacing": "trailing"}
    process = build_process(changed, "ddim", 20, 1.0, sigma_floor=0.01)
    x, x_next = (state.clone().requires_grad_() for state in states)
    ratio = process.alpha_bar[k].double() / process.alpha_bar[k - 1].double()
    density: Callable[[Tensor], Tensor] = Normal(ratio.sqrt() * x_next, (1 - ratio).sqrt()).log_prob
    by_next, by_state = torch.autograd.grad(density(x).sum(), (x_next, x))
    found = noising_scores(process, x.detach(), x_next.detach(), torch.full((2,), k))
    torch.testing.assert_close(found, (by_next, by_state), rtol=1e-6, atol=1e-6)


COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
TRAILING = DDPM | {"timestep_spacing": "trailing", "clip_sample": False}


def points(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 1, 2, generator=generator, dtype=torch.float64)


def prediction_of(process: ReverseProcess, x: Tensor, x0: Tensor, k: Tensor) -> Prediction:
    """Of a network that says x0, whatever x is."""
    alpha_bar = process.alpha_bar[k].double().reshape(-1, 1, 1, 1)
    return predict_from(x0, x, alpha_bar, "sample")


def bridge_mean(process: ReverseProcess, x: Tensor, x0: Tensor, k: int, to: int) -> Tensor:
    """Of x_j given x_k and x_0, from the joint normal of the two noised states."""
    alpha_bar = process.alpha_bar.double()
    ratio = alpha_bar[k] / alpha_bar[to]
    mean, expected = alpha_bar[to].sqrt() * x0, alpha_bar[k].sqrt() * x0
    covariance = ratio.sqrt() * (1 - alpha_bar[to])
    return mean + covariance / (1 - alpha_bar[k]) * (x - expected)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.3), *((name, 1.0) for name in SAMPLERS)])
@pytest.mark.parametrize("config", [STABLE_DIFFUSION, TRAILING], ids=["scaled", "linear"])
def test_a_jump_of_one_step_is_the_kernels_own(config: dict, sampler: str, eta: float) -> None:
    process = build_process(config, sampler, 8, eta, sigma_floor=0.01)
    k = torch.arange(1, 9)
    x, x0 = points(8), points(8, seed=1)
    prediction = prediction_of(process, x, x0, k)
    found = jump_mean(process, x, prediction, k, k - 1)
    assert torch.equal(found, kernel_mean(process, x, prediction, k))
    if sampler == "sde-dpmsolver++" or eta != 1.0:
        return
    for row in range(8):
        expected = bridge_mean(process, x[row], x0[row], row + 1, row)
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_long_jump_is_the_conditional_mean_of_a_gaussian(sampler: str) -> None:
    """E[x_j | x_k] of noised N(MEAN, COVARIANCE), from their joint covariance; rows may differ."""
    process = build_process(TRAILING, sampler, 8, 1.0, sigma_floor=0.01)
    alpha_bar, identity = process.alpha_bar.double(), torch.eye(2, dtype=torch.float64)
    k, to = torch.tensor([8, 8, 7, 5, 3, 2]), torch.tensor([0, 6, 3, 1, 1, 0])
    x = points(len(k))
    means = [a.sqrt() * MEAN for a in alpha_bar]
    marginals = [a * COVARIANCE + (1 - a) * identity for a in alpha_bar]
    rows = list(zip(k.tolist(), to.tolist(), x[:, 0, 0], strict=True))
    x0_hat = torch.stack(
        [
            MEAN + alpha_bar[k].sqrt() * COVARIANCE @ marginals[k].inverse() @ (x - means[k])
            for k, _, x in rows
        ]
    )
    found = jump_mean(process, x, prediction_of(process, x, x0_hat.reshape(x.shape), k), k, to)
    for row, (here, there, state) in enumerate(rows):
        cross = (alpha_bar[here] / alpha_bar[there]).sqrt() * marginals[there]
        expected = means[there] + cross @ marginals[here].inverse() @ (state - means[here])
        torch.testing.assert_close(found[row, 0, 0], expected, rtol=1e-5, atol=1e-5)


def test_two_long_jumps_toward_one_clean_state_are_one() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 9, 1.0, sigma_floor=0.01)
    x, x0 = points(4), points(4, seed=1)
    k, between, to = (torch.full((4,), step) for step in (9, 5, 2))
    first = jump_mean(process, x, prediction_of(process, x, x0, k), k, between)
    second = jump_mean(process, first, prediction_of(process, first, x0, between), between, to)
    direct = jump_mean(process, x, prediction_of(process, x, x0, k), k, to)
    torch.testing.assert_close(second, direct, rtol=1e-6, atol=1e-7)
    ends = jump_mean(process, x, prediction_of(process, x, x0, k), k, torch.zeros_like(k))
    expected = bridge_mean(process, x, x0, 9, 0)
    torch.testing.assert_close(ends, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [61, 62, 103, 122])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_trailing_schedule_has_as_many_steps_as_were_asked_for(sampler: str, steps: int) -> None:
    """For some numbers diffusers' own timesteps have one more by rounding, of timestep -1."""
    process = build_process(TRAILING, sampler, steps, 1.0, sigma_floor=0.01)
    assert process.steps == steps
    timesteps = process.timestep[1:].tolist()
    assert timesteps == sorted(set(timesteps))
    assert timesteps[0] >= 0
    assert timesteps[-1] == 999
    assert (process.alpha_bar.diff() < 0).all()
    assert (process.sigma[1:] > 0).all()
