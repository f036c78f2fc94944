"""Which strength is at the tilt's mean reward, from the figures at others."""

from __future__ import annotations

import math

import pytest

from nablaflow.errors import UserError
from nablaflow.evaluation.strengths import AtStrength, Strengths, check_strengths
from nablaflow.metrics.estimate import Estimate


def at(*ways: tuple[float, float | None], se: float = 0.02) -> Strengths:
    """Rows of a strength and the share of the way there."""
    closings = [None if way is None else Estimate(way, se) for _, way in ways]
    pairs = zip(ways, closings, strict=True)
    return Strengths([AtStrength(strength, {}, closing) for (strength, _), closing in pairs])


def test_between_two_rows_it_is_on_their_line() -> None:
    found = at((0.0, 0.0), (0.5, 0.8), (1.0, 1.2)).at_tilt()
    assert found is not None
    assert found.value == pytest.approx(0.75)
    # d strength / d way is 0.5 / 0.4.
    assert found.se == pytest.approx(0.02 * 0.5 / 0.4)


def test_its_error_is_that_of_its_own_row_however_near_the_others_are() -> None:
    """The tilt's error is all rows' alike: two of them do not say it better than one."""
    alone = at((0.0, 0.0), (0.5, 1.0), (1.0, 2.0)).at_tilt()
    between = at((0.0, 0.0), (0.4, 0.8), (0.6, 1.2), (1.0, 2.0)).at_tilt()
    assert alone is not None
    assert between is not None
    assert between.value == pytest.approx(alone.value)
    assert between.se == pytest.approx(alone.se)


def test_a_row_that_is_there_is_it() -> None:
    found = at((0.0, 0.0), (0.5, 1.0), (1.0, 1.2)).at_tilt()
    assert found is not None
    assert found.value == 0.5


def test_of_two_crossings_the_weaker_one_counts() -> None:
    found = at((0.0, 0.0), (1.0, 2.0), (2.0, 0.5), (3.0, 1.5)).at_tilt()
    assert found is not None
    assert found.value == pytest.approx(0.5)


@pytest.mark.parametrize(
    "ways", [((0.0, 0.0), (1.0, 0.9)), ((0.0, 0.0), (1.0, -0.2)), ((0.0, None), (1.0, None))]
)
def test_what_is_not_bracketed_is_not_guessed(ways: tuple[tuple[float, float | None], ...]) -> None:
    assert at(*ways).at_tilt() is None
    assert at(*ways).as_dict()["at_tilt"] is None


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, 1e39])
def test_what_is_no_strength_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match="--strength: must be a number from 0 on"):
        check_strengths([0.5, strength])
