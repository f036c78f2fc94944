"""∇-TD(0) is the expectation of the reverse residual, where the policy meets the forward condition.

The policy's kernel scores x_{k-1} by d/dx_k [log p_theta - log p_ref], of expectation
-J_ref(x_k)^T (mu_theta - mu_ref) / sigma_k^2 over x_{k-1} ~ p_theta. Meets the policy the forward
condition, this is -J_ref(x_k)^T E[grad V_{k-1}(x_{k-1})]. Expectations are by quadrature.
"""

import pytest
import torch
from torch import Tensor, nn

from nablaflow.estimators import (
    Estimator,
    ForwardLookingFlow,
    Path,
    TemporalDifference,
    ValueGradients,
)
from nablaflow.methods import Losses, Method, NablaTD
from tests.support.numeric import normal_quadrature
from tests.support.paper import paper
from tests.support.paths import Bent, bent_problem, path_of, random_states, training_batch

STEPS = 4
STATE = torch.tensor([0.4, -0.9], dtype=torch.float64)
NODES, WEIGHTS = normal_quadrature(16)


class Forced(nn.Module):
    """A change of the noise prediction that is ``offset`` at one state, and bent around it."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset)
        self.slope = torch.tensor([[0.4, -0.7], [0.2, 0.5]], dtype=torch.float64)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.offset + torch.sin((x - STATE) @ self.slope)


def shifted(k: int, shift: Tensor, steps: int = STEPS) -> Bent:
    """A bent problem whose policy moves the kernel's mean by ``shift`` at `STATE`."""
    bent = bent_problem(steps=steps)
    process = bent.model.process
    alpha_bar = float(process.alpha_bar[k])
    per_x0 = ((1 - alpha_bar) / alpha_bar) ** 0.5
    per_noise = float(process.from_epsilon[k]) - float(process.from_x0[k]) * per_x0
    bent.model.network = Forced(shift / per_noise)
    return bent


def kernel_paths(bent: Bent, k: int) -> Path:
    """x_k at `STATE`, x_{k-1} at each node of the policy's kernel; the rest is of no importance."""
    n, sigma = len(NODES), float(bent.model.process.sigma[k])
    states = random_states(STEPS, n, 2, seed=3)
    states[k] = STATE
    with torch.no_grad():
        mean = bent.mean(STATE, k, "two", policy=True)
    states[k - 1] = (mean + sigma * NODES).reshape(n, 1, 1, 2)
    return path_of(states, [[k]] * n, bent.model.condition(["two"] * n), ["two"] * n)


def expectation(estimator: Estimator, bent: Bent, path: Path) -> ValueGradients:
    found = estimator.estimate(path, bent.networks, bent.beta)
    weights = WEIGHTS[path.transitions.trajectory][:, None, None, None]
    assert found.flow is not None
    return ValueGradients(
        (weights * found.target).sum(0, keepdim=True),
        (weights * found.flow).sum(0, keepdim=True),
    )


def met(k: int) -> Bent:
    """The policy whose shift is sigma^2 E[b_{k-1}(x_{k-1})] under its own kernel."""
    shift = torch.zeros(2, dtype=torch.float64)
    for _ in range(200):
        bent, before = shifted(k, shift), shift
        wanted = expectation(TemporalDifference(td_lambda=0.0), bent, kernel_paths(bent, k)).target
        shift = float(bent.model.process.sigma[k]) ** 2 * wanted.flatten()
        if (shift - before).abs().max() < 1e-13:
            return bent
    raise AssertionError("the iteration has not ended")


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_where_the_forward_condition_is_met_the_targets_of_the_flow_agree(k: int) -> None:
    bent = met(k)
    path = kernel_paths(bent, k)
    by_jacobian, by_residual = (
        expectation(estimator, bent, path)
        for estimator in (TemporalDifference(td_lambda=0.0), ForwardLookingFlow())
    )
    torch.testing.assert_close(by_residual.flow, by_jacobian.flow, rtol=1e-8, atol=1e-8)
    assert by_jacobian.flow is not None
    assert by_jacobian.flow.abs().max() > 0.01
    # Neither has the other's noise: that of the residual is of the order 1 / sigma.
    residual = ForwardLookingFlow().estimate(path, bent.networks, bent.beta).flow
    assert residual is not None
    assert (residual - by_residual.flow).abs().max() > 0.1


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_where_it_is_not_they_differ_by_what_the_policy_lacks(k: int) -> None:
    shift = torch.tensor([0.05, -0.02], dtype=torch.float64)
    bent = shifted(k, shift)
    path = kernel_paths(bent, k)
    by_jacobian, by_residual = (
        expectation(estimator, bent, path)
        for estimator in (TemporalDifference(td_lambda=0.0), ForwardLookingFlow())
    )
    assert by_jacobian.flow is not None
    assert by_residual.flow is not None
    variance = float(bent.model.process.sigma[k]) ** 2
    lacking = shift / variance - by_jacobian.target.flatten()
    expected = bent.jacobian(STATE, k, "two").T @ lacking
    found = (by_residual.flow - by_jacobian.flow).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert expected.abs().max() > 0.01


def flow_gradient(bent: Bent, method: Method, term: str, path: Path) -> list[Tensor]:
    """Of the flow network's parameters by the expectation of one term of the loss."""
    flow = bent.networks.flow
    assert flow is not None
    batch = training_batch(path, method.value_estimator(), bent.networks, bent.beta)
    losses: Losses = method.losses(batch, bent.networks)
    expected = (WEIGHTS[path.transitions.trajectory] * losses.terms[term]).sum()
    return list(torch.autograd.grad(expected, list(flow.parameters())))


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_the_published_reverse_residual_trains_the_flow_as_nabla_td_does(k: int) -> None:
    bent = met(k)
    path = kernel_paths(bent, k)
    published = paper(beta=bent.beta, forward_looking_predictor="reference")
    ours = NablaTD(beta=bent.beta, td_lambda=0.0)
    expected = flow_gradient(bent, published, "reverse", path)
    found = flow_gradient(bent, ours, "flow", path)
    assert max(part.abs().max() for part in expected) > 1e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-11)
