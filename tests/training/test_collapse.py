"""Reward backpropagation without a prior collapses the embedded model, and the guard ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.runs import align
from nablaflow.storage.records import read_records


@pytest.mark.slow
def test_the_guard_rolls_draft_back_before_the_images_are_gone(tmp_path: Path):
    """Published DRaFT-1 at the demo's learning rate: docs/guide.md has the figures of a run."""
    changes = [
        "method={name: draft, beta: 4.0, k: 1}",
        "guard={every: 5, n: 32, held_out: {reward: contrast}, max_kl: 100.0, action: roll-back}",
        "training.trackers=[]",
        "evaluation={n: 16, bank: 0}",
        f"output_dir={tmp_path / 'run'}",
    ]
    align.run(load_config(None, changes, demo_settings()))
    guard = json.loads((tmp_path / "run/summary.json").read_text())["guard"]
    records = read_records(tmp_path / "run")
    assert guard["tripped"]["metric"] == "kl"
    assert guard["tripped"]["update"] == records[-1]["update"] < 50
    # Of all that is usually looked at, nothing says that anything is wrong.
    assert guard["last"]["reward"] > guard["reference"]["reward"] + 0.1
    assert guard["last"]["held_out"] > 0.9 * guard["reference"]["held_out"]
    assert guard["last"]["diversity"] > 0.9
    # The run ends with what the look before it saw; with the reference, if that was the first.
    assert guard["best_update"] == guard["tripped"]["update"] - 5
    assert guard["kl"] <= 100.0
