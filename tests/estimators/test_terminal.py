"""The terminal estimate: its scales by hand, and the case in which one of them is exact."""

import pytest
import torch

from nablaflow.diffusion import build_process
from nablaflow.estimators import Adjoint, Networks, Terminal
from nablaflow.estimators.terminal import Scale
from tests.support.gaussian import GaussianModel, linear_reward
from tests.support.paths import (
    Nothing,
    bent_gradient,
    bent_problem,
    path_of,
    random_states,
    rows_of,
)
from tests.support.schedules import STABLE_DIFFUSION

KEEP = [[5, 1], [2, 4, 4], [3, 5]]


@pytest.mark.parametrize("scale", ["one", "sqrt_alpha_bar", "alpha_bar", "sigma"])
def test_it_is_a_number_times_the_reward_gradient_of_the_own_trajectory(scale: Scale) -> None:
    bent = bent_problem()
    path, process = bent.random_path(KEEP), bent.model.process
    found = Terminal(scale=scale).estimate(path, bent.networks, bent.beta)
    assert found.flow is None
    for index, row, k, prompt in rows_of(path):
        number = {
            "one": 1.0,
            "sqrt_alpha_bar": float(process.alpha_bar[k - 1]) ** 0.5,
            "alpha_bar": float(process.alpha_bar[k - 1]),
            "sigma": float(process.sigma[max(k - 1, 1)]),
        }[scale]
        expected = number * bent.beta * bent_gradient(path.x0[row : row + 1], [prompt])
        torch.testing.assert_close(found.target[index], expected[0], rtol=1e-6, atol=1e-9)


def test_it_needs_neither_states_nor_a_pass_of_the_model() -> None:
    bent = bent_problem()
    path = bent.random_path(KEEP)
    before = Terminal().estimate(path, bent.networks, bent.beta).target
    bent.model.bend = float("nan")
    assert torch.equal(Terminal().estimate(path, bent.networks, bent.beta).target, before)
    assert not Terminal.needs_states
    assert not Terminal.uses_flow


def test_the_default_is_exact_for_a_linear_reward_of_a_standard_normal() -> None:
    """There grad V_k = sqrt(alpha_bar_k) beta a: E[x_0 | x_k] = sqrt(alpha_bar_k) x_k."""
    config = STABLE_DIFFUSION | {"set_alpha_to_one": True}
    process = build_process(config, "ddim", 5, 1.0, sigma_floor=0.01)
    identity = torch.eye(2, dtype=torch.float64)
    model = GaussianModel(process, torch.zeros(2, dtype=torch.float64), identity, Nothing())
    direction = torch.tensor([0.7, -1.1], dtype=torch.float64)
    networks = Networks(model, linear_reward(direction))
    path = path_of(random_states(5, 3, 2, seed=0), KEEP)
    terminal, adjoint = (
        kind.estimate(path, networks, 2.0).target for kind in (Terminal(), Adjoint())
    )
    alpha_bar = process.alpha_bar.double()[path.transitions.k - 1].reshape(-1, 1, 1, 1)
    expected = 2.0 * alpha_bar.sqrt() * direction
    torch.testing.assert_close(terminal, expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(adjoint, expected, rtol=1e-6, atol=0.0)
