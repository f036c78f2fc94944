"""The residuals of bent networks against finite differences, and which network each one trains."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from nablaflow.diffusion import kernel_mean
from nablaflow.errors import UserError
from nablaflow.methods import Method, NablaDB, Networks, TrainingBatch
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.bent import bent_reward
from tests.support.gaussian import (
    rows,
)
from tests.support.numeric import finite_difference
from tests.support.paper import paper

BETA = 1.5
STRENGTH = 0.6
METHODS = [paper, NablaDB]


def log_ratio_and_value(
    x: Tensor, batch: TrainingBatch, networks: Networks, predictor: str
) -> Tensor:
    """log p_theta - s log p_ref + beta alpha_bar r(x0_hat), as functions of x_k, summed."""
    model, k = networks.model, batch.transitions.k
    sigma = model.process.sigma[k].double().reshape(-1, 1, 1, 1)
    policy = model.predict(x, k, Condition())
    with model.reference():
        reference = model.predict(x, k, Condition())
    x_next = batch.transitions.x_next
    ratio = Normal(kernel_mean(model.process, x, policy, k), sigma).log_prob(x_next)
    prior = Normal(kernel_mean(model.process, x, reference, k), sigma).log_prob(x_next)
    x0_hat = (policy if predictor == "policy" else reference).x0_hat
    rewards = bent_reward(model.decode(x0_hat), batch.prompts)
    value = BETA * model.process.alpha_bar[k].double() * rewards
    return (ratio - STRENGTH * prior).sum() + value.sum()


@pytest.mark.parametrize("predictor", ["policy", "reference"])
def test_the_reverse_residual_is_the_derivative_by_the_state(
    predictor: str, networks: Networks, batch: TrainingBatch
) -> None:
    transitions = batch.transitions
    with torch.no_grad():
        gradient = finite_difference(
            lambda x: log_ratio_and_value(x, batch, networks, predictor), transitions.x
        )
        timestep = networks.model.process.timestep[transitions.k]
        residual = gradient + networks.flow(transitions.x, timestep, Condition())
    variance = networks.model.process.sigma[transitions.k].double().square()
    expected = 0.7 * variance * residual.square().flatten(1).mean(1)
    method = paper(
        beta=BETA,
        prior_strength=STRENGTH,
        reverse_weight=0.7,
        forward_looking_predictor=predictor,
    )
    found = method.losses(batch, networks).terms["reverse"]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_forward_residual_is_the_derivative_by_the_next_state(
    networks: Networks, batch: TrainingBatch
) -> None:
    model, transitions = networks.model, batch.transitions
    k, x = transitions.k, transitions.x
    sigma = model.process.sigma[k].double().reshape(-1, 1, 1, 1)

    @torch.no_grad()
    def imbalance(x_next: Tensor) -> Tensor:
        """log p_theta - s log p_ref - V_{k-1}, as functions of x_{k-1}, without the flow."""
        policy = kernel_mean(model.process, x, model.predict(x, k, Condition()), k)
        clean = model.predict(x_next, k - 1, Condition()).x0_hat
        with model.reference():
            reference = kernel_mean(model.process, x, model.predict(x, k, Condition()), k)
        last = (k == 1).reshape(-1, 1, 1, 1)
        rewards = bent_reward(model.decode(torch.where(last, x_next, clean)), batch.prompts)
        gamma = torch.where(k == 1, 1.0, model.process.alpha_bar[k - 1].double())
        ratio = Normal(policy, sigma).log_prob(x_next)
        prior = Normal(reference, sigma).log_prob(x_next)
        return (ratio - STRENGTH * prior).sum() - (BETA * gamma * rewards).sum()

    residual = finite_difference(imbalance, transitions.x_next)
    with torch.no_grad():
        flow = networks.flow(transitions.x_next, model.process.timestep[k - 1], Condition())
    residual -= torch.where((k == 1).reshape(-1, 1, 1, 1), 0.0, flow)
    expected = sigma.flatten().square() * residual.square().flatten(1).mean(1)
    method = paper(beta=BETA, prior_strength=STRENGTH, forward_flow="attached")
    found = method.losses(batch, networks).terms["forward"]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_residuals_of_plain_nabla_db_are_derivatives_of_detailed_balance(
    networks: Networks, batch: TrainingBatch
) -> None:
    model, k = networks.model, batch.transitions.k
    process = model.process
    sigma = process.sigma[k].double().reshape(-1, 1, 1, 1)
    levels = process.alpha_bar.double()
    a = (levels[k] / levels[k - 1]).reshape(-1, 1, 1, 1)

    @torch.no_grad()
    def imbalance(x: Tensor, x_next: Tensor) -> Tensor:
        mean = kernel_mean(process, x, model.predict(x, k, Condition()), k)
        backward = Normal(a.sqrt() * x_next, (1 - a).sqrt()).log_prob(x)
        return (Normal(mean, sigma).log_prob(x_next) - backward).sum()

    x, x_next = batch.transitions.x, batch.transitions.x_next
    with torch.no_grad():
        here = networks.flow(x, process.timestep[k], Condition())
        following = networks.flow(x_next, process.timestep[k - 1], Condition())
    terminal = BETA * finite_difference(
        lambda value: bent_reward(model.decode(value), batch.prompts).sum(), x_next
    )
    last = (k == 1).reshape(-1, 1, 1, 1)
    target = torch.where(last, terminal, following)
    residuals = {
        "forward": finite_difference(lambda value: imbalance(x, value), x_next) - target,
        "reverse": finite_difference(lambda value: imbalance(value, x_next), x) + here,
        "terminal": torch.where(last, following - terminal, 0.0),
    }
    found = NablaDB(beta=BETA, forward_flow="attached").losses(batch, networks).terms
    for name, residual in residuals.items():
        expected = sigma.flatten().square() * residual.square().flatten(1).mean(1)
        torch.testing.assert_close(found[name].detach(), expected, rtol=1e-5, atol=1e-6)


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))


def is_untouched(found: list[Tensor | None]) -> bool:
    return all(gradient is None or not gradient.any() for gradient in found)


@pytest.mark.parametrize("kind", METHODS)
def test_without_its_graph_the_reverse_residual_trains_the_flow_only(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    method = kind(beta=BETA, reverse_policy_graph=False)
    loss = method.losses(batch, networks).terms["reverse"].sum()
    on_flow = torch.autograd.grad(loss, list(networks.flow.parameters()), retain_graph=True)
    assert all(gradient.abs().max() > 1e-6 for gradient in on_flow)
    assert is_untouched(gradients(loss, networks.model.network))


@pytest.mark.parametrize("kind", METHODS)
def test_with_its_graph_the_reverse_residual_trains_the_policy_too(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    """The gradient is that of the loss itself; by the reference's x0_hat, none is held fixed."""
    settings = {"forward_looking_predictor": "reference"} if kind is paper else {}
    method = kind(beta=BETA, reverse_policy_graph=True, **settings)
    parameter = networks.model.network.second

    def loss(value: Tensor) -> Tensor:
        parameter.data = value
        return method.losses(batch, networks).terms["reverse"].sum()

    start = parameter.data.clone()
    (found,) = torch.autograd.grad(loss(start), [parameter])
    expected = finite_difference(loss, start)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", METHODS)
def test_the_forward_residual_trains_the_policy_by_its_own_gradient(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    settings = {"forward_looking_predictor": "reference"} if kind is paper else {}
    method = kind(beta=BETA, **settings)
    parameter = networks.model.network.second

    def loss(value: Tensor) -> Tensor:
        parameter.data = value
        return method.losses(batch, networks).terms["forward"].sum()

    start = parameter.data.clone()
    (found,) = torch.autograd.grad(loss(start), [parameter])
    expected = finite_difference(loss, start)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", METHODS)
def test_an_attached_flow_is_trained_by_the_forward_residual(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    loss = kind(beta=BETA, forward_flow="attached").losses(batch, networks).terms["forward"]
    found = gradients(loss.sum(), networks.flow)
    assert all(gradient is not None and gradient.abs().max() > 1e-6 for gradient in found)


@pytest.mark.parametrize("kind", METHODS)
def test_a_detached_flow_is_a_constant_with_the_averages_values(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    detached = kind(beta=BETA, forward_flow="detached-ema").losses(batch, networks)
    forward = detached.terms["forward"]
    for flow in (networks.flow, networks.flow_target):
        assert is_untouched(gradients_of_all(forward.sum(), flow))
    swapped = Networks(networks.model, networks.reward, networks.flow_target)
    attached = kind(beta=BETA, forward_flow="attached")
    expected = attached.losses(batch, swapped).terms["forward"]
    torch.testing.assert_close(forward, expected)
    own = attached.losses(batch, networks).terms["forward"]
    assert (own - forward).abs().max() > 1e-3


def gradients_of_all(loss: Tensor, network: nn.Module) -> list[Tensor | None]:
    parameters = list(network.parameters())
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True))


@pytest.mark.parametrize("kind", METHODS)
def test_nothing_trains_the_average_or_leaves_a_gradient_in_the_batch(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    kind(beta=BETA).losses(batch, networks).total.sum().backward()
    assert all(parameter.grad is None for parameter in networks.flow_target.parameters())
    assert not batch.transitions.x.requires_grad
    assert batch.transitions.x.grad is None
    assert batch.transitions.x_next.grad is None


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("graph", [False, True])
def test_the_loss_of_the_parts_is_the_loss_of_the_whole(
    kind: type[Method], graph: bool, networks: Networks, batch: TrainingBatch
) -> None:
    method = kind(beta=BETA, reverse_policy_graph=graph, output_regularization=0.3)
    parameters = [*networks.model.network.parameters(), *networks.flow.parameters()]

    def summed(*parts: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        total = sum(method.losses(rows(batch, part), networks).total.sum() for part in parts)
        return total.detach(), torch.autograd.grad(total, parameters)

    everything = torch.arange(len(batch))
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    whole = summed(everything)
    torch.testing.assert_close(summed(*everything.split(3)), whole)
    torch.testing.assert_close(summed(*order.split(1)), whole)


def test_the_logged_figures_are_what_their_names_say(
    networks: Networks, batch: TrainingBatch
) -> None:
    model, transitions = networks.model, batch.transitions
    metrics = paper(beta=BETA).losses(batch, networks).metrics
    sigma = model.process.sigma[transitions.k].double().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        own = model.predict(transitions.x, transitions.k, Condition())
        with model.reference():
            pretrained = model.predict(transitions.x, transitions.k, Condition())
    policy, reference = (
        kernel_mean(model.process, transitions.x, prediction, transitions.k)
        for prediction in (own, pretrained)
    )
    divergence = torch.distributions.kl_divergence(Normal(policy, sigma), Normal(reference, sigma))
    torch.testing.assert_close(metrics["kl"], divergence.flatten(1).sum(1))
    shift = (policy - reference).flatten(1).norm(dim=1)
    torch.testing.assert_close(metrics["mean_shift"], shift)


def test_output_regularization_is_the_squared_change_of_the_noise(
    networks: Networks, batch: TrainingBatch
) -> None:
    method = paper(beta=BETA, output_regularization=3.0)
    terms = method.losses(batch, networks).terms
    assert terms["output_regularization"].max() < 1e-20
    batch.transitions.epsilon.add_(torch.tensor([0.1, 0.3], dtype=torch.float64))
    terms = method.losses(batch, networks).terms
    expected = torch.full((len(batch),), 3.0 * (0.01 + 0.09) / 2, dtype=torch.float64)
    torch.testing.assert_close(terms["output_regularization"].detach(), expected)


def test_weights_scale_their_terms(networks: Networks, batch: TrainingBatch) -> None:
    names = ("forward", "reverse", "terminal")
    once = paper(beta=BETA).losses(batch, networks)
    factors = dict(zip(names, (2.0, 3.0, 5.0), strict=True))
    scaled = {f"{name}_weight": factor for name, factor in factors.items()}
    more = paper(beta=BETA, **scaled).losses(batch, networks)
    for name, factor in factors.items():
        torch.testing.assert_close(more.terms[name], factor * once.terms[name])
    torch.testing.assert_close(more.total, sum(more.terms.values()))


def test_without_a_flow_the_value_gradient_is_the_forward_looking_one(
    networks: Networks, batch: TrainingBatch
) -> None:
    alone = Networks(networks.model, networks.reward)
    losses = paper(beta=BETA).losses(batch, alone)
    assert losses.terms.keys() == {"forward", "reverse"}
    assert not losses.metrics["flow_score_norm"].any()
    process = networks.model.process
    with pytest.raises(UserError, match="flow: nabla-db"):
        NablaDB(beta=BETA).check(process, flow=False, on_policy=True)


@pytest.mark.parametrize("kind", METHODS)
def test_a_reward_gradient_that_is_not_finite_names_the_reward(
    kind: type[Method], networks: Networks, batch: TrainingBatch
) -> None:
    def broken(images: Tensor, prompts: list[str]) -> Tensor:
        return (images[:, 0] * 0.0).abs().sqrt().flatten(1).sum(1)  # infinite slope times 0

    bad = Networks(networks.model, NamedReward("broken", broken), networks.flow, networks.flow)
    with pytest.raises(UserError, match="gradient of 'broken'"):
        kind(beta=BETA).losses(batch, bad)
