"""Reward backpropagation without a prior collapses the embedded model, and the guard ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nablaflow import runs
from nablaflow.training.demo import demo_settings
from nablaflow.training.overrides import load_config
from nablaflow.training.run_folder import read_records


@pytest.mark.slow
def test_the_guard_stops_draft_before_the_images_are_gone(tmp_path: Path):
    """Published DRaFT-1 at the demo's learning rate; the budget is a tenth of the diversity."""
    changes = [
        "method={name: draft, beta: 4.0, k: 1}",
        "guard={every: 5, n: 32, held_out: {reward: contrast}, min_diversity: 0.9}",
        "training.trackers=[]",
        "evaluation={n: 16, bank: 0}",
        f"output_dir={tmp_path / 'run'}",
    ]
    runs.run(load_config(None, changes, demo_settings()))
    guard = json.loads((tmp_path / "run/summary.json").read_text())["guard"]
    records = read_records(tmp_path / "run")
    assert guard["tripped"]["metric"] == "diversity"
    assert guard["tripped"]["update"] == records[-1]["update"] < 150
    # The reward alone would have said that all is well.
    assert guard["last"]["reward"] > guard["reference"]["reward"]
    assert guard["diversity"] >= 0.9 > guard["last"]["diversity"]
