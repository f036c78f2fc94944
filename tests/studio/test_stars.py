"""Stars: each image once for each person, and a table that a fit reads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from nablaflow.fitting import read_judgements
from nablaflow.studio.stars import StarQuestions, StarRow

NAMES = [f"{number}.png" for number in range(30)]


@pytest.fixture
def questions(tmp_path: Path) -> StarQuestions:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    return StarQuestions(tmp_path, NAMES, ["a"] * len(NAMES))


def rate_all(questions: StarQuestions, rater: str, stars: str) -> list[str]:
    seen = []
    while (asked := questions.ask(rater)) is not None:
        seen += asked.images
        questions.answer(asked.number, stars)
    return seen


def test_each_image_is_asked_once_of_each_rater(questions: StarQuestions):
    assert sorted(rate_all(questions, "me", "2")) == sorted(NAMES)
    assert sorted(rate_all(questions, "you", "5")) == sorted(NAMES)
    assert questions.counts("me") == (30, 60)
    assert questions.agreement() == "two people's stars are 3.0 apart over 30 images"


def test_a_fit_reads_the_table(questions: StarQuestions):
    for stars in ("1", "4"):
        for _ in range(10):
            questions.answer(questions.ask("me").number, stars)
    with (questions.folder / "ratings.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["image", "score", "prompt", "rater", "pick"]
    found = read_judgements(questions.folder)
    assert (found.kind, len(found.rows), found.shift) == ("ratings", 20, 2.5)


def test_the_most_doubtful_image_is_asked_and_some_at_random(questions: StarQuestions):
    questions.doubt = lambda names: [float(name == "7.png") for name in names]
    asked = [questions.ask("me") for _ in range(300)]
    unsure = [question for question in asked if question.pick == "unsure"]
    assert 100 < len(unsure) < 200
    assert {question.images for question in unsure} == {("7.png",)}


def test_some_images_of_another_rater_come_again(questions: StarQuestions):
    first = questions.ask("you")
    questions.answer(first.number, "3")
    again = {q.images for q in (questions.ask("me") for _ in range(100)) if q.pick == "again"}
    assert again == {first.images}


def test_stars_that_are_no_numbers_are_left_out(questions: StarQuestions):
    for score, rater in (("3", "a"), ("x", "b"), ("nan", "c"), ("5", "d")):
        questions.table.append(StarRow("0.png", score, "", rater, ""))
    assert questions.agreement() == "two people's stars are 2.0 apart over 1 images"
