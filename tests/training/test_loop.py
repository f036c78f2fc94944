"""The loop: one step per update, the right data, and what the settings of the update do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.setup import Parts, prepare
from nablaflow.training import stepper
from nablaflow.training.loop import Trainer
from nablaflow.training.rollout import Rollout
from nablaflow.training.stepper import Stepper
from nablaflow.training.update import Update
from tests.training.updates import assert_close, figures, train

MakeParts = Callable[..., Parts]
TRANSITIONS = 8  # of one update of the settings


# --- one step per update --------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [TRANSITIONS, 2])
def test_the_optimizer_steps_once_per_update(make_parts: MakeParts, micro_batch: int):
    trainer = make_parts(f"training.micro_batch={micro_batch}").trainer
    steps: list[int] = []
    trainer.stepper.optimizer.register_step_post_hook(lambda *_: steps.append(trainer.update))
    train(trainer)
    assert steps == [0, 1, 2]


def scaled(parts: Parts, patch: pytest.MonkeyPatch, scale: float) -> Trainer:
    """A trainer with a gradient scaler, as fp16 on a GPU has one, but with float32 networks."""
    accelerator = parts.accelerator
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    patch.setattr(accelerator, "scaler", scaler)
    patch.setitem(accelerator.state.__dict__, "_mixed_precision", "fp16")
    flow = parts.trainer.flow
    trainer = Trainer(parts.config, parts.prompts, parts.model, parts.reward, flow, accelerator)
    # Now, not before, so that no network runs in half precision: that is not what is looked at.
    patch.setattr(accelerator, "native_amp", True)
    patch.setattr(accelerator, "autocast", nullcontext)
    patch.setattr(accelerator, "_optimizers", accelerator._optimizers[-1:])
    return trainer


def test_a_gradient_scaler_neither_steps_twice_nor_changes_the_update(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    plain = make_parts("training.micro_batch=2").trainer
    expected = figures(plain.step())
    trainer = scaled(make_parts("training.micro_batch=2"), monkeypatch, scale=2.0**10)
    steps: list[int] = []
    trainer.stepper.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    record = figures(trainer.step())
    assert steps == [1]
    # Gradient norms too: they are those of the unscaled gradients.
    assert_close([record], [expected])
    weights, wanted = trainer.checkpoint().tensors, plain.checkpoint().tensors
    torch.testing.assert_close(weights["policy"], wanted["policy"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights["flow"], wanted["flow"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", ["1e-3", "null"])
def test_the_norm_of_the_applied_gradient_is_at_most_the_limit(make_parts: MakeParts, limit: str):
    trainer = make_parts(f"optimizer.max_grad_norm={limit}").trainer
    applied: list[float] = []

    def measure(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            squares = [p.grad.square().sum() for p in group["params"] if p.grad is not None]
            applied.append(float(torch.stack(squares).sum().sqrt()))

    trainer.stepper.optimizer.register_step_pre_hook(measure)
    record = trainer.step()
    assert record["policy_gradient_norm"] > 1e-3, "the logged norm is the one before clipping"
    norms = [record["policy_gradient_norm"], record["flow_gradient_norm"]]
    most = math.inf if limit == "null" else 1e-3
    assert applied == pytest.approx([min(norm, most) for norm in norms], rel=1e-3)


# --- what an update trains on ---------------------------------------------------------------------


def watch(trainer: Trainer, patch: pytest.MonkeyPatch) -> tuple[list[Rollout], list[Any]]:
    """The rollouts made and the batches trained, in order."""
    rollouts, batches = [], []
    make = Update.scored

    def spy(*arguments: Any, **options: Any) -> Rollout:
        rollouts.append(make(*arguments, **options))
        return rollouts[-1]

    patch.setattr(Update, "scored", spy)
    trainer.stepper.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    return rollouts, batches


def same_states(batch: Any, rollout: Rollout) -> bool:
    return torch.equal(batch.transitions.x_next, rollout.transitions.x_next)


def test_data_is_on_policy_by_default(make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch):
    trainer = make_parts().trainer
    rollouts, batches = watch(trainer, monkeypatch)
    train(trainer)
    assert [same_states(b, r) for b, r in zip(batches, rollouts, strict=True)] == [True] * 3


def test_stale_data_is_a_choice(make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch):
    trainer = make_parts(
        "training.data=previous-rollout", "method.output_regularization=0.1"
    ).trainer
    rollouts, batches = watch(trainer, monkeypatch)
    records = train(trainer)
    assert len(rollouts) == 4, "one for each update, and one before the first"
    assert [same_states(b, r) for b, r in zip(batches, rollouts[:-1], strict=True)] == [True] * 3
    assert records[0]["loss_output_regularization"] == pytest.approx(0.0, abs=1e-9)
    for record in records[1:]:
        assert record["loss_output_regularization"] > 1e-7, "the policy has moved since"


@pytest.mark.parametrize("rollout_batch", [1, 3, 4])
def test_each_transition_is_trained_with_the_prompt_of_its_own_image(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, rollout_batch: int
):
    parts = make_parts(f"training.rollout_batch={rollout_batch}", "method.always_last=true")
    rollouts, batches = watch(parts.trainer, monkeypatch)
    parts.trainer.step()
    (rollout,), (batch,) = rollouts, batches
    last = (batch.transitions.k == 1).nonzero()[:, 0].tolist()
    owners = [
        next(i for i, x0 in enumerate(rollout.x0) if torch.equal(x0, batch.transitions.x_next[row]))
        for row in last
    ]
    assert set(owners) == {0, 1, 2, 3}, "each trajectory's last transition is there"
    wanted = [rollout.prompts[owner] for owner in owners]
    assert len(set(wanted)) == 2
    assert [batch.prompts[row] for row in last] == wanted
    embeddings = parts.model.condition(wanted).hidden
    assert torch.equal(batch.condition.hidden[last], embeddings)


def test_scores_are_those_of_the_images_and_prompts_of_the_rollout(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    parts = make_parts("training.rollout_batch=3", "reward=brightness")
    rollouts, _ = watch(parts.trainer, monkeypatch)
    record = parts.trainer.step()
    luma = torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]
    images = parts.model.decode(rollouts[0].x0)
    assert rollouts[0].scores == pytest.approx((images * luma).sum(1).mean((1, 2)).numpy(), abs=0.1)
    assert record["reward_mean"] == pytest.approx(rollouts[0].scores.mean().item(), rel=1e-5)
    assert record["reward_std"] == pytest.approx(rollouts[0].scores.std(correction=0).item(), 1e-4)


def test_every_prompt_comes_equally_often_across_a_resumed_run(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    first, second = make_parts().trainer, make_parts().trainer
    rollouts, _ = watch(first, monkeypatch)
    first.step()
    second.restore(first.checkpoint())
    train(second, 2)
    # 3 updates of 2 prompts are 2 epochs of 3 prompts, with 2 images each.
    drawn = Counter(prompt for rollout in rollouts for prompt in rollout.prompts)
    assert drawn == {"a circle": 4, "a square": 4, "a star": 4}


# --- settings of the update -----------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_follows_half_a_cosine(make_parts: MakeParts):
    trainer = make_parts(
        "optimizer.schedule=cosine", "optimizer.warmup=2", "training.updates=6"
    ).trainer
    rates = [record["learning_rate"] / 1e-2 for record in train(trainer, 6)]
    falling = torch.cos(torch.pi * torch.arange(4) / 4) / 2 + 0.5
    assert rates == pytest.approx([0.5, 1.0, *falling.tolist()], rel=1e-6)


def test_the_average_is_the_mean_of_the_policies_weighted_by_the_decay(make_parts: MakeParts):
    trainer = make_parts().trainer
    policies = [trainer.checkpoint().tensors["policy"]]
    for _ in range(3):
        trainer.step()
        policies.append(trainer.checkpoint().tensors["policy"])
    weights = [0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    for name, value in trainer.checkpoint().tensors["policy_average"].items():
        wanted = sum(w * policy[name] for w, policy in zip(weights, policies, strict=True))
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_reference_does_not_move(make_parts: MakeParts, kind: str):
    parts = make_parts(f"adapter.kind={kind}")
    model = parts.model
    x = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(0))
    k, condition = torch.tensor([1, 3]), model.condition(["a circle", "a star"])

    @torch.no_grad()
    def predictions() -> tuple[torch.Tensor, torch.Tensor]:
        with model.reference():
            reference = model.predict(x, k, condition).epsilon
        return reference, model.predict(x, k, condition).epsilon

    before, policy_before = predictions()
    train(parts.trainer, 2)
    after, policy_after = predictions()
    assert torch.equal(before, policy_before), "training starts from the reference"
    assert torch.equal(before, after)
    assert not torch.allclose(policy_before, policy_after, atol=1e-5)


@pytest.mark.usefixtures("other_precision")
def test_under_bf16_rewards_and_what_trains_stay_in_float32(make_config: Callable[..., Config]):
    seen: set[Any] = set()

    def spy(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.add((images.dtype, torch.is_autocast_enabled("cpu")))
        if images.requires_grad:
            images.register_hook(lambda gradient: seen.add((gradient.dtype, False)))
        return load("warmth")(images, prompts)

    config = make_config("training.precision=bf16")
    parts = prepare(config, config.output_dir, NamedReward("spy", spy))
    dtypes = {parameter.dtype for parameter in parts.model.network.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}, "the frozen weights, and the LoRA's"
    train(parts.trainer, 2)
    assert seen == {(torch.float32, False)}
    for tensors in parts.trainer.checkpoint().tensors.values():
        assert {value.dtype for value in tensors.values()} == {torch.float32}


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("sharded", [False, True])
def test_the_loss_is_found_in_the_runs_precision(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch, sharded: bool
):
    """Whether the processes divide the policy or not."""
    whole = SimpleNamespace(gather=lambda: None, divided=nullcontext)
    monkeypatch.setattr(stepper, "_shards", lambda *_: whole)
    trainer = make_parts("training.precision=bf16").trainer
    seen: list[bool] = []
    trainer.stepper.objective.register_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    trainer.begin()
    given = trainer.config, trainer.stepper.objective, trainer.accelerator
    rollout, _ = trainer.batches.rollouts(0)
    batch = trainer.batches.training_batch(rollout, 0)
    figures = Stepper(*given, sharded=sharded).accumulate(batch)
    assert seen == [True]
    assert figures["loss"].dtype == torch.float32
