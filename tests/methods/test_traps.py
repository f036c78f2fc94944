"""Faults of published reference code, each of which a test here would notice."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import (
    SAMPLERS,
    build_process,
    draw_transitions,
    sample_trajectories,
    trajectory_noise,
)
from nablaflow.methods import Method, NablaDB, Networks, TrainingBatch
from nablaflow.models import Condition
from nablaflow.rewards import NamedReward
from tests.support.gaussian import (
    GaussianModel,
    MeanShift,
    NetworkFlow,
    SmallNetwork,
    any_transitions,
    linear_reward,
    rows,
)
from tests.support.paper import paper
from tests.support.schedules import DDPM, STABLE_DIFFUSION

STEPS = 5
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.6]], dtype=torch.float64)
DIRECTIONS = {"left": torch.tensor([1.0, 0.0]), "up": torch.tensor([0.0, -2.0])}
METHODS = [paper, NablaDB]
TRAILING_DDPM = DDPM | {"timestep_spacing": "trailing", "clip_sample": False}


def by_prompt(images: Tensor, prompts: list[str]) -> Tensor:
    wanted = torch.stack([DIRECTIONS[prompt] for prompt in prompts]).to(images)
    return (images[:, 0].flatten(1) * wanted).sum(1)


def gaussian(name: str = "ddim", config: dict[str, Any] = STABLE_DIFFUSION) -> GaussianModel:
    process = build_process(config, name, STEPS, 1.0, sigma_floor=0.01)
    return GaussianModel(process, MEAN, COVARIANCE, MeanShift(process, 2))


def with_prompts(batch: TrainingBatch, prompts: list[str]) -> TrainingBatch:
    return TrainingBatch(batch.transitions, batch.conditions, prompts)


def test_each_transitions_reward_gradient_is_that_of_its_own_prompt() -> None:
    """An untrained policy's forward residual is the value gradient, here known by hand."""
    model = gaussian()
    prompts = ["left", "up", "up", "left", "up"]
    batch = with_prompts(any_transitions(model), prompts)
    networks = Networks(model, NamedReward("by prompt", by_prompt))
    found = paper(beta=1.0, gamma="one", weighting="constant").losses(batch, networks)
    for row, prompt in enumerate(prompts):
        level = row  # of x_next, where the transition's k is row + 1
        gradient = DIRECTIONS[prompt].double()
        if level > 0:
            alpha_bar = model.process.alpha_bar[level].double()
            noise = (1 - alpha_bar).sqrt() * model.slope(level)
            gradient = (gradient - noise @ gradient) / alpha_bar.sqrt()
        expected = gradient.square().mean()
        torch.testing.assert_close(found.terms["forward"][row].detach(), expected)


@pytest.mark.parametrize("kind", METHODS)
def test_permuted_transitions_have_permuted_losses(kind: type[Method]) -> None:
    model = gaussian()
    batch = with_prompts(any_transitions(model, each=2), ["left", "up"] * STEPS)
    flow = NetworkFlow(model.process, SmallNetwork(STEPS, 2, seed=3))
    networks = Networks(model, NamedReward("by prompt", by_prompt), flow, flow)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    straight = kind(beta=1.0).losses(batch, networks).total
    permuted = kind(beta=1.0).losses(rows(batch, order), networks).total
    torch.testing.assert_close(permuted, straight[order])
    exchanged = kind(beta=1.0).losses(with_prompts(batch, ["up", "left"] * STEPS), networks).total
    assert (exchanged - straight).abs().max() > 1e-3


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_stored_next_state_is_scored_and_not_fresh_noise(name: str) -> None:
    """With the policy at the reference and no reward, what is left of the forward residual is
    (1 - s) times the score of x_{k-1}, so the loss shows the very noise of the rollout.
    """
    model = gaussian(name)
    seeds = [4, 9, 31]
    keep = torch.arange(1, STEPS + 1).expand(len(seeds), STEPS)
    transitions = sample_trajectories(
        lambda x, k: model.predict(x, k, Condition()),
        model.process,
        model.state_shape,
        trajectory_noise(seeds),
        model.device,
        keep,
    ).transitions
    batch = TrainingBatch(transitions, Condition(), [""] * len(transitions))
    method = paper(beta=0.0, prior_strength=0.5, reverse_weight=0.0)
    networks = Networks(model, linear_reward(torch.ones(2)))
    torch.manual_seed(0)
    found = method.losses(batch, networks).terms["forward"]
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(1, 1, 2, generator=generator) for _ in range(STEPS + 1)]
        noise = dict(zip(range(STEPS, 0, -1), drawn[1:], strict=True))
        for index in (transitions.trajectory == row).nonzero()[:, 0].tolist():
            expected = 0.25 * noise[int(transitions.k[index])].square().mean()
            torch.testing.assert_close(
                found[index].float().detach(), expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_loss_depends_on_the_next_state_and_on_no_random_state(
    kind: type[Method], name: str
) -> None:
    model = gaussian(name)
    flow = NetworkFlow(model.process, SmallNetwork(STEPS, 2, seed=3))
    networks = Networks(model, linear_reward(torch.ones(2)), flow, flow)
    method = kind(beta=1.0, **({"prior_strength": 0.5} if kind is paper else {}))
    batch = any_transitions(model)
    torch.manual_seed(0)
    first = method.losses(batch, networks).total
    torch.manual_seed(1)
    assert torch.equal(method.losses(batch, networks).total, first)
    batch.transitions.x_next.add_(0.1)
    assert ((method.losses(batch, networks).total - first).abs() > 1e-6).all()


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("config", [STABLE_DIFFUSION, TRAILING_DDPM], ids=["scaled", "linear"])
def test_the_last_step_has_a_finite_loss_and_gradient(
    kind: type[Method], name: str, config: dict[str, Any]
) -> None:
    model = gaussian(name, config)
    flow = NetworkFlow(model.process, SmallNetwork(STEPS, 2, seed=3))
    networks = Networks(model, linear_reward(torch.ones(2)), flow, flow)
    batch = any_transitions(model, each=2)
    last = rows(batch, (batch.transitions.k == 1).nonzero()[:, 0])
    losses = kind(beta=1.0, weighting="constant").losses(last, networks)
    losses.total.sum().backward()
    assert losses.total.isfinite().all()
    # States this far apart score up to (5 / sigma_floor^2)^2 from each end.
    assert 0 < float(losses.total.max().detach()) < 1e10
    assert model.network.shift.grad.isfinite().all()


def test_transitions_that_are_trained_are_those_drawn_before() -> None:
    """Rollout and method agree on rows: the k, x and x_next of one transition belong together."""
    model = gaussian()
    keep = draw_transitions(6, STEPS, 2, torch.Generator().manual_seed(0), always_last=True)
    transitions = sample_trajectories(
        lambda x, k: model.predict(x, k, Condition()),
        model.process,
        model.state_shape,
        trajectory_noise(range(6)),
        model.device,
        keep,
    ).transitions
    for row in range(6):
        mine = transitions.k[transitions.trajectory == row]
        assert sorted(mine.tolist()) == sorted(keep[row].tolist())
    batch = TrainingBatch(transitions, Condition(), [""] * len(transitions))
    method = paper(beta=1.0, output_regularization=1.0)
    networks = Networks(model, linear_reward(torch.ones(2)))
    terms = method.losses(batch, networks).terms
    # On-policy, the noise prediction has not changed; of any other row it would have.
    assert terms["output_regularization"].max() < 1e-10
