"""DDPO: policy gradients in closed form, PPO's clipping, and the objective whose optimum is p*."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from nablaflow.config.recipe import Config
from nablaflow.config.settings import TrainingSettings
from nablaflow.diffusion import (
    ReverseProcess,
    Transitions,
    build_process,
    sample_trajectories,
    trajectory_noise,
)
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import DDPO
from nablaflow.models import Condition
from nablaflow.runs.checks import check_group
from tests.support.chain import Quadratic, kernel_of, solve
from tests.support.gaussian import GaussianModel, MeanShift, any_transitions, linear_reward
from tests.support.numeric import normal_quadrature
from tests.support.quadrature import Trajectories, line
from tests.support.schedules import DDPM, STABLE_DIFFUSION

STEPS = 6
BETA = 1.5
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-8}


def process_of(steps: int = STEPS) -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)


def gaussian(scale: float = 0.1) -> GaussianModel:
    """Its policy's kernels are moved at random."""
    process = process_of()
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    generator = torch.Generator().manual_seed(2)
    shift = torch.randn(STEPS + 1, 2, generator=generator, dtype=torch.float64)
    model.network.shift.data.copy_(scale * process.sigma.double()[:, None] * shift)
    return model


def networks_of(model: GaussianModel) -> Networks:
    return Networks(model, linear_reward(DIRECTION))


def sampled(model: GaussianModel, each: int = 2) -> TrainingBatch:
    """Transitions of the model's policy with advantages of both signs."""
    batch = any_transitions(model, each)
    t, generator = batch.transitions, torch.Generator().manual_seed(4)
    noise, credit = torch.randn(2, len(batch), 2, generator=generator, dtype=torch.float64)
    sigma = model.process.sigma.double()[t.k, None]
    mean = torch.stack([mean_of(model, t.x[row], int(k)) for row, k in enumerate(t.k)])
    x_next = (mean + sigma * noise).reshape(t.x.shape).detach()
    mean = mean.reshape(t.x.shape).detach()
    moved = Transitions(t.x, x_next, t.k, t.epsilon, t.trajectory, mean)
    return TrainingBatch(moved, Condition(), batch.prompts, credit=2 * credit[:, 0])


def mean_of(model: GaussianModel, x: Tensor, k: int) -> Tensor:
    """Of the policy's kernel at one state, in closed form."""
    return kernel_of(model, k)(x.flatten()) + model.network.shift[k]


def log_density(model: GaussianModel, batch: TrainingBatch, row: int) -> Tensor:
    """log p_theta(x_{k-1} | x_k), the mean over its two values, by torch's own distribution."""
    t = batch.transitions
    k = int(t.k[row])
    normal = Normal(mean_of(model, t.x[row], k), model.process.sigma[k].double())
    return normal.log_prob(t.x_next[row].flatten()).mean()


def gradient_of(value: Tensor, model: GaussianModel) -> Tensor:
    (gradient,) = torch.autograd.grad(value, model.network.shift, retain_graph=True)
    return gradient


# --- the policy gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["importance-sampling", "score-function"])
def test_on_policy_the_gradient_is_reinforces(form: str) -> None:
    model = gaussian()
    batch = sampled(model)
    assert batch.credit is not None
    loss = DDPO(beta=1.0, form=form).losses(batch, networks_of(model)).terms["policy"]
    for row, k in enumerate(batch.transitions.k.tolist()):
        t, sigma = batch.transitions, float(model.process.sigma[k])
        error = t.x_next[row].flatten() - mean_of(model, t.x[row], k).detach()
        expected = torch.zeros_like(model.network.shift.data)
        expected[k] = -batch.credit[row] * error / sigma**2 / 2
        torch.testing.assert_close(gradient_of(loss[row], model), expected, **CLOSE)


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """One step from the end E r(x_0) = a . mu_theta, whose slope by the shift is a."""
    model = gaussian()
    nodes, weights = normal_quadrature(4)
    x = torch.tensor([0.4, -1.0], dtype=torch.float64).expand(len(nodes), 2)
    x_next = (mean_of(model, x[0], 1) + float(model.process.sigma[1]) * nodes).detach()
    k = torch.ones(len(nodes), dtype=torch.long)
    x, x_next = x[:, None, None], x_next[:, None, None]
    mean = mean_of(model, x[0], 1).detach().expand_as(x)
    transitions = Transitions(x, x_next, k, torch.zeros_like(x), torch.arange(len(k)), mean)
    credit = x_next.flatten(1) @ DIRECTION - 0.7  # no constant changes the expectation
    batch = TrainingBatch(transitions, Condition(), [""] * len(k), credit=credit)
    loss = DDPO(beta=1.0).losses(batch, networks_of(model)).total @ weights
    torch.testing.assert_close(gradient_of(loss, model)[1], -DIRECTION / 2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("clip_range", [0.02, 0.2])
def test_clipping_is_ppos_and_stops_the_gradient_exactly_where_it_does(clip_range: float) -> None:
    model = gaussian()
    batch = sampled(model, each=8)
    before = torch.stack([log_density(model, batch, row) for row in range(len(batch))]).detach()
    model.network.shift.data.mul_(-2.0)
    found = DDPO(beta=1.0, clip_range=clip_range).losses(batch, networks_of(model))
    assert batch.credit is not None
    cases = set()
    for row, advantage in enumerate(batch.credit.tolist()):
        now = log_density(model, batch, row)
        ratio = float((now - before[row]).detach().exp())
        bounded = min(max(ratio, 1 - clip_range), 1 + clip_range)
        loss = max(-advantage * ratio, -advantage * bounded)
        assert float(found.terms["policy"][row].detach()) == pytest.approx(loss, rel=1e-4)
        stopped = ratio > 1 + clip_range if advantage > 0 else ratio < 1 - clip_range
        expected = -advantage * ratio * gradient_of(now, model) * (not stopped)
        gradient = gradient_of(found.terms["policy"][row], model)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        assert float(found.metrics["clip_fraction"][row]) == (abs(ratio - 1) > clip_range)
        cases.add((advantage > 0, bounded != ratio, stopped))
    assert cases == {(sign, *c) for sign in (True, False) for c in [(0, 0), (1, 0), (1, 1)]}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_policy_that_sampled_is_remembered_clipping_included(sampler: str) -> None:
    config = DDPM | {"timestep_spacing": "trailing"}
    process = build_process(config, sampler, STEPS, 1.0, sigma_floor=0.01)
    assert process.clip is not None
    model = GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))
    keep = torch.arange(1, STEPS + 1).expand(5, -1)
    t = sample_trajectories(
        lambda x, k: model.predict(x, k, Condition()),
        process,
        model.state_shape,
        trajectory_noise(range(5)),
        torch.device("cpu"),
        keep,
    ).transitions
    x0_hat = model.predict(t.x, t.k, Condition()).x0_hat
    assert ((x0_hat.abs() == process.clip).any(), (x0_hat.abs() < process.clip).any()) == (1, 1)
    batch = TrainingBatch(t, Condition(), [""] * len(t), credit=torch.ones(len(t)))
    found = DDPO(beta=1.0).losses(batch, networks_of(model))
    assert found.metrics["approximate_kl"].max() < 1e-12  # states are sampled in float32


# --- the tilt -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_with_kl_to_go_the_gradient_is_that_of_the_regularised_reward(weight: float) -> None:
    """Over all trajectories of two steps, by the derivative through the trajectories themselves."""
    networks = line(strength=3.0)
    found = Trajectories.of(networks, policy=True)
    reward = networks.reward(networks.model.decode(found.states[0]), [""] * len(found.weights))
    divergence = 0.5 * found.shifts.square().flatten(1).reshape(3, -1).sum(0)
    objective = (BETA * reward - weight * divergence) @ found.weights
    parameters = list(networks.model.network.parameters())
    expected = torch.autograd.grad(objective, parameters)
    batch = found.batch(networks, BETA * reward.detach())

    def gradient(**settings: object) -> tuple[Tensor, ...]:
        method = DDPO(beta=BETA, kl_weight=weight, **settings)
        loss = method.losses(batch, networks).total @ found.weights.repeat(2)
        return torch.autograd.grad(loss, parameters)

    assert max(part.abs().max() for part in expected) > 0.1
    for part, wanted in zip(gradient(kl_to_go=True), expected, strict=True):
        torch.testing.assert_close(part, -wanted, rtol=1e-4, atol=1e-6)
    without = zip(gradient(kl_to_go=False), expected, strict=True)
    assert max((part + wanted).abs().max() for part, wanted in without) > 1e-3


def test_the_stationary_point_for_a_linear_reward_is_the_tilts_shift() -> None:
    """By the expected return from each x_{k-1}; what is beyond it only adds to the variance."""
    model = gaussian(scale=0.5)
    reward = Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION)
    values = solve(model, reward, BETA).values
    nodes, weights = normal_quadrature(4)
    method = DDPO(beta=BETA, advantage="centred", max_advantage=None, kl_weight=1.0)
    for k in range(1, STEPS + 1):
        x = torch.full((len(nodes), 1, 1, 2), 0.3, dtype=torch.float64)
        variance = model.process.sigma[k].double().square()
        mean = mean_of(model, x[0], k).detach()
        x_next = (mean + variance.sqrt() * nodes)[:, None, None]
        levels = torch.full((len(nodes),), k)
        rows, none = torch.arange(len(nodes)), torch.zeros_like(x)
        transitions = Transitions(x, x_next, levels, none, rows, mean.expand_as(x))
        credit = x_next.flatten(1) @ values[k - 1].offset
        batch = TrainingBatch(transitions, Condition(), [""] * len(nodes), credit=credit)
        loss = method.losses(batch, networks_of(model)).total @ weights
        shift = model.network.shift.detach()[k]
        expected = (shift / variance - values[k - 1].offset) / 2
        torch.testing.assert_close(
            gradient_of(loss, model)[k], expected, rtol=1e-4, atol=1e-5 * float(1 / variance)
        )


def test_the_kl_term_by_hand() -> None:
    model = gaussian()
    batch = sampled(model)
    found = DDPO(beta=1.0, kl_weight=0.3).losses(batch, networks_of(model))
    assert list(found.terms) == ["policy", "kl"]
    for row, k in enumerate(batch.transitions.k.tolist()):
        shift = model.network.shift.detach()[k] / float(model.process.sigma[k])
        nats = 0.5 * float(shift.square().sum())
        assert float(found.metrics["kl"][row]) == pytest.approx(nats, rel=1e-4)
        assert float(found.terms["kl"][row].detach()) == pytest.approx(0.3 * nats / 2, rel=1e-4)


# --- advantages -----------------------------------------------------------------------------------

SCORES = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 4.0])
PROMPTS = ["a", "b", "a", "b", "a", "c"]


def test_advantages_by_prompt_and_over_the_rollout() -> None:
    found = DDPO(beta=7.0, max_advantage=1.1).credits(SCORES, PROMPTS)
    deviation = (2 / 3) ** 0.5
    expected = torch.tensor([-1.1, -1.0, 0.0, 1.0, 1.1, 0.0])
    assert 1.0 / deviation > 1.1
    torch.testing.assert_close(found, expected)
    batch = DDPO(beta=7.0, advantage="batch").credits(SCORES, PROMPTS)
    torch.testing.assert_close(batch, (SCORES - 4.0) / SCORES.std(correction=0))
    assert torch.equal(DDPO(beta=1.0).credits(torch.ones(3), ["a"] * 3), torch.zeros(3))


def test_a_centred_advantage_is_beta_times_what_the_others_do_not_reach() -> None:
    found = DDPO.tilted(2.0).credits(10 * SCORES, PROMPTS)
    for row, prompt in enumerate(PROMPTS[:5]):
        others = [i for i, own in enumerate(PROMPTS) if own == prompt and i != row]
        expected = 20 * float(SCORES[row] - SCORES[others].mean())
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)
    assert found[5] == 0


# --- what does not fit ----------------------------------------------------------------------------


def test_settings_that_do_not_fit_are_refused_in_one_line() -> None:
    process = process_of()
    score_function = DDPO(beta=1.0, form="score-function")
    score_function.check(process, flow=False, on_policy=True)
    with pytest.raises(UserError, match=r"^method\.form: score-function [^\n]*$"):
        score_function.check(process, flow=False, on_policy=False)
    with pytest.raises(UserError, match=r"^method\.kl_to_go: [^\n]*method\.kl_weight=1[^\n]*$"):
        DDPO(beta=1.0, kl_to_go=True).check(process, flow=False, on_policy=True)
    DDPO.tilted(1.0).check(process, flow=False, on_policy=False)


@pytest.mark.parametrize("advantage", ["prompt", "batch", "centred"])
def test_one_image_a_prompt_is_refused_where_images_of_a_prompt_are_compared(
    advantage: str,
) -> None:
    method = DDPO(beta=1.0, advantage=advantage)
    training = {"updates": 1, "prompts_per_update": 4, "images_per_prompt": 1}
    one = Config(
        reward="warmth",
        prompts=["a"],
        output_dir=Path("run"),
        method=method,
        training=TrainingSettings(**training, transition_fraction=1.0),
    )
    if advantage == "batch":
        check_group(method, one)
        return
    with pytest.raises(UserError, match=r"^training\.images_per_prompt: ddpo compares [^\n]*$"):
        check_group(method, one)


def test_only_kl_to_go_needs_whole_trajectories() -> None:
    assert not DDPO(beta=1.0, kl_weight=1.0).needs_states
    assert DDPO.tilted(1.0).needs_states
