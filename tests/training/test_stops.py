"""A figure that is not finite stops the run, is named, and leaves what was saved whole."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.methods import Losses, ResidualNablaDB
from nablaflow.rewards import NamedReward, load
from nablaflow.runs import align
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training.stepper import MOST_SKIPPED

pytestmark = pytest.mark.usefixtures("lean_runs")

MakeConfig = Callable[..., Config]
MakeParts = Callable[..., Parts]


def assert_whole(run: Path, updates: int) -> None:
    """Every record is complete and finite, and the last checkpoint can be loaded."""

    def refuse(word: str) -> None:
        raise AssertionError(f"metrics.jsonl holds {word}")

    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    records = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [record["update"] for record in records] == list(range(1, updates + 1))
    checkpoint = load_checkpoint(list_checkpoints(run)[-1])
    assert checkpoint.update == updates
    for tensors in checkpoint.tensors.values():
        assert all(value.isfinite().all() for value in tensors.values())
    assert not list(run.rglob(".partial*"))


class TurnsBad:
    """A reward that is another one for some calls, then what ``spoil`` makes of it."""

    __name__ = "turns_bad"

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        self.spoil, self.bad = spoil, False

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = load("warmth")(images, prompts)
        return self.spoil(scores) if self.bad else scores


def start_spoiling_after(update: int, reward: TurnsBad, patch: pytest.MonkeyPatch) -> None:
    append = align.append_record

    def watch(run: Path, record: dict[str, Any]) -> None:
        append(run, record)
        reward.bad = record["update"] >= update

    patch.setattr(align, "append_record", watch)


@pytest.mark.parametrize(
    "spoil", [lambda s: s * math.nan, lambda s: s / 0.0], ids=["nan", "infinity"]
)
def test_a_reward_that_turns_bad_is_named(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Tensor], Tensor],
):
    reward = TurnsBad(spoil)
    start_spoiling_after(2, reward, monkeypatch)
    config = make_config("training.checkpoint_every=1")
    with pytest.raises((UserError, TrainingStopped), match="turns_bad"):
        align.run(config, reward=NamedReward("turns_bad", reward))
    assert_whole(tmp_path / "run", updates=2)


def test_a_reward_whose_gradient_turns_bad_is_named(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # d sqrt(u) / du at u = 0 is infinite, and infinity times 0 is NaN: the scores stay finite.
    reward = TurnsBad(lambda s: s + (s * 0.0).sqrt())
    start_spoiling_after(1, reward, monkeypatch)
    config = make_config("training.checkpoint_every=1")
    with pytest.raises((UserError, TrainingStopped), match=r"gradient.*turns_bad"):
        align.run(config, reward=NamedReward("turns_bad", reward))
    assert_whole(tmp_path / "run", updates=1)


def test_states_that_blow_up_are_named_and_not_blamed_on_the_reward(
    make_config: MakeConfig, tmp_path: Path
):
    config = make_config("optimizer.learning_rate=1e20", "training.checkpoint_every=1")
    with pytest.raises(TrainingStopped, match=r"^update \d+: .*learning_rate") as caught:
        align.run(config)
    assert "reward" not in str(caught.value)
    updates = int(str(caught.value).split(":")[0].removeprefix("update ")) - 1
    assert updates >= 1, "the first update starts from good weights"
    assert_whole(tmp_path / "run", updates)


def spoiled(term: str) -> Callable[..., Losses]:
    losses = ResidualNablaDB.losses

    def spoil(self: ResidualNablaDB, *arguments: Any) -> Losses:
        found = losses(self, *arguments)
        return Losses({**found.terms, term: found.terms[term] * math.nan}, found.metrics)

    return spoil


@pytest.mark.parametrize("term", ["forward", "reverse", "terminal"])
def test_the_part_of_the_loss_that_is_not_finite_is_named(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, term: str
):
    trainer = make_parts().trainer
    trainer.step()
    before = trainer.checkpoint()
    monkeypatch.setattr(ResidualNablaDB, "losses", spoiled(term))
    with pytest.raises(TrainingStopped, match=f"^update 2: loss_{term} is not finite"):
        trainer.step()
    after = trainer.checkpoint()
    for group, tensors in before.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(after.tensors[group][name], value), "nothing was applied"


@pytest.mark.parametrize("network", ["policy", "flow"])
def test_a_gradient_that_is_not_finite_is_named_and_not_applied(
    make_parts: MakeParts, network: str
):
    # The loss may be finite where its gradient is not.
    trainer = make_parts().trainer
    trainer.step()
    before = trainer.checkpoint()
    group = trainer.stepper.optimizer.param_groups[("policy", "flow").index(network)]
    group["params"][0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingStopped, match=f"^update 2: {network}_gradient_norm is not finite"):
        trainer.step()
    after = trainer.checkpoint()
    for name, value in before.tensors[network].items():
        assert torch.equal(after.tensors[network][name], value)
    assert trainer.update == 1


@pytest.mark.usefixtures("other_precision")
def test_a_gradient_scaler_does_not_leave_out_updates_for_ever(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_parts().trainer
    monkeypatch.setattr(
        type(trainer.stepper._prepared), "step_was_skipped", property(lambda self: True)
    )
    training = trainer.config.training.model_copy(update={"precision": "fp16"})
    trainer.config = trainer.config.model_copy(update={"training": training})
    for _ in range(MOST_SKIPPED - 1):
        trainer.step()
    with pytest.raises(TrainingStopped, match=r"ever smaller scales.*training\.precision=bf16"):
        trainer.step()


@pytest.mark.usefixtures("other_precision")
def test_an_average_stays_where_a_step_is_left_out(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    stepper = (trainer := make_parts("adapter.ema_decay=0.5").trainer).stepper
    trainer.step()
    assert stepper.average is not None
    before = {name: value.clone() for name, value in stepper.average.values.items()}
    monkeypatch.setattr(type(stepper._prepared), "step_was_skipped", property(lambda self: True))
    trainer.step()
    after = stepper.average.values
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_disk_that_is_full_for_the_log_is_one_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(align, "append_record", full)
    with pytest.raises(UserError, match=r"output_dir: cannot write .*No space left.*--resume"):
        align.run(make_config("training.updates=1"))


def test_the_learning_rate_is_not_blamed_while_the_policy_is_the_reference(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_parts().trainer
    monkeypatch.setattr(ResidualNablaDB, "losses", spoiled("forward"))
    with pytest.raises(TrainingStopped, match=r"^update 1: .*still the reference") as caught:
        trainer.step()
    assert "learning_rate" not in str(caught.value)
