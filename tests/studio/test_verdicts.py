"""Who said what of what, kept up row by row, against a count of the whole table."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from nablaflow.studio.verdicts import Verdicts

Judgement = tuple[str, str, str]


def make() -> Verdicts[Judgement, str, float]:
    return Verdicts(
        lambda row: None if row[2] == "?" else (row[0], row[1], float(row[2])),
        lambda one, other: abs(one - other),
    )


def counted(rows: list[Judgement]) -> tuple[float, int]:
    last = {(item, rater): float(said) for item, rater, said in rows if said != "?"}
    apart = [
        abs(one - other)
        for (first, one), (second, other) in combinations(last.items(), 2)
        if first[0] == second[0]
    ]
    return sum(apart), len(apart)


def test_each_row_more_is_as_the_whole_table():
    draw = random.Random(0)
    verdicts, rows = make(), []
    for _ in range(300):
        rows.append((draw.choice("pqrst"), draw.choice("abc"), draw.choice("12345?")))
        verdicts.follow(rows)
        assert verdicts.apart() == pytest.approx(counted(rows))
    said = {(item, rater) for item, rater, value in rows if value != "?"}
    assert set(verdicts.items) == {item for item, _ in said}
    assert all(verdicts.is_by(i, r) == ((i, r) in said) for i in "pqrstu" for r in "abcd")


def test_another_table_is_read_from_its_start():
    verdicts = make()
    verdicts.follow([("p", "a", "1"), ("p", "b", "4")])
    verdicts.follow([("q", "a", "1")])
    assert (verdicts.apart(), list(verdicts.items)) == ((0.0, 0), ["q"])
    assert not verdicts.is_by("p", "a")
