"""What is said of each method: figures over seeds, the area of its front, the time to a reward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from nablaflow.metrics.catalog import METRICS

WINDOW = 4  # rollouts that a reward over time is averaged over

Column = Mapping[str, Any]
Figure = tuple[float, float | None] | None
"""A mean and its standard error, None where it is not known; None where there is no figure."""

MEASURED = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt", "held_out")


def comparison_rows(
    cells: Sequence[Mapping[str, Any]], reference: Column, tilt: Column | None, front: float
) -> list[dict[str, Any]]:
    """A row for each method: every figure with its ``_se``; another at its strength, where known.

    Over several seeds the error is that of the mean of the runs; of a single run it is that of its
    images. Of an untrained reference the row is its setting of most reward up to the tilt's.

    Args:
        cells: finished cells of one reward.
        front: area under the exact tilt's own front, see `front_area`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(cell["method"], []).append(cell)
    every = [part for found in groups.items() for part in (found, _calibrated(*found))]
    return [
        {"method": method, "seeds": len(found), **_row(found, reference, tilt, front)}
        for method, found in every
        if found
    ]


def _calibrated(
    method: str, cells: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Mapping[str, Any]]]:
    """The same runs as they are at their strength; none where one of them has no such figures."""
    if not all(cell.get("calibrated") for cell in cells):
        return method, []
    ends: list[Mapping[str, Any]] = [
        {**cell, "points": [*cell["points"], cell["calibrated"]]} for cell in cells
    ]
    return f"{method} at its strength", ends


def _row(
    cells: Sequence[Mapping[str, Any]], reference: Column, tilt: Column | None, front: float
) -> dict[str, Any]:
    last = [_last(cell, tilt) for cell in cells]
    row: dict[str, Any] = {"n": last[0]["n"]}
    further = [name for name in METRICS if any(f"{name}_se" in point for point in last)]
    for name in dict.fromkeys([*MEASURED, *further, "strength"]):
        _put(row, name, over_seeds([(point.get(name), point.get(f"{name}_se")) for point in last]))
    _put(row, "closing", _closing(row, reference, tilt))
    areas = [front_area(cell["points"], reference, tilt) for cell in cells]
    shares = [None if area is None or not front else (area / front, 0.0) for area in areas]
    _put(row, "hypervolume", over_seeds(shares))
    for share in (50, 80):
        times = [seconds_to(cell, share / 100, reference, tilt) for cell in cells]
        row[f"seconds_to_{share}"] = None if None in times else fmean(t or 0.0 for t in times)
    trained = "updates" in cells[0]
    row["updates"] = round(fmean(cell["updates"] for cell in cells)) if trained else None
    row["seconds"] = fmean(cell["seconds"] for cell in cells) if trained else None
    row["diverged"] = sum(bool(cell.get("diverged")) for cell in cells)
    return row


def _put(row: dict[str, Any], name: str, figure: Figure) -> None:
    row[name], row[f"{name}_se"] = figure or (None, None)


def _last(cell: Mapping[str, Any], tilt: Column | None) -> Column:
    """The figures that stand for a run: its last, or of several settings the one nearest below."""
    points = cell["points"]
    if not points:  # diverged before the first measurement
        nothing = dict.fromkeys(name + end for name in MEASURED for end in ("", "_se"))
        return nothing | {"n": 0}
    if "settings" not in points[0] or tilt is None:
        return points[-1]
    below = [p for p in points if p["reward_mean"] <= tilt["reward_mean"]]
    return max(below or points[:1], key=lambda point: point["reward_mean"])


def over_seeds(values: Iterable[tuple[float | None, float | None] | None]) -> Figure:
    """Mean and its standard error; one unknown makes it unknown."""
    found = list(values)
    known = [value for value in found if value is not None and value[0] is not None]
    if not found or len(known) < len(found):
        return None
    means = [mean for mean, _ in known if mean is not None]
    if len(means) == 1:
        return means[0], known[0][1]
    return fmean(means), stdev(means) / math.sqrt(len(means))


def _way(reference: Column, tilt: Column | None) -> float | None:
    """From the reference's mean reward to the tilt's; None without a tilt, or where it is 0.

    At beta 0 and by a constant reward it is: of such a way there are no shares. Both means are of
    the same images, so that how far it is known is not to be had from their errors.
    """
    way = 0.0 if tilt is None else tilt["reward_mean"] - reference["reward_mean"]
    return way or None


def _closing(row: Mapping[str, Any], reference: Column, tilt: Column | None) -> Figure:
    """Share of the way from the reference's mean reward to the tilt's."""
    way = _way(reference, tilt)
    if way is None or row["reward_mean"] is None:
        return None
    error = row["reward_mean_se"]
    share = (row["reward_mean"] - reference["reward_mean"]) / way
    return share, None if error is None else error / abs(way)


def front_area(points: Sequence[Column], reference: Column, tilt: Column | None) -> float | None:
    """Hypervolume of a front of reward and diversity: the area that the points dominate.

    Reward is the share of the way to the tilt's, at most 1: more is not better than the exact tilt.
    Diversity is a share of the reference's. So the area is that below the staircase of the points'
    best diversity at their reward or more, from 0 to 1 of the way.

    Returns:
        None without a way to a tilt, or where the reference has no diversity to have a share of.
    """
    way = _way(reference, tilt)
    if way is None or not reference["diversity"]:
        return None
    pairs = sorted(
        (
            min(1.0, max(0.0, (point["reward_mean"] - reference["reward_mean"]) / way)),
            max(0.0, point["diversity"] / reference["diversity"]),
        )
        for point in points
    )
    area, height = 0.0, 0.0
    for index in range(len(pairs) - 1, -1, -1):
        height = max(height, pairs[index][1])
        area += height * (pairs[index][0] - (pairs[index - 1][0] if index else 0.0))
    return area


def seconds_to(
    cell: Mapping[str, Any], share: float, reference: Column, tilt: Column | None
) -> float | None:
    """Seconds of training until the rollouts' reward, a running mean, is a share of the way there.

    Returns:
        None if it never is, nothing trained, or there is no way to a tilt.
    """
    way = _way(reference, tilt)
    if way is None or "curve" not in cell:
        return None
    wanted = reference["reward_mean"] + share * way
    seconds, rewards = cell["curve"]["seconds"], running_mean(cell["curve"]["reward"])
    reached = (s for s, reward in zip(seconds, rewards, strict=True) if reward >= wanted)
    return next(reached, None)


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Of each value and those before it, ``window`` in all; fewer at the start.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    return [fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
