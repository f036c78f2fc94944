"""A reward that remembers, and rewards made of others, in training."""

from __future__ import annotations

import pytest
import torch

from nablaflow.rewards import memory
from nablaflow.runs import align
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from tests.support.run_folders import records

pytestmark = pytest.mark.usefixtures("train_only")

REWARD = {"light": {"name": "normalized", "of": "brightness", "window": 6}, "warmth": 0.5}


@pytest.mark.parametrize("data", ["on-policy", "previous-rollout"])
def test_a_resumed_run_goes_on_with_the_same_memory(settings, make_config, tmp_path, data):
    settings["reward"] = REWARD
    settings["training"]["data"] = data
    whole = align.run(make_config(f"output_dir={tmp_path / 'a'}")).folder
    align.run(make_config(f"output_dir={tmp_path / 'b'}", "training.updates=2"))
    parts = align.run(make_config(f"output_dir={tmp_path / 'b'}"), resume=True).folder
    assert records(parts) == records(whole)
    saved = [load_checkpoint(list_checkpoints(run)[-1]).state["reward"] for run in (whole, parts)]
    assert torch.equal(saved[0]["light"], saved[1]["light"])
    assert len(saved[0]["light"]) == 6


def test_each_component_is_logged_by_name(settings, make_config):
    settings["reward"] = REWARD
    folder = align.run(make_config("training.updates=1")).folder
    (record,) = records(folder)
    # The window is empty in the first update, so the component is the reward itself.
    assert record["reward/light"] == record["reward/brightness"]
    total = record["reward/light"] + 0.5 * record["reward/warmth"]
    assert record["reward_mean"] == pytest.approx(total, abs=1e-6)


def test_memory_holds_what_the_rollouts_scored(settings, make_parts):
    settings["reward"] = REWARD
    parts = make_parts("training.updates=1")
    rollout = parts.trainer.batches.rollouts(0)[0]
    parts.trainer.step()
    assert memory(parts.reward)["light"].tolist() == pytest.approx(
        rollout.components["brightness"].tolist()
    )
