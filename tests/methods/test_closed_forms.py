"""Gaussian cases whose optimum is known: there the loss is zero and its gradient vanishes.

Linear reward. Each reference kernel is N(J_k x + b_k, sigma_k^2 I), so V_k(x) = c_k . x + const
with c_0 = beta a and c_k = J_k^T c_{k-1}; the optimal shift of the mean is sigma_k^2 c_{k-1}.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess, Transitions, build_process, kernel_mean
from nablaflow.methods import NablaDB, Networks, TrainingBatch
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.gaussian import (
    AffineFlow,
    GaussianModel,
    MeanShift,
    any_transitions,
    linear_reward,
)
from tests.support.paper import paper
from tests.support.schedules import DDPM, STABLE_DIFFUSION

BETA = 2.0
ZERO = 1e-18
STEPS = 6
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
IDENTITY = torch.eye(2, dtype=torch.float64)

SAMPLERS = [("ddim", 1.0), ("ddim", 0.4), ("ddpm", 1.0), ("sde-dpmsolver++", 1.0)]


@dataclass(frozen=True)
class Solved:
    """The linear problem with its exact policy and its exact flow score."""

    model: GaussianModel
    reward: NamedReward
    policy: MeanShift
    flow: AffineFlow

    @property
    def networks(self) -> Networks:
        return Networks(self.model, self.reward, self.flow, self.flow)

    def losses(self, **settings: object) -> dict[str, Tensor]:
        method = paper(beta=BETA, **settings)
        return method.losses(any_transitions(self.model, each=3), self.networks).terms


def jacobians(model: GaussianModel, k: int) -> tuple[Tensor, Tensor]:
    """Of the reference kernel's mean and of x0_hat at x_k, by hand."""
    process = model.process
    alpha_bar = process.alpha_bar[k].double()
    noise = model.slope(k)
    clean = (IDENTITY - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
    mean = process.from_x[k] * IDENTITY + process.from_x0[k] * clean
    return mean + process.from_epsilon[k] * noise, clean


def solve(process: ReverseProcess) -> Solved:
    policy = MeanShift(process, 2)
    model = GaussianModel(process, MEAN, COVARIANCE, policy)
    value = BETA * DIRECTION
    offset = [torch.zeros(2, dtype=torch.float64)]
    for k in range(1, process.steps + 1):
        mean, clean = jacobians(model, k)
        policy.shift.data[k] = process.sigma[k].double().square() * value
        value = mean.T @ value
        looked_ahead = BETA * process.alpha_bar[k].double() * clean.T @ DIRECTION
        offset.append(value - looked_ahead)
    flow = AffineFlow(process, torch.stack(offset))
    return Solved(model, linear_reward(DIRECTION), policy, flow)


@pytest.fixture(params=SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
def solved(request: pytest.FixtureRequest) -> Solved:
    name, eta = request.param
    return solve(build_process(STABLE_DIFFUSION, name, STEPS, eta, sigma_floor=0.01))


@pytest.mark.parametrize("forward_flow", ["attached", "detached-ema"])
@pytest.mark.parametrize("reverse_policy_graph", [False, True])
def test_residual_losses_are_zero_at_the_optimum_of_a_linear_reward(
    solved: Solved, forward_flow: str, reverse_policy_graph: bool
) -> None:
    terms = solved.losses(forward_flow=forward_flow, reverse_policy_graph=reverse_policy_graph)
    assert terms.keys() == {"forward", "reverse", "terminal"}
    for term in terms.values():
        assert term.max() < ZERO
    sum(term.sum() for term in terms.values()).backward()
    for parameter in (solved.policy.shift, solved.flow.offset, solved.flow.slope):
        assert parameter.grad.abs().max() < 1e-7


def test_the_constant_weighting_has_the_same_optimum(solved: Solved) -> None:
    for term in solved.losses(weighting="constant").values():
        assert term.max() < 1e-14


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_a_policy_off_the_optimum_is_seen_by_the_forward_residual(solved: Solved, k: int) -> None:
    solved.policy.shift.data[k] += 0.01
    forward = solved.losses()["forward"].detach().reshape(STEPS, -1)
    sigma = solved.model.process.sigma[k].double()
    expected = torch.zeros_like(forward)
    expected[k - 1] = (0.01 / sigma).square()
    torch.testing.assert_close(forward, expected, rtol=1e-6, atol=ZERO)


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_a_policy_off_the_optimum_is_seen_by_the_reverse_residual(solved: Solved, k: int) -> None:
    change = torch.tensor([0.01, 0.03], dtype=torch.float64)
    solved.policy.shift.data[k] += change
    reverse = solved.losses()["reverse"].detach().reshape(STEPS, -1)
    sigma = solved.model.process.sigma[k].double()
    moved = jacobians(solved.model, k)[0].T @ change / sigma
    expected = torch.zeros_like(reverse)
    expected[k - 1] = moved.square().mean()
    torch.testing.assert_close(reverse, expected, rtol=1e-6, atol=ZERO)


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_a_wrong_flow_is_seen_from_both_sides(solved: Solved, k: int) -> None:
    solved.flow.offset.data[k] += 0.5
    terms = {name: term.detach().reshape(STEPS, -1) for name, term in solved.losses().items()}
    variance = solved.model.process.sigma.double().square()
    reverse, forward = torch.zeros(2, STEPS, 3, dtype=torch.float64)
    reverse[k - 1] = 0.25 * variance[k]
    if k < STEPS:
        forward[k] = 0.25 * variance[k + 1]
    torch.testing.assert_close(terms["reverse"], reverse, rtol=1e-6, atol=ZERO)
    torch.testing.assert_close(terms["forward"], forward, rtol=1e-6, atol=ZERO)


def test_a_flow_that_is_not_zero_at_the_end_is_seen_by_the_terminal_loss_alone(
    solved: Solved,
) -> None:
    solved.flow.offset.data[0] += 0.5
    terms = {name: term.detach().reshape(STEPS, -1) for name, term in solved.losses().items()}
    expected = torch.zeros(STEPS, 3, dtype=torch.float64)
    expected[0] = 0.25 * solved.model.process.sigma[1].double().square()
    torch.testing.assert_close(terms["terminal"], expected, rtol=1e-6, atol=ZERO)
    assert terms["forward"].max() < ZERO
    assert terms["reverse"].max() < ZERO


def test_the_reverse_residual_can_leave_out_the_last_step(solved: Solved) -> None:
    solved.flow.offset.data[1:] += 0.5
    with_last, without = (
        solved.losses(reverse_last=last)["reverse"].detach().reshape(STEPS, -1)
        for last in (True, False)
    )
    assert with_last.min() > 1e-6
    assert without[0].max() == 0
    assert torch.equal(without[1:], with_last[1:])


def test_training_finds_the_exact_shift_of_a_linear_reward() -> None:
    """Without a reverse residual and with the true flow, descent ends at sigma^2 c."""
    solved = solve(build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01))
    truth = solved.policy.shift.detach().clone()
    solved.policy.shift.data.zero_()
    method = paper(beta=BETA, reverse_weight=0.0, terminal_weight=0.0)
    batch = any_transitions(solved.model)
    optimizer = torch.optim.LBFGS(
        [solved.policy.shift],
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = method.losses(batch, solved.networks).total.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(solved.policy.shift.data, truth, rtol=1e-3, atol=1e-4)


CURVATURE, LINEAR = 0.9, 0.6


def quadratic_value_gradient(
    model: GaussianModel, k: int, curvature: float, linear: float
) -> tuple[float, float]:
    """(q, l) of V_k(x) = -q x^2 / 2 + l x, by the Gaussian integral over each reference kernel."""
    for step in range(1, k + 1):
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        level = torch.tensor([step])
        with torch.no_grad(), model.reference():
            intercept, at_one = (
                kernel_mean(model.process, x, model.predict(x, level, Condition()), level).item()
                for x in (zero, zero + 1)
            )
        slope = at_one - intercept
        shrink = 1 + curvature * float(model.process.sigma[step]) ** 2
        curvature, linear = (
            curvature / shrink * slope**2,
            slope * (linear - curvature * intercept) / shrink,
        )
    return curvature, linear


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_the_tilted_kernel_of_a_quadratic_reward_is_a_stationary_point(k: int) -> None:
    """V bends now, so the residual is not zero, but its regression has the tilted kernel's mean.

    The tilted kernel is N(mu_ref, s^2) times exp(V_{k-1}), of mean (mu_ref + s^2 l) / (1 + q s^2).
    Two points at a distance s from it stand for x_{k-1}: exact, as grad V is linear.
    """
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    policy = MeanShift(process, 1)
    one = torch.ones(1, dtype=torch.float64)
    model = GaussianModel(process, 0.4 * one, 0.8 * one[:, None], policy)
    q, linear = quadratic_value_gradient(model, k - 1, BETA * CURVATURE, BETA * LINEAR)
    sigma = process.sigma[k].double()
    x = torch.full((2, 1, 1, 1), 0.7, dtype=torch.float64)
    level = torch.full((2,), k)
    with torch.no_grad(), model.reference():
        reference = kernel_mean(process, x, model.predict(x, level, Condition()), level)
    tilted = (reference + sigma.square() * linear) / (1 + q * sigma.square())
    policy.shift.data[k] = (tilted - reference).flatten()[0]
    ends = tilted + sigma * torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    batch = TrainingBatch(
        Transitions(x, ends, level, torch.zeros_like(x), torch.arange(2)), Condition(), ["", ""]
    )

    def quadratic(images: Tensor, prompts: list[str]) -> Tensor:
        state = images[:, 0].flatten()
        return LINEAR * state - CURVATURE * state.square() / 2

    # gamma 0 leaves the whole value gradient to the flow score, but for x_0, where it is exact.
    offset = torch.zeros(STEPS + 1, 1, dtype=torch.float64)
    slope = torch.zeros(STEPS + 1, 1, 1, dtype=torch.float64)
    offset[k - 1], slope[k - 1] = linear, -q
    flow = AffineFlow(process, offset, slope)
    gamma = [1.0] + [0.0] * STEPS
    method = paper(beta=BETA, gamma=gamma, reverse_weight=0.0, weighting="constant")
    networks = Networks(model, NamedReward("quadratic", quadratic), flow, flow)
    forward = method.losses(batch, networks).terms["forward"]
    expected = (q * sigma).square().expand(2)
    torch.testing.assert_close(forward.detach(), expected, rtol=1e-6, atol=0.0)
    forward.sum().backward()
    assert policy.shift.grad.abs().max() < 1e-6 * float(q / sigma)
    policy.shift.data[k] += 0.02 * sigma
    policy.shift.grad = None
    method.losses(batch, networks).terms["forward"].sum().backward()
    # Two rows, each with a residual of 0.02 / sigma besides the one that cancels.
    assert float(policy.shift.grad[k]) == pytest.approx(float(0.08 / sigma**3), rel=1e-6)


TARGET_VARIANCE = 0.5


def noising_reversed() -> tuple[Networks, MeanShift, AffineFlow]:
    """The exact reverse of noising N(MEAN, TARGET_VARIANCE I), whose flow is its marginal.

    A Gaussian's posterior x_{k-1} | x_k has DDPM's mean at E[x_0 | x_k]; its variance is Bayes'.
    """
    config = DDPM | {"clip_sample": False, "timestep_spacing": "trailing"}
    process = build_process(config, "ddpm", STEPS, 1.0, sigma_floor=0.01)
    here = process.alpha_bar.double()
    following = torch.cat([here[:1], here[:-1]])
    a = here / following
    marginal = following * TARGET_VARIANCE + 1 - following
    left = (1 - here).clamp_min(1e-12)
    process = replace(
        process,
        alpha_bar=here,
        from_x=a.sqrt() * (1 - following) / left,
        from_x0=following.sqrt() * (1 - a) / left,
        from_epsilon=torch.zeros_like(here),
        sigma=(1 / (1 / marginal + a / (1 - a).clamp_min(1e-12))).sqrt(),
    )
    policy = MeanShift(process, 2)
    model = GaussianModel(process, MEAN, TARGET_VARIANCE * IDENTITY, policy)
    variance = here * TARGET_VARIANCE + 1 - here
    offset = (here.sqrt() / variance)[:, None] * MEAN
    flow = AffineFlow(process, offset, -IDENTITY / variance[:, None, None])

    def log_density(images: Tensor, prompts: list[str]) -> Tensor:
        distance = (images[:, 0].flatten(1) - MEAN).square().sum(1)
        return -distance / (2 * TARGET_VARIANCE * BETA)

    return Networks(model, NamedReward("target", log_density), flow, flow), policy, flow


@pytest.mark.parametrize("forward_flow", ["attached", "detached-ema"])
@pytest.mark.parametrize("reverse_policy_graph", [False, True])
def test_plain_nabla_db_is_zero_where_the_policy_reverses_the_noising(
    forward_flow: str, reverse_policy_graph: bool
) -> None:
    networks, policy, flow = noising_reversed()
    method = NablaDB(
        beta=BETA, forward_flow=forward_flow, reverse_policy_graph=reverse_policy_graph
    )
    losses = method.losses(any_transitions(networks.model, each=3), networks)
    assert losses.terms.keys() == {"forward", "reverse", "terminal"}
    for term in losses.terms.values():
        assert term.max() < ZERO
    losses.total.sum().backward()
    for parameter in (policy.shift, flow.offset, flow.slope):
        assert parameter.grad.abs().max() < 1e-7


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_plain_nabla_db_sees_a_policy_that_does_not_reverse_the_noising(k: int) -> None:
    networks, policy, _ = noising_reversed()
    policy.shift.data[k] += 0.01
    terms = NablaDB(beta=BETA).losses(any_transitions(networks.model), networks).terms
    sigma = networks.model.process.sigma[k]
    expected = torch.zeros(STEPS, dtype=torch.float64)
    expected[k - 1] = (0.01 / sigma).square()
    torch.testing.assert_close(terms["forward"].detach(), expected, rtol=1e-6, atol=ZERO)
    assert terms["reverse"][k - 1] > 1e-6
    assert terms["terminal"].max() < ZERO


def test_plain_nabla_db_sees_a_flow_that_does_not_end_in_the_reward() -> None:
    networks, _, flow = noising_reversed()
    flow.offset.data[0] += 0.5
    terms = NablaDB(beta=BETA).losses(any_transitions(networks.model), networks).terms
    expected = torch.zeros(STEPS, dtype=torch.float64)
    expected[0] = 0.25 * networks.model.process.sigma[1].square()
    torch.testing.assert_close(terms["terminal"].detach(), expected, rtol=1e-6, atol=ZERO)
    # The last forward target is the reward's own gradient, whatever the flow says there.
    assert terms["forward"].max() < ZERO


def test_plain_nabla_db_sees_a_wrong_flow_between() -> None:
    networks, _, flow = noising_reversed()
    flow.offset.data[2] += 0.5
    terms = NablaDB(beta=BETA).losses(any_transitions(networks.model), networks).terms
    variance = networks.model.process.sigma.square()
    forward, reverse = torch.zeros(2, STEPS, dtype=torch.float64)
    forward[2], reverse[1] = 0.25 * variance[3], 0.25 * variance[2]
    torch.testing.assert_close(terms["forward"].detach(), forward, rtol=1e-6, atol=ZERO)
    torch.testing.assert_close(terms["reverse"].detach(), reverse, rtol=1e-6, atol=ZERO)
