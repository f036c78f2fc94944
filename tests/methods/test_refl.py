"""ReFL: its gradient by finite differences, its stand-in for pretraining by quadrature."""

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import Transitions, build_process
from nablaflow.errors import UserError
from nablaflow.estimators import Networks, TrainingBatch
from nablaflow.methods import ReFL
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.gaussian import GaussianModel, SmallNetwork
from tests.support.numeric import finite_difference, normal_quadrature
from tests.support.paths import Bent, bent_problem, state
from tests.support.schedules import STABLE_DIFFUSION

KEEP = [[1], [3], [2]]


def process_of(steps: int):
    return build_process(STABLE_DIFFUSION, "ddim", steps, 1.0, sigma_floor=0.01)


def rewards_of(bent: Bent, batch: TrainingBatch) -> Tensor:
    """r(x0_hat(x_k)) of the policy, row by row."""
    t = batch.transitions
    rows = zip(t.x.flatten(1), t.k.tolist(), batch.prompts, strict=True)
    return torch.stack(
        [bent.reward(bent.prediction(x, k, p, policy=True)[0], p) for x, k, p in rows]
    ).detach()


# The gradient.


@pytest.mark.parametrize("ceiling", [None, 0.0])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_gradient_is_that_of_finite_differences(ceiling: float | None, weight: float) -> None:
    bent = bent_problem()
    batch = bent.random_path(KEEP).batch()
    method = ReFL(beta=1.25, ceiling=ceiling, pretraining_weight=weight)
    rewards = rewards_of(bent, batch)
    assert (rewards > 0).any()
    assert (rewards < 0).any()
    parameter = bent.model.network.first

    def loss(values: Tensor) -> Tensor:
        parameter.data.copy_(values)
        return method.losses(batch, bent.networks).total.sum()

    start = parameter.detach().clone()
    wanted = finite_difference(loss, start)
    (found,) = torch.autograd.grad(loss(start), parameter)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert found.abs().max() > 1e-3


def test_the_terms_and_the_figures_by_hand() -> None:
    bent = bent_problem()
    path = bent.random_path(KEEP)
    batch = path.batch()
    found = ReFL(beta=1.25, ceiling=0.1, pretraining_weight=0.7).losses(batch, bent.networks)
    t = batch.transitions
    for index, (k, prompt) in enumerate(zip(t.k.tolist(), batch.prompts, strict=True)):
        x = state(path, k, int(t.trajectory[index]))
        x0_hat, epsilon = (part.detach() for part in bent.prediction(x, k, prompt, policy=True))
        reference = bent.prediction(x, k, prompt, policy=False)[1]
        reward = float(bent.reward(x0_hat, prompt))
        expected = {
            "reward": -1.25 * min(reward, 0.1),
            "pretraining": 0.7 * float((epsilon - reference).square().mean()),
        }
        terms = {name: float(term[index].detach()) for name, term in found.terms.items()}
        assert terms == pytest.approx(expected, rel=1e-5, abs=1e-7)
        shift = (bent.mean(x, k, prompt, policy=True) - bent.mean(x, k, prompt)).detach()
        gradient = bent.looked(x0_hat, 0, prompt)
        figures = {
            "reward_ahead": reward,
            "value_gradient_norm": float(gradient.norm()),
            "mean_shift": float(shift.norm()),
            "kl": float((shift / bent.model.process.sigma[k]).square().sum()) / 2,
        }
        metrics = {name: float(value[index].detach()) for name, value in found.metrics.items()}
        assert metrics == pytest.approx(figures, rel=1e-4, abs=1e-7)


def test_without_a_weight_there_is_no_pretraining_term() -> None:
    bent = bent_problem()
    found = ReFL(beta=1.0, pretraining_weight=0.0).losses(
        bent.random_path(KEEP).batch(), bent.networks
    )
    assert list(found.terms) == ["reward"]


def test_above_the_ceiling_nothing_is_gained() -> None:
    bent = bent_problem()
    method = ReFL(beta=1.0, ceiling=-1e3, pretraining_weight=0.0)
    method.losses(bent.random_path(KEEP).batch(), bent.networks).total.sum().backward()
    assert all(part.grad.abs().max() == 0 for part in bent.model.network.parameters())


# The stand-in for the pretraining loss.


@pytest.mark.parametrize("k", [1, 3])
def test_on_the_references_own_noised_samples_the_two_losses_differ_by_a_constant(k: int) -> None:
    """E|eps - eps_theta|^2 - E|eps - eps_ref|^2 = E|eps_theta - eps_ref|^2, for any policy."""
    process = process_of(4)
    mean, variance = torch.tensor([0.4]).double(), torch.tensor([[0.7]]).double()
    model = GaussianModel(process, mean, variance, SmallNetwork(4, 1, seed=2))
    nodes, weights = normal_quadrature(60)
    alpha_bar = process.alpha_bar[k].double()
    clean, noise = mean + variance[0].sqrt() * nodes[:, :1], nodes[:, 1:]
    x = (alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise).reshape(-1, 1, 1, 1)
    steps = torch.full((len(x),), k)

    def denoising_loss() -> Tensor:
        epsilon = model.predict(x, steps, Condition()).epsilon.flatten(1)
        return weights @ (noise - epsilon).square().mean(1)

    with torch.no_grad():
        policy = denoising_loss()
        with model.reference():
            reference = denoising_loss()
    batch = TrainingBatch(
        Transitions(x, x, steps, torch.zeros_like(x), torch.arange(len(x))),
        Condition(),
        [""] * len(x),
    )
    nothing = NamedReward("nothing", lambda images, prompts: 0.0 * images.flatten(1).sum(1))
    losses = ReFL(beta=1.0, pretraining_weight=1.0).losses(batch, Networks(model, nothing))
    found = weights @ losses.terms["pretraining"].detach()
    assert found > 0.01
    torch.testing.assert_close(found, policy - reference, rtol=1e-5, atol=0.0)


# Draws and mistakes.


@pytest.mark.parametrize(
    ("steps", "settings", "low", "high"),
    [
        (40, {}, 1, 10),  # the published range
        (20, {}, 1, 5),
        (50, {"first": 3, "last": 7}, 3, 7),
        (50, {"first": 0.1, "last": 1.0}, 5, 50),
        (4, {"last": 1}, 1, 1),
        (3, {"last": 0.01}, 1, 1),
    ],
)
def test_k_is_drawn_from_the_late_steps(steps: int, settings: dict, low: int, high: int) -> None:
    method, process = ReFL(beta=1.0, **settings), process_of(steps)
    method.check(process, flow=False, on_policy=True)
    drawn = method.draw(2000, process, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (2000, 1)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert counts.min() > 0.5 * 2000 / len(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last": 21}, r"method\.last: 21 is neither a step, 1 to sampler\.steps=20, [^\n]*"),
        ({"first": 1.5}, r"method\.first: 1\.5 is neither a step, 1 to [^\n]*"),
        ({"first": 9, "last": 0.25}, r"method\.first: step 9 is beyond method\.last, step 5; .*"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{message}$"):
        ReFL(beta=1.0, **settings).check(process_of(20), flow=False, on_policy=True)
