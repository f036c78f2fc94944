"""Updates that share a rollout train at states noised afresh from its clean ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.methods import ResidualNablaDB
from nablaflow.rewards import memory
from nablaflow.runs import align
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import read_records
from nablaflow.training.batches import Share
from nablaflow.training.loop import Trainer
from nablaflow.training.rollout import Rollout
from tests.training.updates import TRAJECTORIES, train

MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]

SHARED = (
    *(
        "method=residual-nabla-db",
        "method.gamma=one",
        "method.step=exact",
        "method.reverse_weight=0",
        "flow=null",
    ),
    "training.updates_per_rollout=3",
)


def batches_of(trainer: Trainer, updates: int, patch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """What each update trained on, and how many rollouts were sampled."""
    batches, sampled, sample = [], [], trainer.core.sampled

    def counted(*given: Any) -> Any:
        sampled.append(1)
        return sample(*given)

    patch.setattr(trainer.core, "sampled", counted)
    trainer.stepper.objective.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    train(trainer, updates)
    return batches, len(sampled)


def test_a_rollout_serves_some_updates_at_new_states(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_parts(*SHARED, "training.transition_fraction=1.0").trainer
    batches, rollouts = batches_of(trainer, 4, monkeypatch)
    assert rollouts == 2, "before the first update and before the fourth"

    first, second, third, _ = batches
    for batch in (second, third):
        assert sorted(batch.prompts) == sorted(first.prompts)
        assert batch.transitions.x_next.isnan().all(), "what nobody may read is not there"
        states = torch.cat([first.transitions.x, batch.transitions.x]).flatten(1)
        assert len(states.unique(dim=0)) == len(states)
    assert not torch.equal(second.transitions.x, third.transitions.x)


def test_rollouts_go_through_all_prompts_in_turn(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    """Sharing skips none: two prompts at a time, six of them are seen once in three rollouts."""
    prompts = [f"prompt {number}" for number in range(6)]
    own = f"prompts={prompts}", "training.prompts_per_update=2", "evaluation.n=12"
    trainer = make_parts(*SHARED, *own).trainer
    seen: list[str] = []
    sampled = trainer.core.sampled

    def noted(prompts: list[str], *given: Any) -> Any:
        seen.extend(dict.fromkeys(prompts))
        return sampled(prompts, *given)

    monkeypatch.setattr(trainer.core, "sampled", noted)
    train(trainer, 9)
    assert sorted(seen) == prompts


def test_the_states_have_the_spread_of_the_noising_process(make_parts: MakeParts):
    trainer = make_parts(*SHARED).trainer
    core, process = trainer.core, trainer.model.process
    rollout, _ = trainer.batches.rollouts(0)
    keep = torch.full((TRAJECTORIES, 200), 3)
    found = core.at_fresh_states(rollout, keep, torch.Generator().manual_seed(0)).transitions
    kept = process.alpha_bar[3] / process.alpha_bar[0]
    own = rollout.x0[found.trajectory]  # the ends are the rollout's
    rest = (found.x - kept.sqrt() * own).flatten() / (1 - kept).sqrt()
    n = len(rest)
    assert abs(rest.mean()) < 4 / n**0.5
    assert abs(rest.var() - 1) < 4 * (2 / n) ** 0.5
    assert found.trajectory.tolist() == [row for row in range(TRAJECTORIES) for _ in range(200)]


def test_the_default_method_reads_nothing_of_a_transition_but_its_state(make_parts: MakeParts):
    """So its optimum is the same at states that no sampler passed."""
    trainer = make_parts(*SHARED).trainer
    batch = trainer.batches.training_batch(trainer.batches.rollouts(0)[0], 0)
    nothing = torch.full_like(batch.transitions.x, torch.nan)
    blind = replace(batch.transitions, x_next=nothing, epsilon=nothing, mean=nothing)
    wanted = trainer.method.losses(batch, trainer.networks).total
    found = trainer.method.losses(replace(batch, transitions=blind), trainer.networks).total
    assert torch.equal(found, wanted)
    assert wanted.isfinite().all()


def test_rows_are_of_the_global_batch(make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch):
    """Two processes noise as one does: their halves are the whole."""
    trainer = make_parts(*SHARED).trainer
    batches = trainer.batches
    rollout, _ = batches.rollouts(0)
    batches.pending = rollout
    whole = batches.rollouts(1)[0].transitions
    for process in range(2):
        share = Share.of(TRAJECTORIES, process, 2)
        with monkeypatch.context() as patch:
            patch.setattr(batches, "_share", lambda total, share=share: share)
            batches.pending = Rollout.rows_of([rollout], share.start, share.stop)
            part = batches.rollouts(1)[0].transitions
        rows = (whole.trajectory >= share.start) & (whole.trajectory < share.stop)
        assert torch.equal(part.x, whole.x[rows])
        assert torch.equal(part.k, whole.k[rows])


def test_a_reward_that_remembers_is_told_a_rollout_once(
    settings: dict[str, Any], make_parts: MakeParts
):
    light = {"name": "normalized", "of": "brightness", "window": 64}
    settings["reward"] = {"light": light, "warmth": 1.0}
    parts = make_parts(*SHARED)
    train(parts.trainer, 4)
    assert len(memory(parts.reward)["light"]) == 2 * TRAJECTORIES


@pytest.mark.usefixtures("train_only")
@pytest.mark.parametrize("at", [1, 2, 3])
def test_it_resumes_bit_for_bit_wherever_it_stopped(
    make_config: MakeConfig, tmp_path: Path, at: int
):
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    align.run(make_config(f"output_dir={straight}", *SHARED))
    align.run(make_config(f"output_dir={halves}", *SHARED, f"training.updates={at}"))
    align.run(make_config(f"output_dir={halves}", *SHARED), resume=True)
    ours, theirs = (load_checkpoint(list_checkpoints(run)[-1]) for run in (halves, straight))
    assert ours.update == theirs.update == 4
    for name, value in theirs.tensors["policy"].items():
        assert torch.equal(ours.tensors["policy"][name], value), name
    losses = [[r["loss"] for r in read_records(run)] for run in (halves, straight)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["method.step=published"], "residual-nabla-db with these settings reads what"),
        (["method.reverse_weight=1.0", "flow={}"], "residual-nabla-db with these"),
        (["training.data=previous-rollout"], "use training.data=on-policy"),
        (["method.output_regularization=1.0"], "residual-nabla-db with these"),
    ],
)
def test_what_cannot_share_is_refused(make_parts: MakeParts, changes: list[str], words: str):
    with pytest.raises(UserError, match=rf"^training\.updates_per_rollout: 3 .*{words}"):
        make_parts(*SHARED, *changes)


def test_left_open_four_updates_share_one_where_they_can(make_config: MakeConfig):
    able = ("method.step=exact", "method.reverse_weight=0")
    assert make_config(*able, "method.gamma=one").updates_per_rollout == 4
    assert make_config(*able, "method.gamma=measured").updates_per_rollout == 4
    assert make_config(*able, "training.updates_per_rollout=2").updates_per_rollout == 2
    assert make_config(*able, "training.data=previous-rollout").updates_per_rollout == 1
    assert make_config("method.reverse_weight=1.0").updates_per_rollout == 1, "a flow network"


def test_which_methods_train_at_any_state():
    assert ResidualNablaDB(beta=1.0).trains_at_any_state
    assert ResidualNablaDB(beta=1.0).states_its_target
    measured = ResidualNablaDB(beta=1.0, gamma="measured")
    assert measured.trains_at_any_state
    assert measured.states_its_target
    assert not ResidualNablaDB.published(1.0, 0.0).trains_at_any_state
    assert not ResidualNablaDB(beta=1.0, output_regularization=1.0).trains_at_any_state


@pytest.mark.parametrize("data", ["on-policy", "previous-rollout"])
def test_a_rollout_that_is_kept_goes_on_with_any_number_of_processes(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, data: str
):
    """Two processes leave their halves; one has the whole, and of four each its quarter."""
    settings = SHARED if data == "on-policy" else (f"training.data={data}",)
    batches = make_parts(*settings).trainer.batches
    whole, _ = batches.rollouts(0)
    halves = [Rollout.rows_of([whole], at, at + TRAJECTORIES // 2) for at in (0, TRAJECTORIES // 2)]
    state = {**batches.state(), "pending": [half.state() for half in halves]}
    for processes in (1, 2, 4):
        parts: list[Rollout] = []
        for process in range(processes):
            share = Share.of(TRAJECTORIES, process, processes)
            with monkeypatch.context() as patch:
                patch.setattr(batches, "_share", lambda total, share=share: share)
                batches.restore(state)
            assert batches.pending is not None
            parts.append(batches.pending)
        assert [text for part in parts for text in part.prompts] == whole.prompts
        for name in ("x0", "scores", "log_prob"):
            found = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(found, getattr(whole, name)), name
        size = TRAJECTORIES // processes
        for row in range(TRAJECTORIES):
            part, own = parts[row // size].transitions, whole.transitions
            ours, theirs = part.trajectory == row % size, own.trajectory == row
            assert torch.equal(part.x[ours], own.x[theirs])
            assert torch.equal(part.k[ours], own.k[theirs])
