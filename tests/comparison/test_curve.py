"""The reward over time is of rollouts, whatever number of updates shares each."""

from __future__ import annotations

from pathlib import Path

import pytest

from nablaflow.comparison.curve import by_rollout, curve_of_run
from nablaflow.storage.records import append_record

REWARDS = (0.0, 0.0, 1.0, 1.0, 2.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five updates of ten seconds, of which two share a rollout."""
    for place, reward in enumerate(REWARDS):
        append_record(tmp_path, {"update": place + 1, "reward_mean": reward, "seconds": 10.0})
    return tmp_path


def test_a_rollout_that_updates_share_counts_once(run: Path):
    assert curve_of_run(run, 2) == {
        "update": [1, 3, 5],
        "seconds": [0.0, 20.0, 40.0],
        "reward": [0.0, 1.0, 2.0],
    }


def test_what_is_found_before_the_first_update_is_time_of_training(run: Path):
    assert curve_of_run(run, 1, 57.0)["seconds"] == [7.0, 17.0, 27.0, 37.0, 47.0]


def test_a_lost_line_does_not_move_the_rollouts_after_it(run: Path):
    whole = curve_of_run(run, 2)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))
    lost = curve_of_run(run, 2)
    assert (lost["update"], lost["reward"]) == (whole["update"], whole["reward"])


def test_a_stored_curve_of_an_update_an_entry_is_brought_to_rollouts():
    curve = {"seconds": [0.0, 10.0, 20.0, 30.0, 40.0], "reward": list(REWARDS)}
    found = by_rollout(curve, 2)
    assert found == {"seconds": [0.0, 20.0, 40.0], "reward": [0.0, 1.0, 2.0]}
    own = {"update": [1, 3, 5], **found}
    assert by_rollout(own, 2) == own
