"""What a comparison is made of, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nablaflow.comparison import BYSTANDERS, ENTRANTS, ComparisonCell, ComparisonStudy
from nablaflow.comparison.study import CELL
from nablaflow.config.named_method import method_settings
from nablaflow.errors import UserError
from nablaflow.methods import METHODS, UNTRAINED
from nablaflow.storage import checksums
from nablaflow.storage.files import write_whole
from nablaflow.storage.study import slug


def test_every_method_competes():
    """Of the two that stand for others, value-matching is any of them with an estimator."""
    entered = {entrant.method(1.0).name for entrant in ENTRANTS.values()}
    assert entered == set(METHODS) - {"value-matching"}
    assert {method.name for make in BYSTANDERS.values() for method in make(1.0)} == set(UNTRAINED)


@pytest.mark.parametrize("method", [*ENTRANTS, *BYSTANDERS])
def test_every_cell_has_a_configuration(method: str, tmp_path: Path):
    study = ComparisonStudy.named(["all"], [], tmp_path, minutes=1.5, beta=3.0, learning_rate=7e-4)
    config = study.config(ComparisonCell("warmth", method, 2))
    assert method_settings(config.method)["beta"] == 3.0
    assert (config.seed, config.training.minutes) == (2, 1.5)
    assert config.optimizer.learning_rate == 7e-4


def test_a_round_of_all_methods_comes_before_the_next_seed(tmp_path: Path):
    study = ComparisonStudy.named(["refl", "best-of-n"], ["warmth", "contrast"], tmp_path, seeds=2)
    assert [str(cell) for cell in study.cells][:4] == [
        "warmth refl 0",
        "warmth best-of-n 0",
        "warmth refl 1",
        "contrast refl 0",
    ]


def _study(out: Path, **settings: Any) -> ComparisonStudy:
    return ComparisonStudy.named(["refl"], [], out, beta=4.0, **settings)


def test_a_cell_of_other_settings_is_not_taken_for_this_one(tmp_path: Path):
    study, cell = _study(tmp_path), ComparisonCell("warmth", "refl", 0)
    assert not study.is_done(cell)
    study.store(cell, {"points": []})
    assert study.is_done(cell)
    longer = _study(tmp_path, minutes=9.0)
    with pytest.raises(UserError, match=r"other settings \(training\.minutes: 2\.0 there, 9\.0"):
        longer.is_done(cell)
    assert not longer.is_done(cell, overwrite=True)


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TABLES = [
    (minutes, room, beta, held_out)
    for minutes, folder in ((2.0, "comparison"), (10.0, "comparison_ten_minutes"))
    for room, beta, held_out in (
        (f"{folder}/warmth", 4.0, None),
        (f"{folder}/preference", 0.25, "preference_rule"),
        (f"{folder}/benchmarks-error_budget.py-hue", 6.0, None),
    )
]


@pytest.mark.parametrize(("minutes", "room", "beta", "held_out"), TABLES)
def test_the_tables_cells_are_taken_for_what_the_page_asks_for(
    minutes: float, room: str, beta: float, held_out: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Settings that came later have their defaults there; so the page's commands show them."""
    monkeypatch.chdir(BENCHMARKS.parent)
    cells = [json.loads(path.read_text()) for path in (BENCHMARKS / room).glob(f"*/*/{CELL}")]
    assert cells
    for cell in cells:
        study = ComparisonStudy.named(
            [cell["method"]],
            [cell["reward"]],
            BENCHMARKS / Path(room).parts[0],
            beta=beta,
            held_out=held_out,
            minutes=minutes,
        )
        assert study.is_done(ComparisonCell(cell["reward"], cell["method"], cell["seed"]))


def test_a_setting_that_is_gone_is_told(tmp_path: Path):
    study, cell = _study(tmp_path), ComparisonCell("warmth", "refl", 0)
    study.store(cell, {"points": []})
    found = study.read(cell)
    found["settings"]["training"] |= {"calibrate": False, "gone": 3}
    write_whole(study.path(cell), checksums.sealed(found))
    with pytest.raises(UserError, match=r"other settings \(training\.gone: 3 there, None here"):
        study.is_done(cell)


def test_a_cells_file_names_no_code_to_run(tmp_path: Path):
    """Its settings are completed by those of methods of the package alone."""
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    study, cell = _study(tmp_path), ComparisonCell("warmth", "refl", 0)
    study.store(cell, {"points": []})
    found = study.read(cell)
    found["settings"]["method"] = {"name": f"{tmp_path}/own.py:Mine", "beta": 4.0}
    write_whole(study.path(cell), checksums.sealed(found))
    with pytest.raises(UserError, match=r"other settings \(method\."):
        study.is_done(cell)
    assert not ran.exists()


def test_a_damaged_cell_is_named(tmp_path: Path):
    study, cell = _study(tmp_path), ComparisonCell("warmth", "refl", 0)
    path = study.folder(cell) / CELL
    path.parent.mkdir(parents=True)
    for text in ("{", json.dumps({"points": []}), "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a finished cell"):
            study.is_done(cell)
        assert study.missing(overwrite=True)[0] == cell


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 0}, "--seeds: 0"),
        ({"minutes": 0.0}, "--minutes: must be above 0"),
        ({"beta": -1.0}, "--beta: must be above 0"),
        ({"n": 3}, "--n: 3 is too few; use 8"),
    ],
)
def test_a_number_that_is_none(tmp_path: Path, settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        ComparisonStudy.named(["refl"], [], tmp_path, **settings)


def test_folders_of_rewards():
    assert slug("symmetry + 0.5*colorfulness") == "symmetry-0.5-colorfulness"
    assert slug("my/file.py:score") == "my-file.py-score"


OWN = """
from typing import ClassVar

import nablaflow as nf


class Still(nf.Method):
    name: ClassVar[str] = "still"
    needs_reward_gradient: ClassVar[bool] = False

    def losses(self, batch, networks):
        t = batch.transitions
        noise = networks.model.predict(t.x, t.k, batch.condition).epsilon
        return nf.Losses({"noise": 0.0 * noise.square().flatten(1).mean(1)})
"""


def test_a_method_of_the_users_own_is_a_cell(tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path}/mine.py:Still"
    study = ComparisonStudy((name,), ("warmth",), tmp_path / "out", beta=2.0)
    config = study.config(study.cells[0])
    assert (config.method.name, config.method.beta) == ("still", 2.0)
    assert config.output_dir.parents[2] == tmp_path / "out"
    with pytest.raises(UserError, match="has no Other"):
        ComparisonStudy((f"{tmp_path}/mine.py:Other",), ("warmth",), tmp_path / "out")


def test_a_method_or_a_reward_that_was_changed_has_no_finished_cells(tmp_path: Path):
    method, reward = tmp_path / "mine.py", tmp_path / "score.py"
    method.write_text(OWN)
    reward.write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    study = ComparisonStudy(
        (f"{method}:Still",), (f"{reward}:score",), tmp_path / "out", seeds=1, beta=2.0
    )
    study.store(study.cells[0], {"points": []})
    assert study.missing() == []
    for file in (method, reward):
        text = file.read_text()
        file.write_text(f"{text}# changed\n")
        with pytest.raises(UserError, match=rf"figures of other settings \(files\.{file}"):
            study.missing()
        assert study.missing(overwrite=True) == study.cells
        file.write_text(text)
    assert study.missing() == []


def test_a_cell_that_has_recorded_no_files_is_not_held_to_them(tmp_path: Path, monkeypatch):
    """Such as those of benchmarks/comparison, whose reward stands in a benchmark's file."""
    reward = tmp_path / "score.py"
    reward.write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    study = ComparisonStudy(("refl",), (f"{reward}:score",), tmp_path / "out", seeds=1, beta=2.0)
    settings = study.settings(study.cells[0])
    del settings["files"]
    with monkeypatch.context() as patched:
        patched.setattr(ComparisonStudy, "settings", lambda self, cell: settings)
        study.store(study.cells[0], {"points": []})
    assert study.missing() == []
