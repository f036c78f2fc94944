"""Which pairs are asked about, and what becomes of the answers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.fitting import read_judgements
from nablaflow.studio.pairs import PairQuestions
from nablaflow.studio.table import JudgementTable

NAMES = [f"{number}.png" for number in range(6)]
PROMPTS = ["a", "b"] * 3


@pytest.fixture
def questions(tmp_path: Path) -> PairQuestions:
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    return PairQuestions(tmp_path, NAMES, PROMPTS)


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_an_answer_is_a_line(questions: PairQuestions):
    asked = questions.ask("me")
    assert asked is not None
    questions.answer(asked.number, "right")
    left, right = asked.images
    assert lines(questions.table.path) == [
        ["preferred", "rejected", "prompt", "rater", "pick"],
        [right, left, asked.prompt, "me", asked.pick],
    ]


def test_images_of_different_prompts_are_not_compared(questions: PairQuestions):
    prompt = dict(zip(NAMES, PROMPTS, strict=True))
    for _ in range(50):
        asked = questions.ask("me")
        left, right = asked.images
        assert left != right
        assert prompt[left] == prompt[right] == asked.prompt


def test_both_sides_come_first_as_often(questions: PairQuestions):
    asked = [questions.ask("me") for _ in range(400)]
    first = sum(question.images[0] < question.images[1] for question in asked)
    assert abs(first - 200) < 60  # six standard deviations


def test_a_repeated_answer_and_a_skip_are_none(questions: PairQuestions):
    asked = questions.ask("me")
    for answer in ("left", "left", "right"):
        questions.answer(asked.number, answer)
    questions.answer(questions.ask("me").number, "skip")
    questions.answer(10_000, "left")
    assert len(questions.table.rows()) == 1


def test_undo_takes_the_raters_own_last_answer(questions: PairQuestions):
    for rater in ("me", "you", "me"):
        questions.answer(questions.ask(rater).number, "left")
    before = list(questions.table.rows())
    assert questions.undo("me")
    assert questions.table.rows() == before[:2]
    questions.answer(questions.ask("me").number, "skip")
    assert questions.undo("me")  # of the skip
    assert questions.table.rows() == before[:2]
    assert questions.undo("me")
    assert questions.table.rows() == before[1:2]
    assert not questions.undo("me")


def test_what_does_not_reach_the_disk_is_asked_again(
    questions: PairQuestions, monkeypatch: pytest.MonkeyPatch
):
    asked = questions.ask("me")
    with monkeypatch.context() as patch:
        patch.setattr(
            JudgementTable, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            questions.answer(asked.number, "left")
    questions.answer(asked.number, "left")
    assert len(questions.table.rows()) == 1


def test_what_was_asked_stays_open_when_images_come(questions: PairQuestions):
    asked = questions.ask("me")
    more = PairQuestions(questions.folder, [*NAMES, "6.png"], [*PROMPTS, "a"])
    more.go_on_from(questions)
    assert more.ask("me").number != asked.number
    more.answer(asked.number, "left")
    assert more.table.rows()[0][:2] == asked.images


def test_the_most_doubtful_pair_is_asked_and_some_at_random(questions: PairQuestions):
    def doubt(asked: Sequence[tuple[str, str]]) -> list[float]:
        return [float({"0.png", "4.png"} == set(pair)) for pair in asked]

    questions.doubt = doubt
    asked = [questions.ask("me") for _ in range(300)]
    unsure = [question for question in asked if question.pick == "unsure"]
    assert 100 < len(unsure) < 200
    assert all(set(q.images) == {"0.png", "4.png"} for q in unsure)


def test_some_pairs_of_another_rater_are_asked_again_once(questions: PairQuestions):
    first = questions.ask("you")
    questions.answer(first.number, "left")
    again = []
    for _ in range(100):
        asked = questions.ask("me")
        if asked.pick == "again":
            again.append(asked)
            questions.answer(asked.number, "left" if asked.images == first.images else "right")
    assert len(again) == 1
    assert set(again[0].images) == set(first.images)
    assert questions.agreement() == "1 of 1 pairs judged alike by two people"


def test_a_fit_reads_the_table(questions: PairQuestions):
    while len(questions.table.rows()) < 20:
        questions.answer(questions.ask("me").number, "left")
    found = read_judgements(questions.folder)
    assert (found.kind, len(found.rows)) == ("pairs", 20)
    assert set(found.prompts or []) == {"a", "b"}
    assert found.at_random is not None
    assert found.at_random.all()


def test_nothing_to_compare(tmp_path: Path):
    with pytest.raises(UserError, match="no prompt has two images"):
        PairQuestions(tmp_path, ["0.png", "1.png"], ["a", "b"])
