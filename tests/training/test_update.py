"""One update from objects, on a model whose reference is known in closed form."""

from dataclasses import fields

import pytest
import torch

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.exact import GaussianMixture, LabSettings, LinearReward, Problem
from nablaflow.exact.training import LabTrainer
from nablaflow.methods import AdjointMatching, Method, PathWeightedMatching, TerminalMatching
from nablaflow.training import Average, Rollout, Update, add_gradients

STEPS, TRAJECTORIES = 6, 5
PRIOR = GaussianMixture([[1.0, -2.0]], [[[4.0, 0.0], [0.0, 4.0]]])
PROBLEM = Problem(PRIOR, LinearReward([0.4, -0.3]), beta=1.0, steps=STEPS)
METHODS = [AdjointMatching(beta=1.0), PathWeightedMatching(beta=1.0), TerminalMatching(beta=1.0)]


def update_of(method: Method) -> Update:
    return LabTrainer(PROBLEM, method, LabSettings(width=8, layers=1), 0).core


def rolled_out(update: Update, size: int | None = None) -> Rollout:
    keep = update.method.draw(TRAJECTORIES, PROBLEM.process, 3, torch.Generator().manual_seed(1))
    return update.rollout([""] * TRAJECTORIES, trajectory_noise(range(TRAJECTORIES)), keep, size)


def assert_same(found: Rollout, wanted: Rollout) -> None:
    for field in fields(Rollout):
        if field.name == "transitions":
            continue
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other)
        else:
            assert one == other, field.name


def by_owner(rollout: Rollout) -> list[tuple[int, int, list[float]]]:
    t = rollout.transitions
    rows = zip(t.trajectory.tolist(), t.k.tolist(), t.x.flatten(1).tolist(), strict=True)
    return sorted((owner, k, [round(value, 5) for value in x]) for owner, k, x in rows)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("size", [1, 2])
def test_a_rollout_in_parts_is_the_same_rollout(method: Method, size: int) -> None:
    update = update_of(method)
    whole, parts = rolled_out(update), rolled_out(update, size)
    assert_same(parts, whole)
    assert by_owner(parts) == by_owner(whole)
    assert (whole.states is not None) == (method.name != "terminal")


def test_the_scores_are_the_rewards_of_the_images() -> None:
    update = update_of(TerminalMatching(beta=1.0))
    rollout = rolled_out(update)
    points = update.model.decode(rollout.x0)[:, 0, 0]
    torch.testing.assert_close(rollout.scores, points @ torch.tensor([0.4, -0.3]))


def test_parts_take_a_generator_for_each_trajectory() -> None:
    update = update_of(TerminalMatching(beta=1.0))
    keep = torch.ones(4, 1, dtype=torch.long)
    with pytest.raises(UserError, match=r"^noise: .*trajectory_noise"):
        update.rollout([""] * 4, torch.Generator(), keep, size=2)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_estimates_in_parts_are_those_of_the_transitions_in_their_order(method: Method) -> None:
    update = update_of(method)
    rollout = rolled_out(update, size=2)
    whole = update.estimates(rollout)
    for size in (1, 3):
        torch.testing.assert_close(update.estimates(rollout, size).target, whole.target)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_rollout_comes_back_from_a_checkpoint(method: Method) -> None:
    update = update_of(method)
    rollout = rolled_out(update)
    assert_same(update.restored(rollout.state()), rollout)
    assert torch.equal(update.restored(rollout.state()).transitions.x, rollout.transitions.x)


def test_what_older_checkpoints_leave_out_of_a_rollout_is_not_missed() -> None:
    update = update_of(TerminalMatching(beta=1.0))
    rollout = rolled_out(update)
    older = {k: v for k, v in rollout.state().items() if k not in ("states", "components")}
    assert_same(update.restored(older), rollout)


@pytest.mark.parametrize("size", [None, 4])
def test_gradients_are_those_of_the_mean_loss(size: int | None) -> None:
    update = update_of(AdjointMatching(beta=1.0))
    rollout = rolled_out(update)
    batch = update.batch(rollout, update.credits(rollout))
    weights = [weight for weight in update.objective.parameters() if weight.requires_grad]
    loss = update.method.losses(batch, update.networks).total.mean()
    wanted = torch.autograd.grad(loss, weights)
    figures = add_gradients(update.objective, batch, size)
    torch.testing.assert_close([weight.grad for weight in weights], list(wanted))
    torch.testing.assert_close(figures["loss"] / len(batch), loss.detach())


def test_an_average_follows_in_plain_tensors_or_in_a_copy() -> None:
    network, copy = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    torch.nn.init.constant_(copy.weight, 1.0)
    averages = [Average(network, 0.5), Average(network, 0.5, into=copy)]
    torch.nn.init.constant_(network.weight, 3.0)
    for average in averages:
        average.update()
        average.update()
        assert average.values["weight"].item() == 2.5  # 1, 2, 2.5
    assert copy.weight.item() == 2.5
