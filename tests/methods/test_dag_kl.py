"""DAG-KL: its expected gradient is that of a KL divergence in closed form."""

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess, Transitions, build_process
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import DagKL
from nablaflow.models import Condition
from tests.support.balance import Linear, linear
from tests.support.chain import kernel_of
from tests.support.gaussian import any_transitions
from tests.support.numeric import normal_quadrature
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.5
STEPS = 5


def process_of() -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)


def problem(moved: float) -> tuple[Linear, Networks]:
    """The exact flow, and a policy ``moved`` so many deviations away from the exact one."""
    process = process_of()
    found = linear(process, BETA)
    networks = found.networks([1.0] * (STEPS + 1), by_reference=True)
    generator = torch.Generator().manual_seed(3)
    off = torch.randn(STEPS + 1, 2, generator=generator, dtype=torch.float64)
    found.model.network.shift.data += moved * process.sigma.double()[:, None] * off
    return found, networks


def from_one_state(found: Linear, k: int) -> tuple[TrainingBatch, Tensor]:
    """Transitions that the policy samples from one x_k, with the weights of a quadrature."""
    model = found.model
    nodes, weights = normal_quadrature(5)
    x = torch.tensor([[[[0.6, -0.9]]]], dtype=torch.float64).repeat(len(nodes), 1, 1, 1)
    levels = torch.full((len(nodes),), k)
    mean = kernel_of(model, k)(x.flatten(1)) + model.network.shift.detach()[k]
    x_next = (mean + model.process.sigma[k].double() * nodes)[:, None, None]
    rows, none = torch.arange(len(nodes)), torch.zeros_like(x)
    transitions = Transitions(x, x_next, levels, none, rows, mean.reshape(x.shape))
    return TrainingBatch(transitions, Condition(), [""] * len(nodes)), weights


def divergence(found: Linear, k: int, shift: Tensor) -> Tensor:
    """KL(N(mu_ref + shift, s^2) || p_ref exp(V_{k-1} - V_k)) at that state, integrated by hand."""
    x = torch.tensor([[0.6, -0.9]], dtype=torch.float64)
    variance = found.model.process.sigma[k].double().square()
    mean = kernel_of(found.model, k)(x) + shift
    expected = found.value(mean, k - 1) - found.value(x, k)
    return (0.5 * shift.square().sum() / variance - expected).squeeze()


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_the_expected_gradient_is_that_of_the_kl_divergence(k: int) -> None:
    found, networks = problem(moved=0.4)
    shift = found.model.network.shift
    at = shift.detach()[k].requires_grad_()
    (expected,) = torch.autograd.grad(divergence(found, k, at), at)
    assert expected.abs().max() > 0.05
    batch, weights = from_one_state(found, k)
    loss = DagKL(beta=BETA).losses(batch, networks).terms["policy"] @ weights
    (gradient,) = torch.autograd.grad(loss, shift)
    # A density counts by the mean over the two values of a state.
    torch.testing.assert_close(2 * gradient[k], expected, rtol=1e-4, atol=1e-6)


def test_the_divergence_is_zero_at_the_tilt_and_each_gradient_with_it() -> None:
    found, networks = problem(moved=0.0)
    for k in (1, 3, STEPS):
        assert divergence(found, k, found.model.network.shift.detach()[k]).abs() < 1e-6
    batch = any_transitions(found.model, each=3)
    losses = DagKL(beta=BETA).losses(batch, networks)
    assert losses.terms["balance"].max() < 1e-9
    assert losses.terms["policy"].abs().max() < 1e-4
    for row in range(len(batch)):
        (gradient,) = torch.autograd.grad(
            losses.terms["policy"][row], found.model.network.shift, retain_graph=True
        )
        sigma = float(found.model.process.sigma[batch.transitions.k[row]])
        assert gradient.abs().max() < 1e-4 / sigma**2


def test_the_flow_is_regressed_on_what_the_policy_leaves_it() -> None:
    """With a policy far away the value's slope by the flow's constant at k is 2 D, all else 0."""
    found, networks = problem(moved=1.0)
    batch, _ = from_one_state(found, 3)
    assert networks.flow is not None
    balance = DagKL(beta=BETA).losses(batch, networks).terms["balance"]
    x_next, variance = batch.transitions.x_next, found.model.process.sigma[3].double().square()
    shift = found.model.network.shift.detach()[3]
    reference = kernel_of(found.model, 3)(batch.transitions.x.flatten(1))
    ratio = (x_next.flatten(1) - reference - 0.5 * shift) @ shift / variance
    residual = ratio + found.value(batch.transitions.x, 3) - found.value(x_next, 2)
    torch.testing.assert_close(balance.detach(), residual.square(), rtol=1e-4, atol=1e-8)
    (gradient,) = torch.autograd.grad(balance.sum(), networks.flow.offset)
    expected = torch.zeros_like(gradient)
    expected[3] = 2 * residual.sum() / 2  # each of two values is half of the mean
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_policys_signal_can_be_bounded_and_weighed() -> None:
    found, networks = problem(moved=1.0)
    batch, _ = from_one_state(found, 3)
    free = DagKL(beta=BETA).losses(batch, networks)
    signal = free.terms["policy"].detach()  # on-policy the ratio is 1
    assert (signal.abs() > 0.5).any()
    assert (signal.abs() < 0.5).any()
    bounded = DagKL(beta=BETA, max_advantage=0.5, policy_weight=3.0).losses(batch, networks)
    torch.testing.assert_close(bounded.terms["policy"].detach(), 3 * signal.clamp(-0.5, 0.5))
    assert torch.equal(bounded.terms["balance"], free.terms["balance"])
