"""The same figures however the work of an update is split, and where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.estimators import Path
from nablaflow.runs.setup import Parts
from nablaflow.training.optimization import Objective
from nablaflow.training.rollout import Rollout
from nablaflow.training.update import Update
from tests.training.updates import assert_close, train

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
