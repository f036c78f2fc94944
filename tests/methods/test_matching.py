"""Value-gradient matching: each term by hand, and zero where the answer is known."""

import math

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import ReverseProcess, build_process
from nablaflow.errors import UserError
from nablaflow.estimators import (
    Networks,
    TemporalDifference,
    TrainingBatch,
    ValueGradients,
)
from nablaflow.estimators import NStep as NStepEstimator
from nablaflow.methods import AdjointMatching, Losses, Method, NablaTD, TerminalMatching
from nablaflow.methods.matching import Matching, ValueMatching
from nablaflow.models import Condition
from tests.support.chain import Chain, Quadratic, solve
from tests.support.gaussian import (
    AffineFlow,
    GaussianModel,
    MeanShift,
    any_transitions,
    linear_reward,
)
from tests.support.paths import Bent, bent_problem, path_of, random_states, training_batch
from tests.support.schedules import STABLE_DIFFUSION

BETA = 2.0
STEPS = 6
ZERO = 1e-12
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
SAMPLERS = [("ddim", 1.0), ("ddim", 0.4), ("ddpm", 1.0), ("sde-dpmsolver++", 1.0)]
ALL_STEPS = [list(range(1, STEPS + 1))] * 3


def process_of(sampler: str = "ddim", eta: float = 1.0, steps: int = STEPS) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, sampler, steps, eta, sigma_floor=0.01)


def gaussian(process: ReverseProcess | None = None) -> GaussianModel:
    process = process or process_of()
    return GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))


def random_batch(model: GaussianModel, each: int = 2, *, flow: bool = False) -> TrainingBatch:
    """Transitions, with estimates that no estimator has made."""
    batch = any_transitions(model, each)
    generator = torch.Generator().manual_seed(8)
    parts = torch.randn(2, *batch.transitions.x.shape, generator=generator, dtype=torch.float64)
    estimate = ValueGradients(3 * parts[0], 2 * parts[1] if flow else None)
    return TrainingBatch(batch.transitions, batch.conditions, batch.prompts, estimate)


def targets(batch: TrainingBatch) -> Tensor:
    assert batch.estimate is not None
    return batch.estimate.target.flatten(1)


def networks_of(model: GaussianModel, flow: AffineFlow | None = None) -> Networks:
    return Networks(model, linear_reward(DIRECTION), flow, flow)


# Terms and figures by hand.


@pytest.mark.parametrize("weighting", ["constant", "sigma2", "alpha_bar", "snr"])
def test_the_forward_term_by_hand(weighting: str) -> None:
    model = gaussian()
    process = model.process
    shift = torch.randn(
        STEPS + 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    model.network.shift.data.copy_(0.1 * shift)
    batch = random_batch(model)
    method = AdjointMatching(beta=BETA, weighting=weighting)
    found = method.losses(batch, networks_of(model))
    assert list(found.terms) == ["forward"]
    for row, k in enumerate(batch.transitions.k.tolist()):
        sigma, alpha_bar = float(process.sigma[k]), float(process.alpha_bar[k])
        weight = {
            "constant": 1.0,
            "sigma2": sigma**2,
            "alpha_bar": sigma**2 * alpha_bar,
            "snr": sigma**2 * min(1.0, alpha_bar / (1 - alpha_bar)),
        }[weighting]
        moved = 0.1 * shift[k]
        error = moved / sigma**2 - targets(batch)[row]
        forward = float(found.terms["forward"][row].detach())
        assert forward == pytest.approx(weight * float(error.square().mean()), rel=1e-5)
        kl = float(found.metrics["kl"][row])
        assert kl == pytest.approx(float(moved.square().sum()) / (2 * sigma**2), rel=1e-5)
        assert float(found.metrics["mean_shift"][row]) == pytest.approx(float(moved.norm()))
        gradient = float(targets(batch)[row].norm())
        assert float(found.metrics["value_gradient_norm"][row]) == pytest.approx(gradient)


def test_the_flow_term_by_hand_and_the_sum_of_all() -> None:
    bent = bent_problem()
    process, flow = bent.model.process, bent.networks.flow
    assert flow is not None
    batch = training_batch(
        bent.random_path([[5, 1], [2, 4, 4]]), TemporalDifference(), bent.networks, bent.beta
    )
    t = batch.transitions
    t.epsilon.add_(0.3)
    method = NablaTD(beta=bent.beta, output_regularization=0.7)
    found = method.losses(batch, bent.networks)
    assert list(found.terms) == ["forward", "flow", "output_regularization"]
    assert batch.estimate is not None
    assert batch.estimate.flow is not None
    with torch.no_grad():
        score = flow(t.x, process.timestep[t.k], batch.condition)
    for row, (k, prompt) in enumerate(zip(t.k.tolist(), batch.prompts, strict=True)):
        sigma, x = float(process.sigma[k]), t.x[row].flatten()
        error = (score - batch.estimate.flow)[row]
        expected = sigma**2 * float(error.square().mean())
        assert float(found.terms["flow"][row].detach()) == pytest.approx(expected, rel=1e-5)
        shift = bent.mean(x, k, prompt, policy=True) - bent.mean(x, k, prompt)
        error = (shift / sigma**2).detach() - batch.estimate.target[row].flatten()
        expected = sigma**2 * float(error.square().mean())
        assert float(found.terms["forward"][row].detach()) == pytest.approx(expected, rel=1e-5)
        epsilon = bent.prediction(x, k, prompt, policy=True)[1].detach()
        change = epsilon - t.epsilon[row].flatten()
        expected = 0.7 * float(change.square().mean())
        regularized = float(found.terms["output_regularization"][row].detach())
        assert regularized == pytest.approx(expected, rel=1e-9)
    total = sum(term.detach() for term in found.terms.values())
    torch.testing.assert_close(found.total.detach(), total)


def test_each_network_is_trained_by_its_own_term() -> None:
    bent = bent_problem()
    batch = training_batch(
        bent.random_path([[5, 1], [2, 4]]), TemporalDifference(), bent.networks, bent.beta
    )
    networks = {
        "forward": bent.model.network,
        "flow": bent.networks.flow,
        "target": bent.networks.flow_target,
    }
    terms = NablaTD(beta=bent.beta).losses(batch, bent.networks).terms
    for term in ("forward", "flow"):
        terms[term].sum().backward(retain_graph=True)
        for name, network in networks.items():
            assert network is not None
            trained = any(
                p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters()
            )
            assert trained == (name == term)
            network.zero_grad()


@pytest.mark.parametrize("weighting", ["constant", "sigma2"])
def test_strengths_by_band_add_up_to_the_weighted_square_of_the_target(weighting: str) -> None:
    model = gaussian()
    batch = random_batch(model, each=3)
    found = AdjointMatching(beta=BETA, weighting=weighting).losses(batch, networks_of(model))
    bands = {name: band for name, band in found.metrics.items() if name.startswith("strength_")}
    assert list(bands) == ["strength_k1-1", "strength_k2-3", "strength_k4-4", "strength_k5-6"]
    weight = torch.ones(len(batch), dtype=torch.float64)
    if weighting == "sigma2":
        weight = model.process.sigma.double()[batch.transitions.k].square()
    expected = (weight * targets(batch).square().mean(1)).mean()
    total = torch.stack([band.mean() for band in bands.values()]).sum()
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0.0)
    # With an untrained policy this is the loss as well.
    torch.testing.assert_close(found.total.detach().mean(), expected, rtol=1e-6, atol=0.0)


# The bound of a target.


def effective_target(batch: TrainingBatch, model: GaussianModel, max_shift: float) -> Tensor:
    """What the policy's shift over the variance is drawn to, by the loss's slope at no shift.

    The mean over two coordinates of (shift / sigma^2 - T)^2 has there the slope -T / sigma^2.
    """
    method = AdjointMatching(beta=BETA, weighting="constant", max_shift=max_shift)
    found = []
    for row in range(len(batch)):
        model.network.zero_grad()
        method.losses(batch[row : row + 1], networks_of(model)).total.sum().backward()
        k = int(batch.transitions.k[row])
        sigma = float(model.process.sigma[k])
        found.append(-(sigma**2) * model.network.shift.grad[k])
    return torch.stack(found)


@pytest.mark.parametrize("max_shift", [0.05, 1.0, 1e6])
def test_no_target_moves_a_kernel_further_than_the_bound(max_shift: float) -> None:
    model = gaussian()
    batch = random_batch(model)
    wanted, found = targets(batch), effective_target(batch, model, max_shift)
    sigma = model.process.sigma.double()[batch.transitions.k]
    asked = sigma * wanted.square().mean(1).sqrt()
    factor = (max_shift / asked).clamp_max(1.0)
    torch.testing.assert_close(found, factor[:, None] * wanted, rtol=1e-5, atol=1e-7)
    assert (sigma * found.square().mean(1).sqrt() <= max_shift * (1 + 1e-5)).all()
    assert (factor < 1).any() == (max_shift < 2)


def test_a_target_of_zero_stays_zero_under_a_bound() -> None:
    model = gaussian()
    batch = random_batch(model)
    assert batch.estimate is not None
    batch.estimate.target.zero_()
    losses = AdjointMatching(beta=0.0, max_shift=0.1).losses(batch, networks_of(model))
    assert torch.equal(losses.total, torch.zeros_like(losses.total))
    losses.total.sum().backward()
    assert model.network.shift.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_a_bound_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(UserError):
        AdjointMatching(beta=1.0, max_shift=value)


# Where the answer is known.


def solved(sampler: tuple[str, float]) -> tuple[GaussianModel, Chain]:
    """The linear problem with the exact policy, whose shift is sigma^2 grad V_{k-1}."""
    model = gaussian(process_of(*sampler))
    reward = Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION)
    chain = solve(model, reward, BETA)
    for k in range(1, STEPS + 1):
        variance = model.process.sigma[k].double().square()
        model.network.shift.data[k] = variance * chain.values[k - 1].offset
    return model, chain


def losses_of(
    method: Matching, model: GaussianModel, flow: AffineFlow | None
) -> tuple[Losses, TrainingBatch]:
    """On any paths: the target of a linear reward is the same everywhere."""
    networks = networks_of(model, flow)
    path = path_of(random_states(STEPS, 3, 2, seed=6), ALL_STEPS)
    batch = training_batch(path, method.value_estimator(), networks, BETA)
    return method.losses(batch, networks), batch


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler[0]}-{sampler[1]}")
@pytest.mark.parametrize(
    "method",
    [
        AdjointMatching(beta=BETA),
        NablaTD(beta=BETA, td_lambda=0.0),
        NablaTD(beta=BETA, td_lambda=0.7),
        NablaTD(beta=BETA, td_lambda=1.0),
        NablaTD(beta=BETA, td_lambda=0.7, gamma=0.0),
        ValueMatching(beta=BETA, estimator=NStepEstimator(n=2)),
    ],
    ids=repr,
)
def test_the_loss_is_zero_at_the_optimum_of_a_linear_reward(
    method: Matching, sampler: tuple[str, float]
) -> None:
    model, chain = solved(sampler)
    without = getattr(method.value_estimator(), "gamma", None) == 0.0
    flow = chain.flow(0.0 if without else None) if method.uses_flow else None
    losses, _ = losses_of(method, model, flow)
    assert list(losses.terms) == (["forward", "flow"] if method.uses_flow else ["forward"])
    assert losses.total.max() < ZERO
    losses.total.sum().backward()
    parameters = [*model.network.parameters(), *([] if flow is None else flow.parameters())]
    assert all(part.grad.abs().max() < 1e-5 for part in parameters)


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_a_policy_off_the_optimum_is_seen(k: int) -> None:
    model, chain = solved(("ddim", 1.0))
    model.network.shift.data[k] += 0.01
    losses, batch = losses_of(NablaTD(beta=BETA), model, chain.flow())
    sigma = float(model.process.sigma[k])
    expected = torch.where(batch.transitions.k == k, (0.01 / sigma) ** 2, 0.0).double()
    torch.testing.assert_close(losses.terms["forward"].detach(), expected, rtol=1e-4, atol=ZERO)
    assert losses.terms["flow"].max() < ZERO


def test_the_terminal_method_is_zero_at_the_optimum_of_a_standard_normal() -> None:
    config = STABLE_DIFFUSION | {"set_alpha_to_one": True}
    process = build_process(config, "ddim", STEPS, 1.0, sigma_floor=0.01)
    identity = torch.eye(2, dtype=torch.float64)
    policy = MeanShift(process, 2)
    model = GaussianModel(process, torch.zeros(2, dtype=torch.float64), identity, policy)
    for k in range(1, STEPS + 1):
        alpha_bar, sigma = process.alpha_bar[k - 1].double(), process.sigma[k].double()
        policy.shift.data[k] = sigma.square() * alpha_bar.sqrt() * BETA * DIRECTION
    losses, _ = losses_of(TerminalMatching(beta=BETA), model, None)
    assert losses.total.max() < ZERO


def trained_gradient(bent: Bent, method: Method, term: str) -> tuple[Tensor, list[Tensor]]:
    path = bent.random_path([[5, 1], [2, 4, 4], [3, 5]])
    batch = training_batch(path, method.value_estimator(), bent.networks, bent.beta)
    loss = method.losses(batch, bent.networks).terms[term]
    gradient = torch.autograd.grad(loss.sum(), list(bent.model.network.parameters()))
    return loss.detach(), list(gradient)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "sde-dpmsolver++"])
def test_nabla_td_of_lambda_one_trains_the_policy_as_adjoint_matching_does(sampler: str) -> None:
    bent = bent_problem(sampler)
    matching, gradient = trained_gradient(bent, AdjointMatching(beta=bent.beta), "forward")
    found, ours = trained_gradient(bent, NablaTD(beta=bent.beta, td_lambda=1.0), "forward")
    torch.testing.assert_close(found, matching, rtol=1e-6, atol=1e-12)
    assert max(part.abs().max() for part in gradient) > 1e-3
    for one, other in zip(ours, gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_training_finds_the_exact_shift_and_flow_score_of_a_linear_reward() -> None:
    """From nothing, by ∇-TD's own targets: the bootstrap has the truth as its fixed point."""
    model, chain = solved(("ddim", 1.0))
    truth = model.network.shift.detach().clone()
    model.network.shift.data.zero_()
    flow = AffineFlow(model.process, torch.zeros(STEPS + 1, 2, dtype=torch.float64))
    method = NablaTD(beta=BETA, td_lambda=0.5, weighting="constant")
    # A linear problem's flow score does not depend on the state, and so no step need be small.
    for _ in range(STEPS):
        batch = losses_of(method, model, flow)[1]
        assert batch.estimate is not None
        assert batch.estimate.flow is not None
        with torch.no_grad():
            for k in range(1, STEPS + 1):
                here = batch.transitions.k == k
                flow.offset[k] = batch.estimate.flow[here].flatten(1).mean(0)
                variance = model.process.sigma[k].double().square()
                shift = variance * batch.estimate.target[here].flatten(1).mean(0)
                model.network.shift[k] = shift
    torch.testing.assert_close(model.network.shift.data, truth, rtol=1e-5, atol=1e-8)
    exact = chain.flow()
    torch.testing.assert_close(flow.offset.data[1:], exact.offset.data[1:], rtol=1e-5, atol=1e-6)
    assert losses_of(method, model, flow)[0].total.max() < 1e-6


def test_a_batch_keeps_the_rows_of_its_estimates() -> None:
    model = gaussian()
    batch = random_batch(model, flow=True)
    part = batch[3:5]
    assert part.estimate is not None
    assert batch.estimate is not None
    assert torch.equal(part.estimate.target, batch.estimate.target[3:5])
    assert part.estimate.flow is not None
    assert batch.estimate.flow is not None
    assert torch.equal(part.estimate.flow, batch.estimate.flow[3:5])
    method = AdjointMatching(beta=BETA)
    whole = method.losses(random_batch(model), networks_of(model)).total
    split = method.losses(random_batch(model)[3:5], networks_of(model)).total
    torch.testing.assert_close(split, whole[3:5])
    assert isinstance(part.condition, Condition)
