"""∇-TD and n-step: their recursions written out on a bent problem, and where they meet others."""

import pytest
import torch
from torch import Tensor

from nablaflow.estimators import Adjoint, ForwardLookingFlow, NStep, TemporalDifference
from nablaflow.estimators.forward_looking import Gamma
from tests.support.paths import Bent, bent_gradient, bent_problem, rows_of, state

KEEP = [[5, 1], [2, 4, 4], [3, 5, 1]]
STEPS = 5


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module", params=["ddim", "ddpm", "sde-dpmsolver++"])
def bent(request: pytest.FixtureRequest) -> Bent:
    return bent_problem(request.param, steps=STEPS)


@pytest.mark.parametrize("td_lambda", [0.0, 0.4, 1.0])
def test_nabla_td_is_its_recursion(bent: Bent, td_lambda: float) -> None:
    path = bent.random_path(KEEP)
    found = TemporalDifference(td_lambda=td_lambda).estimate(path, bent.networks, bent.beta)
    assert found.flow is not None
    assert not found.target.requires_grad
    assert not found.flow.requires_grad
    for index, row, k, prompt in rows_of(path):
        target = bent.beta * bent_gradient(path.x0[row : row + 1], [prompt]).flatten()
        for level in range(1, k):
            x = state(path, level, row)
            pulled = bent.jacobian(x, level, prompt).T @ target
            target = (1 - td_lambda) * bent.bootstrap(x, level, prompt) + td_lambda * pulled
        close(found.target[index], target)
        here = state(path, k, row)
        pulled = bent.jacobian(here, k, prompt).T @ target
        close(found.flow[index], pulled - bent.looked(here, k, prompt))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_n_step_is_a_bootstrap_taken_back(bent: Bent, n: int) -> None:
    path = bent.random_path(KEEP)
    found = NStep(n=n).estimate(path, bent.networks, bent.beta)
    assert found.flow is not None
    for index, row, k, prompt in rows_of(path):
        start = max(k - 1 - n, 0)
        target = bent.bootstrap(state(path, start, row), start, prompt)
        for level in range(start + 1, k):
            target = bent.jacobian(state(path, level, row), level, prompt).T @ target
        close(found.target[index], target)
        here = state(path, k, row)
        pulled = bent.jacobian(here, k, prompt).T @ target
        close(found.flow[index], pulled - bent.looked(here, k, prompt))


@pytest.mark.parametrize("estimator", [NStep(n=STEPS), TemporalDifference(td_lambda=1.0)], ids=str)
def test_their_far_end_is_the_adjoint(bent: Bent, estimator: NStep | TemporalDifference) -> None:
    path = bent.random_path(KEEP)
    found = estimator.estimate(path, bent.networks, bent.beta).target
    adjoint = Adjoint().estimate(path, bent.networks, bent.beta).target
    torch.testing.assert_close(found, adjoint, rtol=1e-12, atol=1e-12)


def test_their_near_ends_are_one(bent: Bent) -> None:
    """The bootstrap, which residual ∇-DB's forward condition has as its target too."""
    path = bent.random_path(KEEP)
    n_step, nabla_td, residual = (
        estimator.estimate(path, bent.networks, bent.beta)
        for estimator in (NStep(n=0), TemporalDifference(td_lambda=0.0), ForwardLookingFlow())
    )
    torch.testing.assert_close(n_step.target, nabla_td.target, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(n_step.flow, nabla_td.flow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(n_step.target, residual.target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 1.0])
def test_without_gamma_the_flow_score_is_the_whole_value_gradient(
    bent: Bent, td_lambda: float
) -> None:
    """A schedule of zeros is no other computation than one that is nearly so."""
    path = bent.random_path(KEEP)
    gammas: list[Gamma] = [0.0, 1e-12]
    for kind in (TemporalDifference(td_lambda=td_lambda), NStep(n=2), ForwardLookingFlow()):
        none, hardly = (
            kind.model_copy(update={"gamma": gamma}).estimate(path, bent.networks, bent.beta)
            for gamma in gammas
        )
        torch.testing.assert_close(none.target, hardly.target, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(none.flow, hardly.flow, rtol=1e-9, atol=1e-9)
