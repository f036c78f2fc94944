"""Value gradients, a part of the trajectories at a time: the same figures, less memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import draw_transitions, trajectory_noise
from nablaflow.runs.setup import Parts
from nablaflow.training.batches import RolloutPlan, Share
from nablaflow.training.loop import Trainer
from nablaflow.training.rollout import Rollout
from nablaflow.training.update import Update
from tests.support.pipelines import perturb
from tests.training.updates import ESTIMATING, TRAJECTORIES, assert_close, train

MakeParts = Callable[..., Parts]


def estimate(trainer: Trainer, rollout: Rollout, size: int = TRAJECTORIES) -> Any:
    trainer.begin()
    return trainer.batches.core.estimates(rollout, size)


def rolled_out(parts: Parts, share: Share) -> Rollout:
    """A rollout of one process's share of four trajectories, with all its states."""
    prompts = ["a circle", "a star", "a circle", "a square"]
    plan = RolloutPlan.draw(
        prompts,
        seed=1,
        update=0,
        draw=lambda n, generator: draw_transitions(
            n, parts.model.process.steps, 2, generator, always_last=True
        ),
        share=share,
    )
    noise = trajectory_noise(plan.seeds)
    return parts.trainer.batches.core.rollout(plan.prompts, noise, plan.keep, size=2)


# --- how the work is split ------------------------------------------------------------------------

SPLIT = ["training.estimate_batch=3", "training.micro_batch=3", "training.rollout_batch=1"]


@pytest.mark.parametrize("name", ["strided", "nabla-td", "value-matching n-step"])
def test_the_split_does_not_change_the_figures(make_parts: MakeParts, name: str):
    whole = train(make_parts(*ESTIMATING[name]).trainer, 2)
    assert_close(train(make_parts(*ESTIMATING[name], *SPLIT).trainer, 2), whole)


@pytest.mark.parametrize(
    "name", ["strided", "nabla-td", "value-matching n-step", "value-matching forward-looking-flow"]
)
def test_estimates_come_in_the_order_of_the_transitions(make_parts: MakeParts, name: str):
    """Whatever the parts, and whichever process has them: the same for each transition."""
    parts = make_parts(*ESTIMATING[name])
    perturb(parts.model.network)
    flow = parts.trainer.networks.flow_target
    if flow is not None:  # it begins as zero
        perturb(flow.requires_grad_(), scale=0.05)
        flow.requires_grad_(False)
    whole = rolled_out(parts, Share(TRAJECTORIES, 0, TRAJECTORIES))
    expected = estimate(parts.trainer, whole)
    assert (expected.flow is None) == (flow is None)
    found = estimate(parts.trainer, whole, size=3)
    assert_near(found.target, expected.target)
    if flow is not None:
        assert_near(found.flow, expected.flow)
    share = Share.of(TRAJECTORIES, process=1, processes=2)
    part, t = rolled_out(parts, share), whole.transitions
    own = (t.trajectory >= share.start).nonzero()[:, 0]
    assert_near(part.transitions.x, t.x[own])
    assert_near(estimate(parts.trainer, part, size=1).target, expected.target[own])


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Row by row; a score differs by rounding over the least variance, so not value by value."""
    assert found.shape == wanted.shape
    assert wanted.flatten(1).norm(dim=1).min() > 0
    assert ((found - wanted).flatten(1).norm(dim=1) < 2e-3 * wanted.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("name", ["adjoint-matching", "nabla-td"])
def test_gradient_checkpointing_does_not_change_the_figures(make_parts: MakeParts, name: str):
    plain = train(make_parts(*ESTIMATING[name]).trainer, 2)
    parts = make_parts(*ESTIMATING[name], "training.gradient_checkpointing=true")
    network: Any = parts.model.network
    runs: list[bool] = []
    network.down_blocks[0].resnets[0].register_forward_pre_hook(
        lambda *_: runs.append(torch.is_grad_enabled())
    )
    assert_close(train(parts.trainer, 2), plain)
    assert len(runs) > 10


# --- memory ---------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_estimates_and_not_the_figures(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    method = ESTIMATING["adjoint-matching"]
    direct = train(make_parts(*method, "training.estimate_batch=1").trainer, 2)

    whole = Update.estimates

    def limited(self: Update, path: Any, size: int) -> Any:
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, path, size)

    monkeypatch.setattr(Update, "estimates", limited)
    trainer = make_parts(*method).trainer
    assert train(trainer, 2) == direct
    assert trainer.checkpoint().state["estimate_batch"] == 1
    assert capsys.readouterr().err.count("training.estimate_batch is now") == 2, "4, 2, 1, once"


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ([], [4]),
        (["training.estimate_batch=3"], [3, 1]),
        (["training.micro_batch=2"], [2, 2]),
        (["training.micro_batch=1", "training.estimate_batch=9"], [4]),
    ],
)
def test_the_settings_bound_how_many_trajectories_have_a_graph(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, given: list[str], sizes: list[int]
):
    trainer = make_parts("method=terminal", *given).trainer
    kind, seen = type(trainer.batches.core.estimator), []
    find = kind.estimate

    def watched(self: Any, path: Any, *rest: Any) -> Any:
        seen.append(len(path))
        return find(self, path, *rest)

    monkeypatch.setattr(kind, "estimate", watched)
    trainer.step()
    assert seen == sizes


def graphs() -> int:
    """Tensors that hold a graph."""
    gc.collect()
    return sum(type(part) is Tensor and part.grad_fn is not None for part in gc.get_objects())


@pytest.mark.parametrize("name", ["nabla-td", "value-matching forward-looking-flow"])
def test_no_graph_is_held_when_the_losses_begin(make_parts: MakeParts, name: str):
    trainer = make_parts(*ESTIMATING[name]).trainer
    before, during = graphs(), []
    trainer.stepper.objective.register_forward_pre_hook(lambda *_: during.append(graphs()))
    trainer.step()
    assert len(during) == 1
    assert during[0] <= before
