"""DRaFT: the gradient of the last steps, against autograd written out and in closed form."""

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import build_process
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import Draft
from nablaflow.methods.draft import own_noise
from nablaflow.methods.replay import replay
from tests.support.chain import Quadratic, solve
from tests.support.gaussian import GaussianModel, MeanShift, linear_reward
from tests.support.paths import Bent, bent_problem, path_of, random_states, state
from tests.support.schedules import STABLE_DIFFUSION

BETA = 1.25
STEPS = 5
GENERATOR = torch.Generator()
DIRECTION = torch.tensor([0.7, -1.1], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)


def bent_batch(bent: Bent, starts: list[int]) -> TrainingBatch:
    return bent.random_path([[k] for k in starts]).batch(with_states=True)


def gradients(bent: Bent, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(bent.model.network.parameters())))


def assert_gradients(bent: Bent, found: Tensor, wanted: Tensor, rtol: float = 1e-5) -> None:
    for one, other in zip(gradients(bent, found), gradients(bent, wanted), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-6 * float(other.abs().max()))


def by_hand(bent: Bent, batch: TrainingBatch, row: int, kl_weight: float = 0.0) -> Tensor:
    """-beta r and weighted divergence of one row: the last k steps, one after another."""
    assert batch.states is not None
    k, prompt = int(batch.transitions.k[row]), batch.prompts[row]
    states = batch.states[:, row].flatten(1)
    x, loss = states[k], torch.zeros((), dtype=torch.float64)
    for j in range(k, 0, -1):
        noise = states[j - 1] - bent.mean(states[j], j, prompt, policy=True).detach()
        mean = bent.mean(x, j, prompt, policy=True)
        shift = mean - bent.mean(x, j, prompt)
        variance = float(bent.model.process.sigma[j]) ** 2
        loss = loss + kl_weight * shift.square().sum() / (2 * variance)
        x = mean + noise
    return loss - bent.beta * bent.reward(x, prompt)


# The gradient of the last steps.


@pytest.mark.parametrize("k", [1, 3, "all"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "sde-dpmsolver++"])
def test_the_gradient_is_that_of_the_last_steps_written_out(k: int | str, sampler: str) -> None:
    bent = bent_problem(sampler)
    method = Draft.model_validate({"beta": bent.beta, "k": k})
    starts = method.draw(3, bent.model.process, 1, GENERATOR)[:, 0].tolist()
    batch = bent_batch(bent, starts)
    found = method.losses(batch, bent.networks)
    wanted = torch.stack([by_hand(bent, batch, row) for row in range(3)])
    torch.testing.assert_close(found.total, wanted, rtol=1e-5, atol=1e-6)
    assert_gradients(bent, found.total.sum(), wanted.sum())


def test_rows_of_different_lengths_are_each_their_own() -> None:
    bent = bent_problem()
    batch = bent_batch(bent, [4, 1, 5, 2])
    found = Draft(beta=bent.beta, kl_weight=0.3).losses(batch, bent.networks)
    for row in range(4):
        wanted = by_hand(bent, batch, row, kl_weight=0.3)
        torch.testing.assert_close(found.total[row], wanted, rtol=1e-5, atol=1e-6)
        (part,) = torch.autograd.grad(
            found.total[row], bent.model.network.second, retain_graph=True
        )
        (expected,) = torch.autograd.grad(wanted, bent.model.network.second)
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-7)


def test_the_replay_ends_in_the_rollouts_own_states_to_the_last_digit() -> None:
    bent = bent_problem()
    batch = bent_batch(bent, [5, 2, 1])
    assert batch.states is not None
    tail = replay(bent.model, batch, with_kl=False, checkpointing=True)
    assert torch.equal(tail.x0, batch.states[0])
    assert tail.kl is None


@pytest.mark.parametrize("samples", [0, 2])
def test_checkpointing_changes_neither_values_nor_gradients(samples: int) -> None:
    bent = bent_problem()
    batch = bent_batch(bent, [1, 1] if samples else [5, 3])
    plain, checkpointed = (
        Draft(
            beta=1.0, kl_weight=0.4, low_variance_samples=samples, checkpointing=checkpointing
        ).losses(batch, bent.networks)
        for checkpointing in (False, True)
    )
    assert torch.equal(plain.total, checkpointed.total)
    assert_gradients(bent, checkpointed.total.sum(), plain.total.sum(), rtol=1e-12)


# Closed forms, for policies whose mean is the reference's plus a constant.


def shifted_gaussian() -> GaussianModel:
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    return GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))


def gaussian_batch(k: int, n: int = 3) -> TrainingBatch:
    return path_of(random_states(STEPS, n, 2, seed=4), [[k]] * n).batch(with_states=True)


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_the_gradient_of_a_linear_reward_is_the_product_of_the_kernels_slopes(k: int) -> None:
    """d x_0 / d shift_j = J_1 ... J_{j-1}, so the gradient is -grad V_{j-1} of the exact chain."""
    model = shifted_gaussian()
    chain = solve(model, Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION), BETA)
    networks = Networks(model, linear_reward(DIRECTION))
    Draft(beta=BETA, k=k).losses(gaussian_batch(k), networks).total.mean().backward()
    for j in range(1, STEPS + 1):
        wanted = -chain.values[j - 1].offset * (j <= k)
        torch.testing.assert_close(model.network.shift.grad[j], wanted, rtol=1e-5, atol=1e-8)


def test_with_the_whole_divergence_the_tilt_is_where_the_gradient_vanishes() -> None:
    model = shifted_gaussian()
    chain = solve(model, Quadratic(torch.zeros(2, 2, dtype=torch.float64), DIRECTION), BETA)
    for j in range(1, STEPS + 1):
        variance = model.process.sigma[j].double().square()
        model.network.shift.data[j] = variance * chain.values[j - 1].offset
    networks = Networks(model, linear_reward(DIRECTION))
    losses = Draft(beta=BETA, k="all", kl_weight=1.0).losses(gaussian_batch(STEPS), networks)
    losses.total.mean().backward()
    assert model.network.shift.grad.abs().max() < 1e-5
    squares = torch.stack(
        [
            model.process.sigma[j].double().square() * chain.values[j - 1].offset.square().sum()
            for j in range(1, STEPS + 1)
        ]
    )
    torch.testing.assert_close(
        losses.metrics["kl"].detach(), 0.5 * squares.sum().expand(3), rtol=1e-5, atol=0.0
    )


# The low-variance estimate.


def test_for_a_linear_reward_the_low_variance_gradient_is_that_of_the_last_step() -> None:
    found = []
    for samples in (0, 3):
        model = shifted_gaussian()
        networks = Networks(model, linear_reward(DIRECTION))
        method = Draft(beta=BETA, low_variance_samples=samples)
        method.losses(gaussian_batch(1), networks).total.sum().backward()
        found.append(model.network.shift.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])


def test_the_low_variance_estimate_written_out() -> None:
    bent = bent_problem()
    batch = bent_batch(bent, [1, 1, 1])
    process = bent.model.process
    assert batch.states is not None
    found = Draft(beta=bent.beta, low_variance_samples=2).losses(batch, bent.networks)
    noise = own_noise(batch.states, 4).flatten(2)
    ratio, sigma = process.alpha_bar[1] / process.alpha_bar[0], process.sigma[1]
    wanted = torch.zeros((), dtype=torch.float64)
    for row, prompt in enumerate(batch.prompts):
        parts = [by_hand(bent, batch, row)]
        for first, second in ((noise[0], noise[1]), (noise[2], noise[3])):
            x0 = batch.states[0, row].flatten()
            x = ratio.sqrt() * x0 + (1 - ratio).sqrt() * first[row]
            again = bent.mean(x, 1, prompt, policy=True) + sigma * second[row]
            parts.append(-bent.beta * bent.reward(again, prompt))
        wanted = wanted + torch.stack(parts).mean()
    torch.testing.assert_close(found.total.sum(), wanted, rtol=1e-5, atol=1e-6)
    assert_gradients(bent, found.total.sum(), wanted)


def test_noise_is_normal_and_each_trajectorys_own() -> None:
    states = random_states(2, 400, 3, seed=1)
    noise = own_noise(states, 4)
    assert noise.shape == (4, 400, 1, 1, 3)
    assert noise.mean().abs() < 4 / noise.numel() ** 0.5
    assert noise.var() == pytest.approx(1.0, abs=0.1)
    assert len(noise.flatten().unique()) == noise.numel()
    rows = torch.tensor([7, 0, 399])
    assert torch.equal(own_noise(states[:, rows], 4), noise[:, rows])
    changed = states.clone()
    changed[:-1] += 1.0
    assert torch.equal(own_noise(changed, 4), noise), "only x_K counts"


# Draws, figures, mistakes.


def test_every_trajectory_has_the_same_k() -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", 20, 1.0, sigma_floor=0.01)
    for k, steps in ((1, 1), (7, 7), ("all", 20)):
        method = Draft.model_validate({"beta": 1.0, "k": k})
        assert torch.equal(method.draw(3, process, 4, GENERATOR), torch.full((3, 1), steps))


def test_the_figures() -> None:
    bent = bent_problem()
    path = bent.random_path([[2], [2]])
    batch = path.batch(with_states=True)
    found = Draft(beta=bent.beta, k=2).losses(batch, bent.networks)
    assert list(found.terms) == ["reward"]
    assert set(found.metrics) == {"value_gradient_norm", "replayed_steps"}
    assert found.metrics["replayed_steps"].tolist() == [2.0, 2.0]
    for index, row in enumerate(batch.transitions.trajectory.tolist()):
        gradient = bent.looked(state(path, 0, row), 0, batch.prompts[index])
        norm = float(found.metrics["value_gradient_norm"][index])
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 6}, r"method\.k: 6 of sampler\.steps=5; use fewer, or all"),
        ({"k": 2, "low_variance_samples": 1}, r"method\.low_variance_samples: [^\n]*"),
        ({"k": "all", "low_variance_samples": 2}, r"method\.low_variance_samples: [^\n]*"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings: dict, message: str) -> None:
    process = build_process(STABLE_DIFFUSION, "ddim", STEPS, 1.0, sigma_floor=0.01)
    method = Draft.model_validate({"beta": 1.0, **settings})
    with pytest.raises(UserError, match=rf"^{message}$"):
        method.check(process, flow=False, on_policy=True)
    Draft(beta=1.0, k=5).check(process, flow=False, on_policy=True)
    Draft(beta=1.0, low_variance_samples=2).check(process, flow=False, on_policy=True)
