"""VGG-Flow against its control problem, solved by hand in flow matching's own units."""

import math

import pytest
import torch
from torch import Tensor, nn

from nablaflow.diffusion import Transitions
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import VGGFlow
from nablaflow.methods.contract import check_noise
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.flow_gaussian import (
    COVARIANCE,
    MEAN,
    VelocityChange,
    jacobian,
    model_of,
    norm_of,
    process_of,
    reference_velocity,
    times,
)
from tests.support.gaussian import AffineFlow, NetworkFlow, SmallNetwork, linear_reward
from tests.support.numeric import finite_difference

STEPS = 6
BETA = 1.7
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
BENT = torch.tensor([[0.8, 0.3], [0.3, -0.4]], dtype=torch.float64)


def control(steps: int, covariance: Tensor = COVARIANCE) -> list[Tensor]:
    """G_k for the reward DIRECTION . x_0: one Euler step of dG/ds = -J^T G after the other."""
    s, value = times(steps), [DIRECTION]
    for k in range(1, steps + 1):
        step = (s[k] - s[k - 1]) * jacobian(s[k], covariance)
        value.append(value[-1] - step.T @ value[-1])
    return value


def steered(steps: int, covariance: Tensor = COVARIANCE) -> VelocityChange:
    """v_ref - beta G_k."""
    table = -BETA * torch.stack(control(steps, covariance))
    return VelocityChange(steps, lambda x_s, k: table[k])


def batch_of(x_s: Tensor, next_s: Tensor, k: Tensor) -> TrainingBatch:
    """Transitions between states that are x_s over their norms."""
    s = times(STEPS)
    x = (x_s / norm_of(s[k])[:, None])[:, None, None]
    x_next = (next_s / norm_of(s[k - 1])[:, None])[:, None, None]
    transitions = Transitions(x, x_next, k, torch.zeros_like(x), torch.arange(len(k)))
    return TrainingBatch(transitions, Condition(), [""] * len(k))


def any_batch() -> TrainingBatch:
    """Two of each step but the first, at whose pure noise this model's epsilon says nothing."""
    k = torch.arange(1, STEPS).repeat_interleave(2)
    generator = torch.Generator().manual_seed(3)
    x_s, next_s = torch.randn(2, len(k), 2, generator=generator, dtype=torch.float64)
    return batch_of(x_s, next_s, k)


def quadratic_reward() -> NamedReward:
    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        x = images[:, 0].flatten(1)
        return x @ DIRECTION.to(x) + 0.5 * ((x @ BENT.to(x)) * x).sum(1)

    return NamedReward("quadratic", reward)


def bent_networks() -> Networks:
    small = SmallNetwork(STEPS, 2, seed=0)
    process = process_of("euler", STEPS)
    model = model_of(process, VelocityChange(STEPS, small))
    model.network.add_module("small", small)
    return Networks(model, quadratic_reward(), NetworkFlow(process, SmallNetwork(STEPS, 2, seed=1)))


# --- the optimum ----------------------------------------------------------------------------------


def test_all_losses_are_zero_at_the_optimal_control_of_a_linear_reward() -> None:
    process, s = process_of("euler", STEPS), times(STEPS)
    model = model_of(process, steered(STEPS))
    ahead = [(1 - s[k]).square() * DIRECTION for k in range(STEPS + 1)]
    correction = [value - own for value, own in zip(control(STEPS), ahead, strict=True)]
    flow = AffineFlow(process, torch.stack(correction))
    networks = Networks(model, linear_reward(DIRECTION), flow)
    terms = VGGFlow(beta=BETA).losses(any_batch(), networks).terms
    assert list(terms) == ["matching", "consistency", "terminal"]
    for name, term in terms.items():
        assert term.max() < 1e-9, name
    flow.offset.data[2] += 0.1
    moved = VGGFlow(beta=BETA).losses(any_batch(), networks).terms
    rows = any_batch().transitions.k
    assert (moved["matching"] > 1e-4).tolist() == (rows == 2).tolist()
    assert (moved["consistency"] > 1e-4).tolist() == ((rows == 2) | (rows == 3)).tolist()


@pytest.mark.parametrize("variance", [1.0, 0.25, 4.0])
def test_what_it_converges_to_is_no_tilt(variance: float) -> None:
    """Round normal images: shifted by pi / 2 sqrt(c) beta a, where the tilt's shift is c beta a."""
    steps, covariance = 800, variance * torch.eye(2, dtype=torch.float64)
    s, value = times(steps), control(steps, covariance)
    x = start = torch.zeros(2, dtype=torch.float64)
    for k in range(steps, 0, -1):
        for_free = jacobian(s[k], covariance) @ x  # around the mean, which moves by itself
        x = x + (s[k - 1] - s[k]) * (for_free - BETA * value[k])
    expected = 0.5 * math.pi * math.sqrt(variance) * BETA * DIRECTION
    torch.testing.assert_close(x - start, expected, rtol=0.02, atol=0.0)


# --- the published formulas -----------------------------------------------------------------------


def value_at(networks: Networks, x_s: Tensor, k: Tensor, trust: int) -> tuple[Tensor, Tensor]:
    """G, and v_theta: both by x_s, with the reward's gradient written out."""
    s = times(STEPS)[k][:, None]
    policy = reference_velocity(x_s, s[:, 0]) + networks.model.network.function(x_s, k)
    clean = torch.where(k[:, None] == 0, x_s, x_s - s * policy)
    weight = torch.where(k[:, None] == 0, 1.0, (1 - s) ** trust)
    assert isinstance(networks.flow, NetworkFlow)
    return weight * (DIRECTION + clean @ BENT) + networks.flow.network(x_s / norm_of(s), k), policy


@pytest.mark.parametrize(("name", "power"), [("squared", 2), ("linear", 1), ("one", 0)])
def test_the_losses_are_the_published_ones(name: str, power: int) -> None:
    networks, batch, s = bent_networks(), any_batch(), times(STEPS)
    method = VGGFlow(beta=BETA, trust=name, consistency_weight=0.3, terminal_weight=7.0)
    found = {key: term.detach() for key, term in method.losses(batch, networks).terms.items()}
    t = batch.transitions
    x_s = t.x[:, 0, 0] * norm_of(s[t.k])[:, None]
    next_s = t.x_next[:, 0, 0] * norm_of(s[t.k - 1])[:, None]
    with torch.no_grad():
        value, policy = value_at(networks, x_s, t.k, power)
        following, _ = value_at(networks, next_s, t.k - 1, power)
        reference = reference_velocity(x_s, s[t.k])
        pulled = torch.stack(
            [jacobian(s[k]).T @ g for k, g in zip(t.k.tolist(), following, strict=True)]
        )
        change = (following - value) / (s[t.k] - s[t.k - 1])[:, None]
        assert isinstance(networks.flow, NetworkFlow)
        end = networks.flow.network(next_s, torch.zeros_like(t.k)).square().mean(1)
    expected = {
        "matching": (policy - (reference - BETA * value)).square().mean(1),
        "consistency": 0.3 * (change - pulled).square().mean(1),
        "terminal": 7.0 * torch.where(t.k == 1, end, 0.0),
    }
    for key, term in expected.items():
        torch.testing.assert_close(found[key], term, rtol=1e-5, atol=1e-7)


def trains(term: Tensor, network: nn.Module) -> bool:
    parameters = list(network.parameters())
    parts = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
    return any(part is not None and bool(part.abs().max() > 1e-3) for part in parts)


def test_matching_trains_the_policy_alone_and_the_others_the_correction_alone() -> None:
    networks = bent_networks()
    assert networks.flow is not None
    terms = VGGFlow(beta=BETA).losses(any_batch(), networks).terms
    for name, term in terms.items():
        trained = [trains(term, each) for each in (networks.model.network, networks.flow)]
        assert trained == [name == "matching", name != "matching"], name


def test_the_consistency_gradient_holds_the_pulled_back_value_fixed() -> None:
    networks, batch, s = bent_networks(), any_batch(), times(STEPS)
    t = batch.transitions
    x_s = t.x[:, 0, 0] * norm_of(s[t.k])[:, None]
    next_s = t.x_next[:, 0, 0] * norm_of(s[t.k - 1])[:, None]
    assert isinstance(networks.flow, NetworkFlow)
    parameter = networks.flow.network.first
    start = parameter.detach().clone()
    with torch.no_grad():
        ahead = value_at(networks, next_s, t.k - 1, 2)[0]
        held = [jacobian(s[k]).T @ g for k, g in zip(t.k.tolist(), ahead, strict=True)]

    @torch.no_grad()
    def loss(values: Tensor) -> Tensor:
        parameter.data.copy_(values)
        here, ahead = (value_at(networks, x, k, 2)[0] for x, k in ((x_s, t.k), (next_s, t.k - 1)))
        change = (ahead - here) / (s[t.k] - s[t.k - 1])[:, None]
        return (change - torch.stack(held)).square().mean(1).sum()

    wanted = finite_difference(loss, start)
    parameter.data.copy_(start)
    term = VGGFlow(beta=BETA).losses(batch, networks).terms["consistency"].sum()
    (found,) = torch.autograd.grad(term, parameter)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_matching_gradient_holds_the_target_fixed() -> None:
    networks, batch = bent_networks(), any_batch()
    s, t = times(STEPS), batch.transitions
    x_s = t.x[:, 0, 0] * norm_of(s[t.k])[:, None]
    with torch.no_grad():
        target = -BETA * value_at(networks, x_s, t.k, 2)[0]
    parameter = networks.model.network.small.first
    start = parameter.detach().clone()

    def loss(values: Tensor) -> Tensor:
        parameter.data.copy_(values)
        return (networks.model.network.function(x_s, t.k) - target).square().mean(1).sum()

    wanted = finite_difference(loss, start)
    parameter.data.copy_(start)
    term = VGGFlow(beta=BETA).losses(batch, networks).terms["matching"].sum()
    (found,) = torch.autograd.grad(term, parameter)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_without_a_flow_network_only_the_reward_ahead_is_matched() -> None:
    networks = bent_networks()
    bare = Networks(networks.model, networks.reward)
    found = VGGFlow(beta=BETA).losses(any_batch(), bare)
    assert list(found.terms) == ["matching"]
    assert found.metrics["flow_score_norm"].abs().max() == 0


def test_long_reward_gradients_are_scaled_down() -> None:
    networks = bent_networks()
    bare = Networks(networks.model, networks.reward)
    s = times(STEPS)[any_batch().transitions.k]
    found = VGGFlow(beta=BETA, max_gradient=1e-3).losses(any_batch(), bare)
    expected = BETA * (1 - s).square() * 1e-3
    torch.testing.assert_close(
        found.metrics["value_gradient_norm"].double(), expected, rtol=1e-4, atol=0.0
    )


# --- what does not fit ----------------------------------------------------------------------------


def test_noise_is_refused_in_one_line() -> None:
    check_noise(VGGFlow(beta=1.0), noisy=False)
    with pytest.raises(UserError, match=r"^sampler\.name: vgg-flow controls the ODE[^\n]*euler$"):
        check_noise(VGGFlow(beta=1.0), noisy=True)


def test_the_mean_of_the_images_moves_by_itself() -> None:
    """The hand-written velocity is the model's own."""
    networks, batch, s = bent_networks(), any_batch(), times(STEPS)
    t = batch.transitions
    x_s = t.x[:, 0, 0] * norm_of(s[t.k])[:, None]
    with networks.model.reference(), torch.no_grad():
        prediction = networks.model.predict(t.x, t.k, Condition())
    found = (prediction.epsilon - prediction.x0_hat)[:, 0, 0]
    torch.testing.assert_close(found, reference_velocity(x_s, s[t.k]), rtol=1e-4, atol=1e-5)
    assert MEAN.abs().max() > 0
