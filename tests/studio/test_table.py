"""The table of judgements on the disk: cut lines, other columns, odd texts, other writers."""

from __future__ import annotations

from pathlib import Path

import pytest

from nablaflow.errors import UserError
from nablaflow.studio.pairs import PairRow
from nablaflow.studio.table import JudgementTable

ROW = PairRow("0.png", "1.png", "a", "me", "random")
HEADER = ",".join(PairRow._fields)


@pytest.fixture
def table(tmp_path: Path) -> JudgementTable[PairRow]:
    return JudgementTable(tmp_path / "pairs.csv", PairRow)


def test_a_line_that_a_crash_cut_is_none_and_is_mended(table: JudgementTable[PairRow]):
    table.append(ROW)
    whole = table.path.read_text()
    table.path.write_text(whole + "2.png,3.")
    assert table.rows() == [ROW]
    table.append(ROW)
    assert table.path.read_text() == whole + whole.splitlines()[1] + "\n"


def test_a_table_with_fewer_columns_gets_them(table: JudgementTable[PairRow]):
    table.path.write_text("rejected,preferred\n1.png,0.png\n")
    table.append(ROW)
    assert table.path.read_text().splitlines() == [HEADER, "0.png,1.png,,,", ",".join(ROW)]


def test_a_table_of_something_else_is_left_alone(table: JudgementTable[PairRow]):
    table.path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="preferred,rejected"):
        table.append(ROW)
    assert table.path.read_text() == "a,b\n1,2\n"


def test_what_another_program_writes_is_read(table: JudgementTable[PairRow]):
    table.append(ROW)
    table.path.write_text(f"{HEADER}\n")
    assert table.rows() == []
    table.path.unlink()
    assert table.rows() == []


def test_odd_texts_stay_on_their_line(table: JudgementTable[PairRow]):
    table.append(ROW._replace(prompt='say "hi",\nyou', rater="a,b\n=1"))
    for rows in (table.rows(), JudgementTable[PairRow](table.path, PairRow).rows()):
        (row,) = rows
        assert (row.prompt, row.rater) == ('say "hi", you', "a,b =1")


def test_it_never_writes_through_a_link(table: JudgementTable[PairRow], tmp_path: Path):
    secret = tmp_path / "secret.csv"
    secret.write_text(f"{HEADER}\n")
    table.path.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        table.append(ROW)
    assert secret.read_text() == f"{HEADER}\n"
