"""metrics.jsonl: what is damaged is left out, and that is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nablaflow.storage import lines, records
from nablaflow.storage.records import append_record, drop_records_after, read_records


def write(run: Path, updates: int) -> Path:
    for update in range(1, updates + 1):
        append_record(run, {"update": update, "reward_mean": 0.5})
    return run / "metrics.jsonl"


def test_what_is_not_finite_is_null(tmp_path: Path):
    append_record(tmp_path, {"update": 1, "loss": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"update": 1, "loss": None}


def test_lines_of_updates_that_are_done_again_go_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, 4)
    path.write_text(path.read_text() + '{"update": 5, "rew')  # a crash in the middle of a line
    drop_records_after(tmp_path, 3)
    assert [record["update"] for record in read_records(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err == ""


LINES = [
    "",
    "{",
    "[1]",
    "null",
    '{"update": "2", "loss": 0.1}',
    '{"update": 2, "loss": "high"}',
    '{"update": 2, "loss": NaN}',
    '{"update": 2, "loss": 1' + "0" * 400 + "}",
    "[" * 100_000,
    "\0\0\0",
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_damaged_line_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
):
    path = write(tmp_path, 3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    assert [record["update"] for record in read_records(tmp_path)] == [1, 3]
    drop_records_after(tmp_path, 3)
    assert "lines of 1 updates are missing" in capsys.readouterr().err
    assert len(path.read_text().splitlines()) == 2


DISORDER = {
    "doubled": ([1, 2, 2, 3], "1 too many"),
    "a file twice": ([1, 2, 3, 1, 2, 3], "3 too many"),
    "out of order": ([2, 1, 3], "out of order"),
}


@pytest.mark.parametrize(("updates", "told"), DISORDER.values(), ids=DISORDER)
def test_lines_that_are_doubled_or_out_of_order_are_said_and_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], updates: list[int], told: str
):
    for place, update in enumerate(updates):
        append_record(tmp_path, {"update": update, "place": place})
    read = read_records(tmp_path)
    assert [record["update"] for record in read] == [1, 2, 3]
    for record in read:  # of two of one update, the one that was written later
        update = record["update"]
        assert record["place"] == max(i for i, other in enumerate(updates) if other == update)
    assert told in capsys.readouterr().err
    assert read_records(tmp_path, aloud=False) == read
    assert capsys.readouterr().err == ""
    drop_records_after(tmp_path, 2)
    assert told.replace("3 too", "2 too") in capsys.readouterr().err
    assert read_records(tmp_path) == read[:2]
    assert capsys.readouterr().err == ""


def test_a_reader_is_told_of_lines_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, 4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", lines[3]]) + "\n")
    assert len(read_records(tmp_path)) == 2
    assert "lines of 2 updates are missing" in capsys.readouterr().err


def test_an_update_that_no_run_comes_to_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A number of 18 digits in somebody else's file; to go through its updates fills the memory."""
    monkeypatch.setattr(records, "range", None, raising=False)
    write(tmp_path, 1)
    append_record(tmp_path, {"update": 10**18, "reward_mean": 0.5})
    assert len(read_records(tmp_path)) == 2
    assert f"lines of {10**18 - 2} updates are missing" in capsys.readouterr().err


def test_marks_are_of_the_newest_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 3)
    own = {"update": 3, "reward_mean": 0.5}
    for most, known in ((2, [2, 3]), (5, [1, 2, 3])):
        monkeypatch.setattr(lines, "MOST", most)
        marks = lines.Marks(lines.marks_of(tmp_path, 3, lines.Marks()), 3)
        changed = [{**own, "update": update, "reward_mean": 0.6} for update in (1, 2, 3, 4)]
        assert [line["update"] for line in changed if not marks.are_of(line)] == known
        assert all(marks.are_of({**own, "update": update}) for update in (-1, 0, 1, 2, 3))
        assert marks.are_of({**own, "guard_kl": 0.1}), "it may come later"


@pytest.mark.parametrize("most", [2, 5])
def test_marks_go_on_from_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int):
    """So a checkpoint costs as much after 70,000 updates as after 70."""
    monkeypatch.setattr(lines, "MOST", most)
    write(tmp_path, 2)
    known = lines.Marks(lines.marks_of(tmp_path, 2, lines.Marks()), 2)
    append_record(tmp_path, {"update": 3, "reward_mean": 0.7})
    whole = lines.marks_of(tmp_path, 3, lines.Marks())
    read: list[bytes] = []
    real = lines._record
    monkeypatch.setattr(lines, "_record", lambda line: read.append(line) or real(line))
    assert lines.marks_of(tmp_path, 3, known) == whole
    assert [json.loads(line)["update"] for line in read] == [3, 2]
    assert lines.marks_of(tmp_path, 3, lines.Marks("", 2)) == whole, "of an earlier version"
