"""Training in the laboratory: passes by hand, averages, and an optimum that is known."""

import pytest
import torch

from nablaflow.diffusion import draw_transitions
from nablaflow.errors import UserError
from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem
from nablaflow.exact.training import LabTrainer, Trained, sample_policy, train
from nablaflow.methods import (
    AdjointMatching,
    Method,
    NablaTD,
    ResidualNablaDB,
    TerminalMatching,
)
from nablaflow.models import Condition

STEPS = 6
BATCH = 8
SMALL = LabSettings(width=16, layers=1)
ALL = LabSettings(width=16, layers=1, transition_fraction=1.0)
PRIOR = GaussianMixture([[1.0, -2.0]], [[[4.0, 0.0], [0.0, 4.0]]])
PROBLEM = Problem(PRIOR, LinearReward([0.4, -0.3]), beta=1.0, steps=STEPS)
METHODS: list[Method] = [
    AdjointMatching(beta=1.0),
    NablaTD(beta=1.0),
    TerminalMatching(beta=1.0),
    ResidualNablaDB(beta=1.0),
]


def nothing(update: int) -> None:
    pass


def trained(
    method: Method, updates: int = 3, seed: int = 0, settings: LabSettings = SMALL
) -> Trained:
    return train(PROBLEM, method, updates, BATCH, seed, settings, nothing)


@pytest.mark.parametrize("stride", [1, 4])
def test_the_passes_of_an_update_of_adjoint_matching(stride: int) -> None:
    """With all K transitions kept, every level but x_K is wanted, and no stride can save a pass.

    Rollout: K forward. Adjoint to x_{K-1}: K - 1 forward and backward. Loss, for each of the K
    transitions: the reference forward, the policy forward and backward.
    """
    trainer = LabTrainer(PROBLEM, AdjointMatching(beta=1.0, stride=stride), ALL, 0)
    trainer.step(0, 1, BATCH)
    assert trainer.counter.passes == BATCH * (STEPS + 2 * (STEPS - 1) + 3 * STEPS)


def test_the_passes_of_an_update_of_terminal_matching() -> None:
    trainer = LabTrainer(PROBLEM, TerminalMatching(beta=1.0), ALL, 0)
    trainer.step(0, 1, BATCH)
    assert trainer.counter.passes == BATCH * (STEPS + 3 * STEPS)


def test_the_passes_of_strides_where_few_transitions_are_kept() -> None:
    """One transition a trajectory: to its x_{k-1} it takes (k - 1) / stride jumps, rounded up."""
    one = LabSettings(width=16, layers=1, transition_fraction=1 / STEPS)
    stride = 2
    trainer = LabTrainer(PROBLEM, AdjointMatching(beta=1.0, stride=stride), one, 5)
    trainer.step(0, 1, BATCH)
    keep = draw_transitions(BATCH, STEPS, 1, torch.Generator().manual_seed(5))
    jumps = sum(-(-(k - 1) // stride) for k in keep.flatten().tolist())
    assert trainer.counter.passes == BATCH * STEPS + 2 * jumps + 3 * BATCH


def test_passes_of_training_add_up_and_sampling_after_it_does_not_count() -> None:
    found = trained(AdjointMatching(beta=1.0), updates=2, settings=ALL)
    assert found.network_evaluations == 2 * BATCH * (STEPS + 2 * (STEPS - 1) + 3 * STEPS)
    sample_policy(found.model, 50, seed=1)
    assert found.network_evaluations == 2 * BATCH * (STEPS + 2 * (STEPS - 1) + 3 * STEPS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_training_follows_its_seed_and_leaves_the_global_random_state(method: Method) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = trained(method)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, other = trained(method), trained(method, seed=1)
    assert first.records == again.records
    assert first.records != other.records
    assert first.network_evaluations == again.network_evaluations
    points = [sample_policy(part.model, 20, seed=9) for part in (first, again, other)]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_update_is_logged_and_told(method: Method) -> None:
    told: list[int] = []
    found = train(PROBLEM, method, 4, BATCH, 0, SMALL, told.append)
    assert told == [1, 2, 3, 4]
    assert len(found.records) == 4
    for record in found.records:
        terms = [value for name, value in record.items() if name.startswith("loss_")]
        assert record["loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_without_updates_the_policy_is_the_reference() -> None:
    found = trained(AdjointMatching(beta=1.0), updates=0)
    assert found.network_evaluations == 0
    assert found.records == []
    policy = sample_policy(found.model, 50, seed=2)
    with found.model.reference():
        reference = sample_policy(found.model, 50, seed=2)
    assert torch.equal(policy, reference)


def test_the_model_that_is_returned_has_the_average_of_the_weights() -> None:
    decay = 0.6
    settings = LabSettings(width=16, layers=1, policy_ema=decay)
    trainer = LabTrainer(PROBLEM, AdjointMatching(beta=1.0), settings, 0)
    average = trainer.model.network.last.weight.detach().clone()
    for update in range(3):
        trainer.step(update, 3, BATCH)
        average = decay * average + (1 - decay) * trainer.model.network.last.weight.detach()
    found = trained(AdjointMatching(beta=1.0), updates=3, settings=settings).model
    torch.testing.assert_close(found.network.last.weight.detach(), average)


def test_the_flow_target_is_an_average_that_nothing_trains() -> None:
    decay = 0.7
    settings = LabSettings(width=16, layers=1, flow_ema=decay)
    trainer = LabTrainer(PROBLEM, NablaTD(beta=1.0), settings, 0)
    flow, target = trainer.networks.flow, trainer.networks.flow_target
    assert flow is not None
    assert target is not None
    expected = [parameter.detach().clone() for parameter in flow.parameters()]
    for update in range(3):
        trainer.step(update, 3, BATCH)
        expected = [
            decay * slow + (1 - decay) * fast.detach()
            for slow, fast in zip(expected, flow.parameters(), strict=True)
        ]
    for slow, wanted in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(slow, wanted)
        assert slow.grad is None
        assert not slow.requires_grad
    assert any(not torch.equal(a, b) for a, b in zip(flow.parameters(), expected, strict=True))


def test_a_method_without_use_for_a_flow_network_has_none() -> None:
    assert LabTrainer(PROBLEM, AdjointMatching(beta=1.0), SMALL, 0).networks.flow is None
    assert LabTrainer(PROBLEM, NablaTD(beta=1.0), SMALL, 0).networks.flow is not None


def test_a_method_that_does_not_fit_is_refused_before_anything_is_sampled() -> None:
    told: list[int] = []
    method = AdjointMatching(beta=1.0, output_regularization=0.1)
    with pytest.raises(UserError, match=r"^method\.output_regularization: "):
        train(PROBLEM, method, 4, BATCH, 0, SMALL, told.append)
    with pytest.raises(UserError, match=r"^method\.gamma: "):
        train(PROBLEM, NablaTD(beta=1.0, gamma=[1.0]), 4, BATCH, 0, SMALL, told.append)
    assert told == []


def test_adjoint_matching_finds_the_value_gradient_of_a_linear_reward() -> None:
    """Of N(m, s^2 I): grad V_k = sqrt(alpha_bar_k) beta s a in units of s, wherever one is."""
    method = AdjointMatching(beta=1.0)
    settings = LabSettings(width=32, layers=1, learning_rate=1e-2, policy_ema=0.9)
    found = train(PROBLEM, method, 100, 32, 0, settings, nothing)
    process = PROBLEM.process
    k = torch.arange(1, STEPS + 1)
    x = torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = found.model.network(x, process.timestep[k], x)
    tilt = 2.0 * torch.tensor([0.4, -0.3])
    expected = process.alpha_bar[k].sqrt()[:, None] * tilt
    # In units of what a step's residual costs, sigma_k, where the last steps can hardly be seen.
    error = process.sigma[k][:, None] * (value - expected)
    assert error.abs().max() < 0.06
    points = sample_policy(found.model, 4000, seed=3)
    target = torch.tensor([1.0, -2.0]) + 4.0 * torch.tensor([0.4, -0.3])
    torch.testing.assert_close(points.mean(0).float(), target, rtol=0, atol=0.2)
    torch.testing.assert_close(points.T.cov(), PRIOR.covariances[0], rtol=0, atol=0.6)


def test_sampling_follows_its_seed() -> None:
    model = trained(AdjointMatching(beta=1.0), updates=1).model
    first, again, other = (sample_policy(model, 30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64
    assert first.shape == (30, 2)
    assert model.condition([""] * 3) == Condition()
