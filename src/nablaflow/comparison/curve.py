"""A run's reward over its time of training, an entry for each rollout."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from pathlib import Path
from typing import Any

from nablaflow.storage.records import read_records


def curve_of_run(folder: Path, shared: int, trained: float | None = None) -> dict[str, list[Any]]:
    """Reward of the rollouts by seconds of training, and the updates that they were made for.

    Args:
        shared: updates that share a rollout, whose reward the records of all of them have.
        trained: seconds in all, also of what was found before the first update; None: of the
            updates alone.
    """
    records = [r for r in read_records(folder) if r.get("seconds") is not None]
    spent = 0.0 if trained is None else max(0.0, trained - fsum(r["seconds"] for r in records))
    curve: dict[str, list[Any]] = {"update": [], "seconds": [], "reward": []}
    seen = -1
    for record in records:
        rollout, reward = (int(record["update"]) - 1) // shared, record.get("reward_mean")
        if rollout > seen and reward is not None:  # that of one that diverged is not finite
            seen = rollout
            curve["update"].append(int(record["update"]))
            curve["seconds"].append(round(spent, 3))  # it is of the policy before its update
            curve["reward"].append(reward)
        spent += record["seconds"]
    return curve


def by_rollout(curve: Mapping[str, Any], shared: int) -> dict[str, Any]:
    """A curve of a rollout an entry, from one of an update an entry, of which some share a rollout.

    A rollout's reward is that of the policy before the first of them.

    Args:
        curve: without ``update``, as cells of an earlier version have it; one with it is as it is.
        shared: updates that share a rollout.
    """
    if "update" in curve:
        return dict(curve)
    return {name: values[::shared] for name, values in curve.items()}
