"""Detailed balance and DAG-DB: by hand, zero at the exact flow, and what trains what."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.diffusion import ReverseProcess, build_process, kernel_mean
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import DagDB, DagKL
from nablaflow.methods.detailed_balance import DetailedBalance
from tests.support.balance import linear
from tests.support.gaussian import any_transitions
from tests.support.paths import Bent, PromptedFlow, bent_problem
from tests.support.schedules import STABLE_DIFFUSION

BETA = 2.0
STEPS = 6
SAMPLERS = [("ddim", 1.0), ("ddim", 0.4), ("ddpm", 1.0), ("sde-dpmsolver++", 1.0)]


def process_of(sampler: str = "ddim", eta: float = 1.0) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, sampler, STEPS, eta, sigma_floor=0.01)


def gammas(name: str | float, process: ReverseProcess) -> list[float]:
    """gamma_k by k, written out."""
    if name == "alpha_bar":
        return [1.0, *process.alpha_bar[1:].tolist()]
    return [1.0] + [1.0 if name == "one" else float(name)] * STEPS


# --- the residual ---------------------------------------------------------------------------------


def expected_residual(bent: Bent, batch: TrainingBatch, row: int, *, by_policy: bool) -> float:
    """log p_theta - log p_ref + V_k - V_{k-1}, with torch's own normal distribution."""
    t, prompt = batch.transitions, batch.prompts[row]
    k, x, x_next = int(t.k[row]), t.x[row].flatten(), t.x_next[row].flatten()
    sigma = bent.model.process.sigma[k].double()
    policy, reference = (bent.mean(x, k, prompt, policy=part) for part in (True, False))
    ratio = (
        Normal(policy, sigma).log_prob(x_next) - Normal(reference, sigma).log_prob(x_next)
    ).sum()

    def value(at: Tensor, level: int, *, average: bool) -> Tensor:
        if level == 0:
            return bent.beta * bent.reward(at, prompt)
        flow = bent.networks.flow_target if average else bent.networks.flow
        assert isinstance(flow, PromptedFlow)
        timestep = bent.model.process.timestep[level : level + 1]
        score = flow(at.reshape(1, 1, 1, -1), timestep, bent.model.condition([prompt]))
        x0_hat = bent.prediction(at, level, prompt, policy=by_policy)[0]
        return bent.beta * bent.gamma(level) * bent.reward(x0_hat, prompt) + score.mean()

    residual = ratio + value(x, k, average=False) - value(x_next, k - 1, average=True)
    return float(residual.detach())


@pytest.mark.parametrize("predictor", ["policy", "reference"])
def test_the_residual_by_hand(predictor: str) -> None:
    bent = bent_problem()
    batch = bent.random_path([[5, 1], [2, 4], [1, 3]]).batch()
    method = DagDB(beta=bent.beta, gamma="alpha_bar", forward_looking_predictor=predictor)
    found = method.losses(batch, bent.networks)
    assert list(found.terms) == ["balance"]
    for row in range(len(batch)):
        residual = expected_residual(bent, batch, row, by_policy=predictor == "policy")
        assert abs(residual) > 0.01
        balance = float(found.terms["balance"][row].detach())
        assert balance == pytest.approx(residual**2, rel=1e-4)
        assert float(found.metrics["residual_size"][row]) == pytest.approx(abs(residual), rel=1e-4)


# --- where the answer is known --------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
@pytest.mark.parametrize("gamma", ["one", "alpha_bar", 0.0])
@pytest.mark.parametrize("predictor", ["policy", "reference"])
@pytest.mark.parametrize("next_flow", ["attached", "detached-ema"])
def test_the_loss_is_zero_at_the_exact_flow_of_a_linear_reward(
    sampler: tuple[str, float], gamma: str | float, predictor: str, next_flow: str
) -> None:
    """At any states: the condition holds between all of them, constants included."""
    process = process_of(*sampler)
    problem = linear(process, BETA)
    networks = problem.networks(gammas(gamma, process), by_reference=predictor == "reference")
    method = DagDB(beta=BETA, gamma=gamma, forward_looking_predictor=predictor, next_flow=next_flow)
    losses = method.losses(any_transitions(problem.model, each=3), networks)
    assert losses.total.max() < 1e-9
    losses.total.sum().backward()
    assert networks.flow is not None
    for parameter in [*problem.model.network.parameters(), *networks.flow.parameters()]:
        assert parameter.grad.abs().max() < 1e-3  # the slope of a square of 1e-5


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_a_wrong_constant_of_the_flow_is_seen_on_both_sides_of_its_level(k: int) -> None:
    process = process_of()
    problem = linear(process, BETA)
    networks = problem.networks(gammas("one", process), by_reference=True)
    assert networks.flow is not None
    networks.flow.offset.data[k] += 0.1  # of both values, and so of their mean
    batch = any_transitions(problem.model)
    balance = DagDB(beta=BETA).losses(batch, networks).terms["balance"].detach()
    levels = batch.transitions.k
    expected = torch.where((levels == k) | (levels == k + 1), 0.01, 0.0).double()
    torch.testing.assert_close(balance, expected, rtol=1e-3, atol=1e-9)


# --- what trains what -----------------------------------------------------------------------------


def trained(networks: Networks, loss: Tensor) -> list[str]:
    parts = {
        "policy": networks.model.network,
        "flow": networks.flow,
        "target": networks.flow_target,
    }
    for part in parts.values():
        assert part is not None
        part.zero_grad()
    loss.sum().backward(retain_graph=True)
    return [
        name
        for name, part in parts.items()
        if part is not None
        and any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    ]


def test_each_term_trains_its_own_networks() -> None:
    bent = bent_problem()
    batch = bent.random_path([[5, 1], [2, 4]]).batch()
    t = batch.transitions
    with torch.no_grad():  # as on-policy: a ratio beyond the clipping has no gradient
        assert t.mean is not None
        prediction = bent.model.predict(t.x, t.k, batch.condition)
        t.mean.copy_(kernel_mean(bent.model.process, t.x, prediction, t.k))
    terms = DagDB(beta=bent.beta).losses(batch, bent.networks).terms
    assert trained(bent.networks, terms["balance"]) == ["policy", "flow"]
    terms = DagKL(beta=bent.beta).losses(batch, bent.networks).terms
    assert trained(bent.networks, terms["balance"]) == ["flow"]
    assert trained(bent.networks, terms["policy"]) == ["policy"]


def test_attached_the_flow_is_trained_at_both_ends() -> None:
    """Of one transition 3 -> 2, by the rows of the flow's biases that have a gradient."""
    bent = bent_problem()
    batch = bent.random_path([[3]]).batch()
    flow = bent.networks.flow
    assert isinstance(flow, PromptedFlow)
    for next_flow, levels in (("attached", [2, 3]), ("detached-ema", [3])):
        flow.zero_grad()
        method = DagDB(beta=bent.beta, next_flow=next_flow)
        method.losses(batch, bent.networks).total.sum().backward()
        assert flow.network.bias.grad.abs().amax(1).nonzero().flatten().tolist() == levels


def test_the_reward_is_never_asked_for_a_gradient() -> None:
    bent = bent_problem()
    seen: list[bool] = []

    def watched(images: Tensor, prompts: list[str]) -> Tensor:
        seen.append(images.requires_grad)
        return bent.networks.reward.function(images, prompts)

    networks = Networks(
        bent.model,
        type(bent.networks.reward)("watched", watched),
        bent.networks.flow,
        bent.networks.flow_target,
    )
    batch = bent.random_path([[5, 1]]).batch()
    DagDB(beta=1.0, forward_looking_predictor="policy").losses(batch, networks)
    assert seen == [False, False]


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DagDB, DagKL])
def test_what_does_not_fit_is_refused_in_one_line(kind: type[DetailedBalance]) -> None:
    process = process_of()
    kind(beta=1.0).check(process, flow=True, on_policy=True)
    with pytest.raises(UserError, match=rf"^flow: {kind.name} learns [^\n]*$"):
        kind(beta=1.0).check(process, flow=False, on_policy=True)
    with pytest.raises(UserError, match=r"^method\.gamma: 2 values for 7 levels[^\n]*$"):
        kind(beta=1.0, gamma=[1.0, 0.5]).check(process, flow=True, on_policy=True)
    regularized = kind(beta=1.0, output_regularization=1.0)
    with pytest.raises(UserError, match=r"^method\.output_regularization: [^\n]*$"):
        regularized.check(process, flow=True, on_policy=True)
    regularized.check(process, flow=True, on_policy=False)


@pytest.mark.parametrize("kind", [DagDB, DagKL])
def test_output_regularization_by_hand(kind: type[DetailedBalance]) -> None:
    bent = bent_problem()
    batch = bent.random_path([[5, 1], [2, 4]]).batch()
    method = kind(beta=bent.beta, output_regularization=0.7)
    found = method.losses(batch, bent.networks).terms["output_regularization"].detach()
    t = batch.transitions  # whose noise prediction at the rollout was 0
    for row, (k, prompt) in enumerate(zip(t.k.tolist(), batch.prompts, strict=True)):
        epsilon = bent.prediction(t.x[row].flatten(), k, prompt, policy=True)[1].detach()
        assert float(found[row]) == pytest.approx(0.7 * float(epsilon.square().mean()))
