"""What the residuals cost in passes of the denoiser and decodes, and that fewer change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import kernel_mean
from nablaflow.estimators import gamma_table
from nablaflow.methods import Method, NablaDB, Networks, ResidualNablaDB, TrainingBatch
from nablaflow.models import Condition
from tests.support.benchmarks import benchmark
from tests.support.bent import bent_networks, bent_reward
from tests.support.gaussian import any_transitions
from tests.support.paper import paper

Passes = benchmark("update_cost").Passes
BETA, STRENGTH = 1.5, 0.6


@pytest.fixture
def networks() -> Networks:
    return bent_networks()


PUBLISHED = ResidualNablaDB.published(BETA, 0.0)
EXACT = ResidualNablaDB(beta=BETA)


@pytest.mark.parametrize(
    ("method", "k", "forward", "backward", "decode"),
    [
        (PUBLISHED, 3, 3, 4, 2),
        (PUBLISHED, 1, 2, 1, 1),
        (EXACT, 3, 2, 2, 1),
        (EXACT, 1, 2, 2, 1),
        (NablaDB(beta=BETA), 3, 1, 2, 0),
        (NablaDB(beta=BETA), 1, 1, 2, 1),
    ],
)
def test_a_transition_costs_no_more_passes_than_its_formula_has(
    method: Method,
    k: int,
    forward: int,
    backward: int,
    decode: int,
    networks: Networks,
):
    """The published form has three networks' passes: the policy's and the reference's at x_k, the
    policy's at x_{k-1}; and backward one for each gradient by a state, and one for the weights."""
    if not method.uses_flow:
        networks = replace(networks, flow=None, flow_target=None)
    batch = any_transitions(networks.model, each=2, seed=5)
    batch = batch[(batch.transitions.k == k).nonzero()[:, 0]]
    found = Passes(networks.model).rows
    method.losses(batch, networks).total.sum().backward()
    assert {name: rows / len(batch) for name, rows in found.items() if rows} == {
        name: rows
        for name, rows in (("forward", forward), ("backward", backward), ("decode", decode))
        if rows
    }


def gradient(output: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(output, by, retain_graph=True)[0]


def as_it_is_written(batch: TrainingBatch, networks: Networks) -> Tensor:
    """Both residuals of all transitions, each term with a gradient of its own; the mean loss."""
    model, t, last = networks.model, batch.transitions, batch.transitions.k == 1
    flow = networks.flow
    assert flow is not None
    process, shape = model.process, (-1, 1, 1, 1)
    sigma, timestep = process.sigma[t.k].double().reshape(shape), process.timestep
    gamma = BETA * gamma_table("alpha_bar", process).double()
    x = t.x.detach().requires_grad_()
    policy = model.predict(x, t.k, Condition())
    mean = kernel_mean(process, x, policy, t.k)
    with model.reference():
        reference_mean = kernel_mean(process, x, model.predict(x, t.k, Condition()), t.k)

    def value(x0_hat: Tensor, by: Tensor, k: Tensor) -> Tensor:
        rewards = bent_reward(model.decode(x0_hat), batch.prompts)
        return gamma[k].reshape(shape) * gradient(rewards.sum(), by)

    def score(mean: Tensor) -> Tensor:
        return gradient((-0.5 * ((t.x_next - mean) / sigma).square()).sum(), x)

    after = t.x_next.detach().requires_grad_()
    ahead = model.predict(after, t.k - 1, Condition()).x0_hat
    value_next = value(torch.where(last.reshape(shape), after, ahead), after, t.k - 1)
    flow_next = flow(t.x_next, timestep[t.k - 1], Condition())
    target = value_next + torch.where(last.reshape(shape), 0.0, flow_next)
    pull = (mean - t.x_next) / sigma.square()
    prior = (reference_mean.detach() - t.x_next) / sigma.square()
    forward = pull - STRENGTH * prior - target
    flow_here = flow(t.x, timestep[t.k], Condition())
    reverse = score(mean) - STRENGTH * score(reference_mean) + value(policy.x0_hat, x, t.k)
    reverse = torch.where(last.reshape(shape), 0.0, reverse + flow_here)
    terminal = torch.where(last.reshape(shape), flow_next, 0.0)
    total = sum(part.square().flatten(1).mean(1) for part in (forward, reverse, terminal))
    assert isinstance(total, Tensor)
    return (sigma.flatten().square() * total).mean()


def test_fewer_passes_give_the_same_gradients(networks: Networks):
    """Relative 1e-6 of float64's own 1e-16: the products are summed in another order, no more."""
    batch = any_transitions(networks.model, each=2, seed=5)
    method = paper(beta=BETA, prior_strength=STRENGTH, reverse_last=False, forward_flow="attached")
    assert networks.flow is not None
    weights = [*networks.model.network.parameters(), *networks.flow.parameters()]
    expected = torch.autograd.grad(as_it_is_written(batch, networks), weights)
    found = torch.autograd.grad(method.losses(batch, networks).total.mean(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
