"""The loop: the same figures however the work is split, one step per update, the right data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.estimators import Path
from nablaflow.rewards import NamedReward, load
from nablaflow.runs.setup import Parts, prepare
from nablaflow.training import stepper
from nablaflow.training.loop import Trainer
from nablaflow.training.optimization import Objective
from nablaflow.training.rollout import Rollout
from nablaflow.training.stepper import Stepper
from nablaflow.training.update import Update
from tests.training.updates import assert_close, figures, train

MakeParts = Callable[..., Parts]
TRANSITIONS = 8  # of one update of the settings


# --- how the work is split ------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["training.micro_batch=2", "training.micro_batch=3"])
def test_accumulation_does_not_change_the_figures(make_parts: MakeParts, split: str):
    whole = train(make_parts(f"training.micro_batch={TRANSITIONS}").trainer)
    assert_close(train(make_parts(split).trainer), whole)


@pytest.mark.parametrize("split", ["training.rollout_batch=1", "training.rollout_batch=3"])
def test_the_rollout_batch_does_not_change_the_figures(make_parts: MakeParts, split: str):
    assert_close(train(make_parts(split).trainer), train(make_parts().trainer))


@pytest.mark.parametrize("method", ["refl", "draft", "dag-db"])
def test_the_decode_batch_is_how_many_images_are_decoded_at_once(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, method: str
):
    """Under a reward's gradient too; the figures stay what they are."""
    own = f"method={method}", f"training.micro_batch={TRANSITIONS}"
    whole = train(make_parts(*own).trainer, 2)
    trainer, at_once = make_parts(*own, "training.decode_batch=1").trainer, set[int]()
    for name in ("decode", "decode_for_gradient"):
        decode = getattr(trainer.model, name)

        def counted(x0: torch.Tensor, decode: Any = decode) -> torch.Tensor:
            at_once.add(len(x0))
            return decode(x0)

        monkeypatch.setattr(trainer.model, name, counted)
    assert_close(train(trainer, 2), whole)
    assert at_once == {1}


def test_a_part_of_a_batch_goes_along_few_trajectories(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    """DDPO with the KL to go makes passes along whole trajectories for each part."""
    own = "method=ddpo", "method.kl_to_go=true", "method.kl_weight=1", "method.advantage=centred"
    own += "method.max_advantage=null", "training.transition_fraction=1.0"
    rows: list[int] = []
    trainer = make_parts(*own, "training.micro_batch=4").trainer
    losses = type(trainer.core.method).losses

    def noted(method: Any, batch: Any, networks: Any) -> Any:
        rows.append(len(batch.transitions.trajectory.unique()))
        return losses(method, batch, networks)

    monkeypatch.setattr(type(trainer.core.method), "losses", noted)
    train(trainer, 1)
    assert rows
    assert max(rows) <= 2, "four transitions, of steps enough for each trajectory to have some"


@pytest.mark.parametrize("method", ["refl", "draft", "alignprop"])
def test_a_method_of_one_transition_has_it_whatever_share_is_asked_for(
    make_parts: MakeParts, make_config: Callable[..., Config], method: str
):
    least = "training.transition_fraction=0.01"  # of four steps none
    assert make_config(f"method={method}", least).transitions_each == 1
    parts = make_parts(f"method={method}", least)
    rollout, _ = parts.trainer.batches.rollouts(0)
    assert len(rollout.transitions) == len(rollout)
    with pytest.raises(UserError, match=r"training\.transition_fraction: .*no transition"):
        make_config(least)


def test_another_seed_gives_other_figures(make_parts: MakeParts):
    first, second = (make_parts(f"seed={seed}").trainer.step() for seed in (0, 1))
    assert first["reward_mean"] != pytest.approx(second["reward_mean"], rel=1e-3)


# --- out of memory --------------------------------------------------------------------------------


def refuse_more_than(limit: int, patch: pytest.MonkeyPatch) -> None:
    """A machine on which more than ``limit`` transitions at once do not fit."""
    forward = Objective.forward

    def limited(self: Objective, batch: Any) -> Any:
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch)

    patch.setattr(Objective, "forward", limited)


def test_out_of_memory_halves_the_micro_batch_and_not_the_figures(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    direct = train(make_parts("training.micro_batch=2").trainer)
    refuse_more_than(3, monkeypatch)
    trainer = make_parts().trainer
    assert train(trainer) == direct
    assert trainer.checkpoint().state["micro_batch"] == 2, "a resumed run starts where this ended"
    shown = capsys.readouterr()
    assert "training.micro_batch is now 2" in shown.err
    assert shown.out == "", "stdout belongs to --json"


def test_out_of_memory_halves_the_rollout_batch_and_not_the_figures(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    gamma = "method.gamma=one"  # nothing is sampled before the first update
    direct = train(make_parts(gamma, "training.rollout_batch=2").trainer)
    whole = Update.sampled

    def limited(self: Update, prompts: Any, noise: Any, keep: Any, size: int, *more: Any) -> Path:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, prompts, noise, keep, size, *more)

    monkeypatch.setattr(Update, "sampled", limited)
    assert train(make_parts(gamma).trainer) == direct


def test_too_many_images_at_once_do_not_cost_the_sampling_again(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    direct = train(make_parts("training.decode_batch=1").trainer)
    sample, score, samplings = Update.sampled, Update.scored, []

    def counted(*given: Any) -> Path:
        samplings.append(1)
        return sample(*given)

    def limited(self: Update, path: Path, size: int) -> Rollout:
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, path, size)

    monkeypatch.setattr(Update, "sampled", counted)
    monkeypatch.setattr(Update, "scored", limited)
    trainer = make_parts().trainer
    assert_close(train(trainer), direct)
    assert len(samplings) == 3, "one for each update"
    assert trainer.checkpoint().state["decode_batch"] == 1, "a resumed run starts where this ended"
    assert capsys.readouterr().err.count("training.decode_batch is now") == 2, "4, 2, 1, once"


def test_out_of_memory_with_one_transition_stops_with_a_remedy(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    refuse_more_than(0, monkeypatch)
    with pytest.raises(TrainingStopped, match=r"training\.micro_batch.*gradient_checkpointing"):
        make_parts().trainer.step()


def test_an_error_other_than_memory_is_not_retried(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    def broken(self: Objective, batch: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        make_parts().trainer.step()


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


def test_the_norm_of_the_applied_gradient_is_at_most_the_limit(make_parts: MakeParts):
    trainer = make_parts("optimizer.max_grad_norm=1e-3").trainer
    applied: list[float] = []

    def measure(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            squares = [p.grad.square().sum() for p in group["params"] if p.grad is not None]
            applied.append(float(torch.stack(squares).sum().sqrt()))

    trainer.stepper.optimizer.register_step_pre_hook(measure)
    record = trainer.step()
    assert record["policy_gradient_norm"] > 1e-3, "the logged norm is the one before clipping"
    assert applied
    assert max(applied) <= 1e-3 * (1 + 1e-4)


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
