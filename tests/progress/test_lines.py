"""Lines about work: when they come, and what they say; time is a number that a test sets."""

from __future__ import annotations

import itertools

import pytest

from nablaflow.progress.lines import FIRST, LONGEST, Lines
from nablaflow.progress.work import Progress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def progress(told: list[str], clock: Clock) -> Progress:
    return Progress(Lines(told.append, clock))


def test_quick_work_is_two_lines(progress: Progress, told: list[str], clock: Clock):
    with progress:
        advance = progress.start("score", 32)
        for _ in range(4):
            clock.now += 0.25
            advance(8)
    assert told == ["0:00:00 score: 0/32", "0:00:01 score: 32/32, took 1 s"]


def test_a_slow_first_item_is_told_at_once_with_the_time_left(
    progress: Progress, told: list[str], clock: Clock
):
    with progress:
        work = progress.start("train", 150)
        clock.now += 12
        work.reach(1, "reward 0.512")
    assert told[-1] == "0:00:12 train: 1/150, 30 min left, reward 0.512"  # 149 times 12 s


def test_lines_come_at_growing_intervals_and_never_further_apart_than_the_longest(
    progress: Progress, clock: Clock
):
    times: list[float] = []
    lines = Progress(Lines(lambda line: times.append(clock.now), clock))
    with lines:
        work = lines.start("train", 10_000)
        for update in range(1, 1000):
            clock.now += 0.5
            work.reach(update)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == FIRST
    assert gaps == sorted(gaps), "they grow"
    assert max(gaps) == LONGEST
    assert gaps.count(LONGEST) >= 10


def test_the_time_left_counts_what_this_process_did(
    progress: Progress, told: list[str], clock: Clock
):
    """A resumed run did its first updates at another time, which says nothing of the pace."""
    with progress:
        work = progress.start("train", 100, done=90)
        clock.now += 60
        work(1)
    assert told[-1].endswith("train: 91/100, 9 min left")


def test_an_early_end_says_how_far_it_came(progress: Progress, told: list[str], clock: Clock):
    with progress:
        work = progress.start("train", 100, unit="s")
        clock.now += 40
        work.reach(40)
        work.end()
        work.end()
        work(1)
    assert told[-1] == "0:00:40 train: 40/100 s, took 40 s"
    assert len(told) == 3


def test_part_of_other_work_is_told_only_where_it_takes_a_while(
    progress: Progress, told: list[str], clock: Clock
):
    with progress:
        for seconds in (0.5, 2.5):
            look = progress.start("guard", 32, inner=True)
            clock.now += seconds
            look(16)
            clock.now += seconds
            look(16)
    assert told == ["0:00:03 guard: 16/32, 2 s left", "0:00:06 guard: 32/32, took 5 s"]


def test_what_stops_in_between_says_where(progress: Progress, told: list[str], clock: Clock):
    def interrupted() -> None:
        with progress:
            progress.start("bank", 4)(4)
            work = progress.start("train", 150)
            clock.now += 3661
            work.reach(7, "reward 0.5")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert told[-1] == "1:01:01 train: 7/150, stopped, reward 0.5"
    assert not any("bank" in line and "stopped" in line for line in told)


def test_nothing_to_do_is_nothing_to_say(progress: Progress, told: list[str]):
    with progress:
        progress.start("measure", 0)
        assert progress.start("train", 5, done=5).ended
    assert told == []


def test_a_line_for_people_has_the_time_too(progress: Progress, told: list[str], clock: Clock):
    with progress:
        clock.now += 90
        progress.say("diversity fell")
    assert told == ["0:01:30 diversity fell"]


@pytest.mark.parametrize(
    ("each", "shown"), [(3.0, "60 s"), (6.0, "2 min"), (60.0, "20 min"), (3600.0, "20.0 h")]
)
def test_times_are_in_the_unit_that_suits_them(
    progress: Progress, told: list[str], clock: Clock, each: float, shown: str
):
    with progress:
        work = progress.start("x", 21)
        clock.now += each
        work(1)
        work.end()
    assert told[1].endswith(f"1/21, {shown} left")
