"""The figures of a comparison against what they are by hand."""

from __future__ import annotations

from typing import Any

import pytest

from nablaflow.comparison.figures import comparison_rows, front_area, over_seeds, seconds_to

REFERENCE = {"reward_mean": 0.0, "diversity": 4.0}
TILT = {"reward_mean": 2.0, "diversity": 3.0}


def point(reward: float, diversity: float = 4.0, **others: Any) -> dict[str, Any]:
    names = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt", "held_out")
    errors = {f"{name}_se": 0.1 for name in names}
    figures = {"distance_to_reference": 1.0, "distance_to_tilt": 0.2, "held_out": 0.9}
    return {"reward_mean": reward, "diversity": diversity, "n": 8, **figures, **errors, **others}


def cell(method: str, seed: int, *points: dict[str, Any], **others: Any) -> dict[str, Any]:
    curve = {"seconds": [0.0, 10.0, 20.0, 30.0], "reward": [0.0, 1.0, 2.0, 2.0]}
    own = {"updates": 4, "seconds": 40.0, "curve": curve, "diverged": None}
    return {"method": method, "seed": seed, "points": list(points), **own, **others}


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([point(2.0, 4.0)], 1.0),  # the whole way, with all diversity
        ([point(1.0, 4.0)], 0.5),
        ([point(1.0, 4.0), point(2.0, 2.0)], 0.5 + 0.5 * 0.5),
        ([point(2.0, 2.0), point(1.0, 4.0)], 0.75),  # the order does not count
        ([point(1.0, 1.0), point(2.0, 2.0)], 0.5),  # the first one is dominated
        ([point(4.0, 2.0)], 0.5),  # beyond the tilt nothing is gained
        ([point(-1.0, 4.0)], 0.0),
        ([], 0.0),
    ],
)
def test_the_area_that_a_front_dominates(points: list[dict[str, Any]], area: float):
    assert front_area(points, REFERENCE, TILT) == pytest.approx(area)


def test_without_a_tilt_there_is_no_front():
    assert front_area([point(1.0)], REFERENCE, None) is None


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 10.0), (0.5, 20.0), (0.8, None)])
def test_the_time_to_a_share_of_the_way(share: float, seconds: float | None):
    # Running means of 0, 1, 2, 2 are 0, 0.5, 1, 1.25: of a way of 2, 0, 0.25, 0.5, 0.625.
    assert seconds_to(cell("a", 0, point(1.0)), share, REFERENCE, TILT) == seconds


def test_a_mean_over_seeds_has_the_error_of_a_mean():
    mean, error = over_seeds([(1.0, 9.0), (2.0, 9.0), (3.0, 9.0)]) or (0.0, 0.0)
    assert (mean, error) == (pytest.approx(2.0), pytest.approx(3**-0.5))
    assert over_seeds([(1.0, 0.5)]) == (1.0, 0.5)
    assert over_seeds([(1.0, 0.5), None]) is None
    assert over_seeds([(1.0, None)]) == (1.0, None)  # of two images a prompt: it is not 0


@pytest.mark.parametrize(
    ("reference", "tilt"),
    [
        (REFERENCE, TILT | {"reward_mean": 0.0}),  # beta 0, or a reward that is constant
        (REFERENCE | {"diversity": 0.0}, TILT),  # its images are all alike
    ],
)
def test_of_a_way_or_a_diversity_that_is_nothing_no_share_is_shown(
    reference: dict[str, float], tilt: dict[str, float]
):
    (row,) = comparison_rows([cell("a", 0, point(1.0))], reference, tilt, front=1.0)
    assert row["reward_mean"] == 1.0
    assert row["hypervolume"] is None
    if reference["diversity"]:
        assert row["closing"] is None
        assert row["seconds_to_50"] is None


def test_rows_hold_methods_against_the_tilt():
    cells = [cell("a", 0, point(1.0), point(2.0, 2.0)), cell("a", 1, point(1.0), point(1.0, 2.0))]
    (row,) = comparison_rows(cells, REFERENCE, TILT, front=1.0)
    assert row["seeds"] == 2
    assert row["reward_mean"] == pytest.approx(1.5)
    assert row["closing"] == pytest.approx(0.75)
    assert row["closing_se"] == pytest.approx(0.25)  # (2 - 1) / 2 over two runs, of a way of 2
    assert row["hypervolume"] == pytest.approx((0.75 + 0.5) / 2)
    assert row["seconds_to_50"] == pytest.approx(20.0)
    assert row["seconds_to_80"] is None


def test_what_trains_nothing_is_shown_by_its_setting_nearest_below_the_tilt():
    points = [point(reward, settings={"n": n}) for n, reward in ((2, 0.5), (4, 1.5), (8, 2.5))]
    untrained = {"method": "best-of-n", "seed": 0, "points": points}
    (row,) = comparison_rows([untrained], REFERENCE, TILT, front=1.0)
    assert row["reward_mean"] == 1.5
    assert row["updates"] is None


def test_a_run_that_diverged_at_once_has_no_figures_and_is_counted():
    (row,) = comparison_rows([cell("a", 0, diverged="loss")], REFERENCE, TILT, front=1.0)
    assert row["reward_mean"] is None
    assert row["diverged"] == 1


def test_what_was_calibrated_is_a_row_of_its_own_where_every_run_was():
    ends = [point(reward, 3.0, strength=0.5, strength_se=0.01) for reward in (1.9, 2.1)]
    cells = [cell("a", seed, point(4.0, 2.0), calibrated=end) for seed, end in enumerate(ends)]
    trained, own = comparison_rows(cells, REFERENCE, TILT, front=1.0)
    assert (trained["method"], trained["strength"]) == ("a", None)
    assert trained["reward_mean"] == 4.0
    assert (own["method"], own["strength"], own["strength_se"]) == ("a at its strength", 0.5, 0.0)
    assert own["closing"] == pytest.approx(1.0)
    assert own["closing_se"] == pytest.approx(0.05)  # (2.1 - 1.9) / 2, of a way of 2
    cells.append(cell("a", 2, point(1.0), diverged="loss"))
    assert [row["method"] for row in comparison_rows(cells, REFERENCE, TILT, front=1.0)] == ["a"]
