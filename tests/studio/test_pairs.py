"""Which pairs are asked about, and what becomes of the answers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.fitting import read_judgements
from nablaflow.studio import pairs
from nablaflow.studio.pairs import COLUMNS, AnswerRow, PairQuestions, agreement, read_rows

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
    questions.answer(asked.number, "right")
    assert lines(questions.path) == [
        list(COLUMNS),
        [asked.right, asked.left, asked.prompt, "me", asked.pick],
    ]


def test_images_of_different_prompts_are_not_compared(questions: PairQuestions):
    prompt = dict(zip(NAMES, PROMPTS, strict=True))
    for _ in range(50):
        asked = questions.ask("me")
        assert asked.left != asked.right
        assert prompt[asked.left] == prompt[asked.right] == asked.prompt


def test_both_sides_come_first_as_often(questions: PairQuestions):
    asked = [questions.ask("me") for _ in range(400)]
    first = sum(question.left < question.right for question in asked)
    assert abs(first - 200) < 60  # six standard deviations


def test_a_repeated_answer_and_a_skip_are_none(questions: PairQuestions):
    asked = questions.ask("me")
    for answer in ("left", "left", "right"):
        questions.answer(asked.number, answer)
    questions.answer(questions.ask("me").number, "skip")
    questions.answer(10_000, "left")
    assert len(questions.rows()) == 1


def test_undo_takes_the_raters_own_last_answer(questions: PairQuestions):
    for rater in ("me", "you", "me"):
        questions.answer(questions.ask(rater).number, "left")
    before = questions.rows()
    assert questions.undo("me")
    assert questions.rows() == before[:2]
    questions.answer(questions.ask("me").number, "skip")
    assert questions.undo("me")  # of the skip
    assert questions.rows() == before[:2]
    assert questions.undo("me")
    assert questions.rows() == before[1:2]
    assert not questions.undo("me")


def test_a_table_of_another_hand_is_gone_on_with(questions: PairQuestions):
    questions.path.write_text("rejected, preferred\n0.png,2.png\n1.png,3.p")
    questions.answer(questions.ask("me").number, "left")
    assert [row.preferred for row in questions.rows()][:1] == ["2.png"]
    assert len(questions.rows()) == 2
    assert lines(questions.path)[0] == list(COLUMNS)


def test_a_table_of_something_else_is_left_alone(questions: PairQuestions):
    questions.path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="preferred,rejected"):
        questions.answer(questions.ask("me").number, "left")
    assert questions.path.read_text() == "a,b\n1,2\n"


def test_what_does_not_reach_the_disk_is_asked_again(
    questions: PairQuestions, monkeypatch: pytest.MonkeyPatch
):
    asked = questions.ask("me")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "_append", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            questions.answer(asked.number, "left")
    questions.answer(asked.number, "left")
    assert len(questions.rows()) == 1


def test_the_most_doubtful_pair_is_asked_and_some_at_random(questions: PairQuestions):
    def doubt(asked: Sequence[tuple[str, str]]) -> list[float]:
        return [float({"0.png", "4.png"} == set(pair)) for pair in asked]

    questions.doubt = doubt
    asked = [questions.ask("me") for _ in range(300)]
    unsure = [question for question in asked if question.pick == "unsure"]
    assert 100 < len(unsure) < 200
    assert all({q.left, q.right} == {"0.png", "4.png"} for q in unsure)


def test_some_pairs_of_another_rater_are_asked_again_once(questions: PairQuestions):
    first = questions.ask("you")
    questions.answer(first.number, "left")
    again = []
    for _ in range(100):
        asked = questions.ask("me")
        if asked.pick == "again":
            again.append(asked)
            questions.answer(asked.number, "left" if asked.left == first.left else "right")
    assert len(again) == 1
    assert {again[0].left, again[0].right} == {first.left, first.right}
    assert agreement(questions.rows()) == (1, 1)


def test_agreement_is_counted_over_pairs_of_people():
    said = [("a", "b", "x"), ("b", "a", "y"), ("a", "b", "z"), ("c", "d", "x")]
    rows = [AnswerRow(first, second, "", rater, "random") for first, second, rater in said]
    assert agreement(rows) == (1, 3)


def test_a_fit_reads_the_table(questions: PairQuestions):
    while len(questions.rows()) < 20:
        questions.answer(questions.ask("me").number, "left")
    found = read_judgements(questions.folder)
    assert (found.kind, len(found.rows)) == ("pairs", 20)
    assert set(found.prompts or []) == {"a", "b"}


def test_odd_texts_stay_on_their_line(tmp_path: Path):
    questions = PairQuestions(tmp_path, ["0.png", "1.png"], ['say "hi",\nyou'] * 2)
    questions.answer(questions.ask("a,b\n=1").number, "left")
    (row,) = read_rows(questions.path)
    assert (row.prompt, row.rater) == ('say "hi", you', "a,b =1")


def test_nothing_to_compare(tmp_path: Path):
    with pytest.raises(UserError, match="no prompt has two images"):
        PairQuestions(tmp_path, ["0.png", "1.png"], ["a", "b"])
