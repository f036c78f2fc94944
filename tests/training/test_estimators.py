"""Methods that find value gradients along whole trajectories, in the loop that runs them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.diffusion import ReverseProcess
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.estimators import TrainingBatch
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.setup import Parts, prepare
from nablaflow.training.loop import Trainer
from nablaflow.training.rollout import Rollout
from nablaflow.training.update import Update
from tests.support.pipelines import perturb, unconditional
from tests.training.updates import ESTIMATING, TRAJECTORIES, figures, train

MakeParts = Callable[..., Parts]


def watch(trainer: Trainer) -> list[TrainingBatch]:
    """The batches that the method's losses see, in order."""
    batches: list[TrainingBatch] = []
    trainer.stepper.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    return batches


# --- every method trains --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATING)
def test_a_method_with_an_estimator_trains(make_parts: MakeParts, name: str):
    trainer = make_parts(*ESTIMATING[name]).trainer
    batches = watch(trainer)
    before = copy.deepcopy(trainer.checkpoint().tensors)
    records = [trainer.step() for _ in range(2)]
    after = trainer.checkpoint().tensors
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[0]["value_gradient_norm"] > 0
    for record in records:
        assert 0 < record["estimate_seconds"] < record["seconds"]
    assert trainer.method.uses_flow == ("flow" in after) == ("loss_flow" in records[0])
    for group in ("policy", *(["flow", "flow_target"] if trainer.method.uses_flow else [])):
        moved = [not torch.equal(before[group][key], after[group][key]) for key in after[group]]
        assert any(moved), group
    for batch in batches:
        assert batch.estimate is not None
        found = [batch.estimate.target, batch.estimate.flow]
        for part in found if trainer.method.uses_flow else found[:1]:
            assert part is not None
            assert part.dtype == torch.float32
            assert not part.requires_grad


def test_a_method_without_an_estimator_has_no_time_for_one(make_parts: MakeParts):
    assert "estimate_seconds" not in make_parts("training.updates=1").trainer.step()


@pytest.mark.parametrize("name", ["adjoint-matching", "nabla-td"])
def test_a_pixel_space_model_trains_alike(make_parts: MakeParts, tmp_path: Path, name: str):
    folder = tmp_path / "ddpm"
    unconditional().save_pretrained(folder)
    of_it = [f"model={folder}", "sampler.name=ddpm", "training.estimate_batch=3"]
    trainer = make_parts(*ESTIMATING[name], *of_it).trainer
    for record in train(trainer, 2):
        assert all(math.isfinite(value) for value in record.values())
        assert record["value_gradient_norm"] > 0


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("terminal", False),
        ("value-matching forward-looking", False),
        ("adjoint-matching", True),
        ("value-matching n-step", True),
    ],
)
def test_only_what_needs_the_states_keeps_them(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, name: str, kept: bool
):
    trainer = make_parts(*ESTIMATING[name]).trainer
    rollouts: list[Rollout] = []

    make = Update.scored

    def spy(*arguments: Any, **options: Any) -> Rollout:
        rollouts.append(make(*arguments, **options))
        return rollouts[-1]

    monkeypatch.setattr(Update, "scored", spy)
    trainer.step()
    (rollout,) = rollouts
    if not kept:
        assert rollout.states is None
        return
    assert rollout.states is not None
    assert rollout.states.shape == (5, TRAJECTORIES, 4, 8, 8)
    t = rollout.transitions
    assert torch.equal(rollout.states[0], rollout.x0)
    assert torch.equal(rollout.states[t.k, t.trajectory], t.x)
    assert torch.equal(rollout.states[t.k - 1, t.trajectory], t.x_next)


# --- the right numbers ----------------------------------------------------------------------------


def reference_mean(
    bare: Any, process: ReverseProcess, x: Tensor, k: int, scale: float, prompts: list[str]
) -> Tensor:
    """One step of the pretrained model, from the bare network: two halves, guidance, Tweedie."""
    embedded, negative = bare.encode_prompt(prompts, torch.device("cpu"), 1, True)
    timestep = process.timestep[k]
    positive = bare.unet(x, timestep, embedded).sample
    negative = bare.unet(x, timestep, negative).sample
    epsilon = negative + scale * (positive - negative)
    alpha_bar = process.alpha_bar[k]
    x0_hat = (x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    return process.from_x[k] * x + process.from_x0[k] * x0_hat + process.from_epsilon[k] * epsilon


def derivatives(
    bare: Any, process: ReverseProcess, states: list[Tensor], scale: float, prompts: list[str]
) -> list[Tensor]:
    """d r(x_0) / d x_k for k = 0, ..., K of the reference's chain whose noise leads to ``states``.

    One graph from x_K to the reward: what each step adds to the reference's mean is a constant.
    """
    x = states[-1].clone().requires_grad_()
    path = [x]
    for k in range(process.steps, 0, -1):
        mean = reference_mean(bare, process, x, k, scale, prompts)
        x = mean + (states[k - 1] - mean).detach()
        path.append(x)
    images = bare.vae.decode(x / bare.vae.config.scaling_factor).sample / 2 + 0.5
    reward = load("warmth")(images.clamp(0, 1), prompts).sum()
    return list(torch.autograd.grad(reward, path))[::-1]


@pytest.mark.parametrize("data", ["on-policy", "previous-rollout"])
def test_the_adjoint_is_the_derivative_along_the_references_chain(
    make_parts: MakeParts, tiny_model: Path, data: str
):
    scale, beta = 3.0, 7.0
    parts = make_parts(
        *("method=adjoint-matching", f"method.beta={beta}", f"sampler.guidance_scale={scale}"),
        *("training.transition_fraction=1.0", "training.estimate_batch=3", f"training.data={data}"),
    )
    perturb(parts.model.network)  # the states are the policy's, the Jacobians the reference's
    batches = watch(parts.trainer)
    train(parts.trainer, 2)
    batch = batches[-1]
    t, process = batch.transitions, parts.model.process
    bare: Any = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    assert batch.estimate is not None
    assert t.trajectory.unique().tolist() == [0, 1, 2, 3]
    for trajectory in range(TRAJECTORIES):
        rows = (t.trajectory == trajectory).nonzero()[:, 0]
        rows = rows[t.k[rows].argsort()]
        assert t.k[rows].tolist() == [1, 2, 3, 4]
        states = [t.x_next[rows[0]], *t.x[rows]]
        slopes = derivatives(
            bare, process, [x[None] for x in states], scale, [batch.prompts[rows[0]]]
        )
        wanted = beta * torch.cat(slopes[:-1])
        assert wanted.flatten(1).norm(dim=1).min() > 1e-3
        torch.testing.assert_close(batch.estimate.target[rows], wanted, rtol=1e-3, atol=1e-4)


# --- precision and stops --------------------------------------------------------------------------


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("name", ["adjoint-matching", "nabla-td"])
def test_under_bf16_the_reward_and_the_estimates_are_float32(
    make_config: Callable[..., Config], name: str
):
    seen: set[Any] = set()

    def spy(images: Tensor, prompts: list[str]) -> Tensor:
        seen.add((images.dtype, torch.is_autocast_enabled("cpu")))
        if images.requires_grad:
            images.register_hook(lambda gradient: seen.add((gradient.dtype, False)))
        return load("warmth")(images, prompts)

    config = make_config(*ESTIMATING[name], "training.precision=bf16")
    parts = prepare(config, config.output_dir, NamedReward("spy", spy))
    batches = watch(parts.trainer)
    train(parts.trainer, 2)
    assert seen == {(torch.float32, False)}
    for batch in batches:
        assert batch.estimate is not None
        assert batch.estimate.target.dtype == torch.float32
        assert batch.estimate.target.flatten(1).norm(dim=1).min() > 0


def test_an_adjoint_that_is_not_finite_stops_the_run_and_nothing_is_applied(make_parts: MakeParts):
    parts = make_parts("method=adjoint-matching")
    trainer = parts.trainer
    trainer.step()
    before = copy.deepcopy(trainer.checkpoint().tensors)
    network: Any = parts.model.network

    def spoil(_: Any, given: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    network.conv_in.register_forward_hook(spoil)
    with pytest.raises(TrainingStopped, match=r"^update 2: the adjoint, .*, is not finite"):
        trainer.step()
    for group, tensors in before.items():
        for name, value in tensors.items():
            assert torch.equal(trainer.checkpoint().tensors[group][name], value)


def test_stale_data_keeps_its_states_in_a_checkpoint(make_parts: MakeParts):
    settings = ("method=adjoint-matching", "training.data=previous-rollout")
    straight = make_parts(*settings).trainer
    straight.step()
    resumed = make_parts(*settings).trainer
    resumed.restore(straight.checkpoint())
    (pending,) = straight.checkpoint().state["pending"]
    assert pending["states"].shape == (5, TRAJECTORIES, 4, 8, 8)
    assert figures(resumed.step()) == figures(straight.step())


def test_what_moves_without_a_reward_is_refused_before_the_first_update(make_parts: MakeParts):
    given = ["method=path-weighted-matching", "training.images_per_prompt=8"]
    trainer = make_parts(*given).trainer
    before = copy.deepcopy(trainer.checkpoint().tensors["policy"])
    with pytest.raises(UserError, match=r"^method: without any reward path-weighted-matching "):
        trainer.step()
    after = trainer.checkpoint().tensors["policy"]
    assert trainer.update == 0
    assert all(after[name].equal(value) for name, value in before.items())
    assert make_parts(*given, "method.adjoint_above=0").trainer.step()["update"] == 1
