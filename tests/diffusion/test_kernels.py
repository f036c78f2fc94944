"""The kernels' scores against torch.distributions, by autograd and by finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.diffusion import (
    Prediction,
    ReverseProcess,
    build_process,
    kernel_mean,
    noising_scores,
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
