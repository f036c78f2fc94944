"""What a finished cell is, for any study: kept, refused if it is of something else, or redone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nablaflow.comparison import ComparisonStudy
from nablaflow.errors import UserError
from nablaflow.exact.study import LabStudy
from nablaflow.storage.study import Study, chosen, difference


@dataclass(frozen=True)
class Letters(Study[str]):
    holds: ClassVar[str] = "figure"

    out: Path
    size: int = 1

    @property
    def cells(self) -> list[str]:
        return ["a", "b"]

    def path(self, cell: str) -> Path:
        return self.out / cell / "cell.json"

    def settings(self, cell: str) -> dict[str, Any]:
        return {"inner": {"size": self.size}}


def test_a_stored_cell_is_no_longer_missing(tmp_path: Path) -> None:
    study = Letters(tmp_path)
    assert (study.missing(), study.done()) == (["a", "b"], 0)
    study.store("a", {"figure": {"x": 1.5}})
    assert (study.missing(), study.done()) == (["b"], 1)
    assert study.read("a") == {"figure": {"x": 1.5}, "settings": {"inner": {"size": 1}}}


def test_other_settings_are_refused_or_redone(tmp_path: Path) -> None:
    Letters(tmp_path).store("a", {"figure": {}})
    larger = Letters(tmp_path, size=2)
    with pytest.raises(
        UserError, match=r"^--out: .*a holds figures of other settings \(inner\.size: "
    ):
        larger.missing()
    assert larger.missing(overwrite=True) == ["a", "b"]


def test_a_cell_that_another_process_put_in_its_place_is_not_taken_for_ones_own(tmp_path: Path):
    """Two commands of other settings in one folder, each of which found it empty."""
    study, other = Letters(tmp_path), Letters(tmp_path, size=2)
    assert study.missing() == other.missing() == ["a", "b"]
    study.store("a", {"figure": {"x": 1}})
    assert study.finished("a")["figure"] == {"x": 1}
    other.store("a", {"figure": {"x": 2}})
    with pytest.raises(UserError, match=r"replaced meanwhile.*inner\.size: 2 there, 1 here"):
        study.finished("a")
    other.path("a").unlink()  # which it does before it puts another there
    with pytest.raises(UserError, match="is not a finished cell"):
        study.finished("a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"figure": {}}', '{"figure": 1, "settings": {}}'])
def test_what_is_no_finished_cell_is_named_or_redone(tmp_path: Path, text: str) -> None:
    study = Letters(tmp_path)
    study.path("a").parent.mkdir()
    study.path("a").write_text(text)
    with pytest.raises(UserError, match=r"cell\.json is not a finished cell; remove it"):
        study.missing()
    assert study.missing(overwrite=True) == ["a", "b"]


def test_another_digit_in_a_cell_is_noticed_and_a_cell_without_a_checksum_is_read(
    tmp_path: Path,
) -> None:
    study = Letters(tmp_path)
    study.store("a", {"figure": {"x": 1.5}})
    path = study.path("a")
    path.write_text(path.read_text().replace("1.5", "1.4"))
    with pytest.raises(UserError, match=r"cell\.json is not a finished cell"):
        study.read("a")
    path.write_text('{"figure": {}, "settings": {}}')  # as versions before wrote it
    assert study.read("a") == {"figure": {}, "settings": {}}


def test_names_are_taken_once_and_all_is_the_list() -> None:
    assert chosen([], ("a", "b"), ("b",)) == ("b",)
    assert chosen(["c", "all", "a"], ("a", "b"), ()) == ("a", "b", "c")


def test_the_first_difference_is_named_with_both_values() -> None:
    old = {"same": 1, "group": {"left": 1}}
    assert difference(old, old) is None
    assert difference(old, {"same": 1, "group": {"right": 2}}) == "group.left: 1 there, None here"


def test_laboratory_and_comparison_are_studies() -> None:
    assert issubclass(LabStudy, Study)
    assert issubclass(ComparisonStudy, Study)
