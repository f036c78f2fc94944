"""A study's cells: run once, kept, gone on with, and refused where they are of something else."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nablaflow.errors import UserError
from nablaflow.exact import (
    CONTENDERS,
    PROBLEMS,
    Contender,
    LabSettings,
    Problem,
    evaluate,
    named_problem,
)
from nablaflow.exact.contenders import DEFAULT, PUBLISHED
from nablaflow.exact.pool import plan
from nablaflow.exact.study import LabCell, LabStudy
from nablaflow.storage import checksums
from tests.support.run_folders import contents

Files = dict[str, bytes]
STEPS = 5


def study_in(out: Path, **changes: Any) -> LabStudy:
    """Two problems, one method, one seed: less than a second."""
    tiny = LabStudy(
        ("bumps", "unequal"), ("terminal",), out, updates=2, batch=8, n=100, steps=STEPS
    )
    return replace(tiny, **changes)


def run(study: LabStudy, **flags: Any) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """Its rows, the cells that were run, and the updates that were told of."""
    cells, updates = [], []
    rows = plan(study, workers=1, **flags).run(updates.append, lambda cell: cells.append(str(cell)))
    return rows, cells, updates


def edit(path: Path, group: str, name: str, value: object) -> None:
    stored = checksums.checked(path.read_text())
    stored[group][name] = value
    path.write_text(checksums.sealed(stored))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What is in the folder of `study_in` once it is done."""
    out = tmp_path_factory.mktemp("finished")
    rows, cells, updates = run(study_in(out))
    assert cells == ["bumps/terminal/seed-0", "unequal/terminal/seed-0"]
    assert updates == [1, 2, 3, 4]
    assert [row["problem"] for row in rows] == ["bumps", "unequal"]
    return contents(out)


@pytest.fixture
def done(finished: Files, tmp_path: Path) -> LabStudy:
    """A finished study of its own."""
    for name, content in finished.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return study_in(tmp_path)


BUMPS = Path("bumps", "terminal", "seed-0.json")


# --- what is run ----------------------------------------------------------------------------------


def test_cells_are_in_the_order_of_problems_methods_and_seeds(tmp_path: Path) -> None:
    study = LabStudy(("ring", "bumps"), ("terminal", "nabla-td"), tmp_path, seeds=2)
    assert [str(cell) for cell in study.cells] == [
        "ring/terminal/seed-0",
        "ring/terminal/seed-1",
        "ring/nabla-td/seed-0",
        "ring/nabla-td/seed-1",
        "bumps/terminal/seed-0",
        "bumps/terminal/seed-1",
        "bumps/nabla-td/seed-0",
        "bumps/nabla-td/seed-1",
    ]


def test_names_may_be_left_out_said_twice_or_be_all(tmp_path: Path) -> None:
    default = LabStudy.named([], [], tmp_path)
    assert default.problems == tuple(PROBLEMS)
    assert default.methods == (DEFAULT, PUBLISHED)
    suited = tuple(name for name in CONTENDERS if name != "vgg-flow")  # which has no noise
    assert LabStudy.named([], ["all"], tmp_path).methods == suited
    assert LabStudy.named(["grid", "ring", "grid"], [], tmp_path).problems == ("grid", "ring")


def test_random_problems_are_alone_or_beside_named_ones(tmp_path: Path) -> None:
    two = ("random-0", "random-1")
    assert LabStudy.named([], [], tmp_path, random=2).problems == two
    assert LabStudy.named(["ring", "random-1"], [], tmp_path, random=2).problems == (
        "ring",
        "random-1",
        "random-0",
    )
    assert LabStudy.named(["all"], [], tmp_path, random=2).problems == (*PROBLEMS, *two)
    assert LabStudy.named(["random-7"], [], tmp_path).problems == ("random-7",)
    for none in (0, -1):
        with pytest.raises(UserError, match=rf"^--random: {none} is too few; use 1 or more$"):
            LabStudy.named([], [], tmp_path, random=none)


def test_the_defaults_are_those_of_evaluate() -> None:
    ours = {part.name: part.default for part in fields(LabStudy)}
    theirs = inspect.signature(evaluate).parameters
    for name in ("updates", "batch", "n"):
        assert ours[name] == theirs[name].default
    assert ours["steps"] == {part.name: part.default for part in fields(Problem)}["steps"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problems": ("rnig",)}, r"--problem: .*'rnig'.*ring\?"),
        ({"methods": ("terminl",)}, r"--method: .*'terminl'.*terminal\?"),
        ({"seeds": 0}, "--seeds: 0"),
        ({"updates": -1}, "--updates: -1"),
        ({"batch": 0}, "--batch: 0"),
        ({"batch": 6}, "batch: 6 trajectories do not divide among the 4 optimizer steps"),
        ({"n": 99}, "--n: 99 .*100 or more"),
        ({"steps": 1}, "--steps: 1 .*2 or more"),
        ({"variance": "ddim"}, "--variance: no variance 'ddim'; choose one of analytic, posterior"),
        ({"steps": 1001}, "steps: 1001; the laboratory's schedule has 1000"),
    ],
)
def test_mistakes_are_found_before_anything_is_done(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        study_in(tmp_path, **changes)


# --- what is stored -------------------------------------------------------------------------------


def test_a_cell_holds_what_evaluate_says_and_what_it_was_made_with(done: LabStudy) -> None:
    problem, cell = replace(named_problem("bumps"), steps=STEPS), LabCell("bumps", "terminal", 0)
    expected = evaluate(problem, "terminal", updates=2, batch=8, seed=0, n=100)
    stored = json.loads((done.out / BUMPS).read_text())
    assert stored["row"] == {**expected.row(), "seconds": stored["row"]["seconds"]}
    settings = stored["settings"]
    assert (settings["updates"], settings["batch"], settings["n"]) == (2, 8, 100)
    assert settings["method"]["name"] == "terminal"
    assert settings["method"]["beta"] == problem.beta
    trained = LabSettings.model_validate_json(json.dumps(settings["training"]))
    assert trained == CONTENDERS["terminal"].settings
    torch.testing.assert_close(done.samples(cell), expected.samples.float())
    (samples,) = load_file((done.out / BUMPS).with_suffix(".safetensors")).values()
    assert (samples.shape, samples.dtype) == ((100, 2), torch.float32)


def test_steps_and_variance_are_those_of_the_sampler_that_is_trained(tmp_path: Path) -> None:
    (found,), _, _ = run(study_in(tmp_path, problems=("unequal",), steps=3, variance="posterior"))
    problem = replace(named_problem("unequal"), steps=3, variance="posterior")
    expected = evaluate(problem, "terminal", updates=2, batch=8, seed=0, n=100)
    assert found == {**expected.row(), "seconds": found["seconds"]}
    assert (found["steps"], found["variance"]) == (3, "posterior")


def test_nothing_half_written_is_left(done: LabStudy) -> None:
    assert set(contents(done.out)) == {
        f"{problem}/terminal/seed-0.{ending}"
        for problem in ("bumps", "unequal")
        for ending in ("json", "safetensors")
    }


# --- going on -------------------------------------------------------------------------------------


def test_what_is_done_is_kept_as_it_is(done: LabStudy) -> None:
    edit(done.out / BUMPS, "row", "energy_distance", 123.0)
    before = contents(done.out)
    rows, cells, updates = run(done)
    assert (cells, updates) == ([], [])
    assert rows[0]["energy_distance"] == 123.0
    assert contents(done.out) == before


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_only_what_is_missing_is_run(done: LabStudy, finished: Files, ending: str) -> None:
    edit(done.out / BUMPS, "row", "energy_distance", 123.0)
    lost = done.out / "unequal" / "terminal" / f"seed-0{ending}"
    lost.unlink()
    rows, cells, updates = run(done)
    assert (cells, updates) == (["unequal/terminal/seed-0"], [1, 2])
    first = json.loads(finished["unequal/terminal/seed-0.json"])["row"]
    assert rows[0]["energy_distance"] == 123.0
    assert rows[1] == {**first, "seconds": rows[1]["seconds"]}


def test_more_seeds_and_more_methods_add_to_what_is_there(done: LabStudy) -> None:
    more = replace(done, methods=("residual-nabla-db", "terminal"), seeds=2)
    assert len(more.cells) == 8
    left = [str(cell) for cell in more.missing()]
    assert len(left) == 6
    assert not {"bumps/terminal/seed-0", "unequal/terminal/seed-0"} & set(left)
    assert more.done() == 2


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    study = study_in(tmp_path)

    def stop(updates: int) -> None:
        if updates == 3:  # in the middle of the second cell
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(study, workers=1).run(on_updates=stop)
    assert study.done() == 1
    edit(tmp_path / BUMPS, "row", "energy_distance", 123.0)
    rows, cells, _ = run(study)
    assert cells == ["unequal/terminal/seed-0"]
    assert rows[0]["energy_distance"] == 123.0


# --- figures of something else --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"updates": 3}, "updates: 2 there, 3 here"),
        ({"batch": 12}, "batch: 8 there, 12 here"),
        ({"n": 101}, "n: 100 there, 101 here"),
        ({"steps": 10}, f"steps: {STEPS} there, 10 here"),
        ({"variance": "posterior"}, "variance: analytic there, posterior here"),
    ],
)
def test_other_numbers_are_refused(done: LabStudy, changes: dict[str, Any], words: str) -> None:
    before = contents(done.out)
    with pytest.raises(UserError, match=rf"--out: .*terminal .*\({words}\).*--overwrite"):
        plan(replace(done, **changes))
    assert contents(done.out) == before


@pytest.mark.parametrize(
    ("part", "words"),
    [("settings", r"training\.width: \d+ there, 16 here"), ("method", r"method\.name: terminal")],
)
def test_other_settings_of_a_method_are_refused(
    done: LabStudy, monkeypatch: pytest.MonkeyPatch, part: str, words: str
) -> None:
    method = CONTENDERS["terminal"]
    changed = method.settings.model_copy(update={"width": 16})
    if part == "settings":
        other = Contender(method.method, changed)
    else:
        other = Contender(CONTENDERS["nabla-td"].method, method.settings)
    monkeypatch.setitem(CONTENDERS, "terminal", other)
    with pytest.raises(UserError, match=words):
        plan(done)


def test_overwriting_replaces_only_what_differs(done: LabStudy) -> None:
    """So that the same command goes on with what it began."""
    edit(done.out / BUMPS, "settings", "updates", 5)
    kept = done.out / "unequal" / "terminal" / "seed-0.json"
    edit(kept, "row", "energy_distance", 123.0)
    with pytest.raises(UserError, match="updates: 5 there, 2 here"):
        plan(done)
    rows, cells, _ = run(done, overwrite=True)
    assert cells == ["bumps/terminal/seed-0"]
    assert rows[1]["energy_distance"] == 123.0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"row": {}}', '{"row": 1, "settings": 2}'])
def test_a_damaged_file_is_named(done: LabStudy, content: str) -> None:
    (done.out / BUMPS).write_text(content)
    with pytest.raises(UserError, match=r"seed-0\.json is not a finished cell; remove it"):
        plan(done)
    assert [str(cell) for cell in done.missing(overwrite=True)] == ["bumps/terminal/seed-0"]


def test_damaged_samples_are_named(done: LabStudy) -> None:
    path = (done.out / BUMPS).with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"seed-0\.safetensors is damaged; remove it"):
        done.samples(LabCell("bumps", "terminal", 0))


def test_a_folder_that_cannot_be_made_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UserError, match="--out: cannot write"):
            plan(study_in(out))


# --- several processes ----------------------------------------------------------------------------


def test_workers_find_the_same_are_stopped_together_and_leave_whole_cells(
    tmp_path: Path, finished: Files
) -> None:
    """Each worker spends seconds on its imports, so one pool for all of it."""
    study, before = study_in(tmp_path, seeds=3), multiprocessing.active_children()

    def stop(cell: LabCell) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(study, workers=2).run(on_cell=stop)
    assert multiprocessing.active_children() == before
    assert 1 <= study.done() <= 4
    for cell in set(study.cells) - set(study.missing()):
        assert study.samples(cell).shape == (100, 2)
        if cell.seed == 0:
            name = f"{cell.problem}/terminal/seed-0.json"
            found = checksums.checked((tmp_path / name).read_text())
            alone = checksums.checked(finished[name].decode())
            found["row"]["seconds"] = alone["row"]["seconds"]
            assert found == alone


@pytest.mark.slow
def test_a_workers_mistake_is_one_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "unequal").mkdir()
    (tmp_path / "unequal" / "terminal").write_text("in the way")
    study = study_in(tmp_path, problems=("unequal",), seeds=2, updates=0)
    with pytest.raises(UserError, match=r"--out: cannot write .*terminal"):
        plan(study, workers=2).run()


def test_rows_of_another_process_are_refused(tmp_path: Path, finished: Files):
    """It found the folder empty, too, and its cells took the place of these."""
    for name, content in finished.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=r"replaced meanwhile by figures of other settings \(updates"
    ):
        study_in(tmp_path, updates=3).rows()


OWN = """
from nablaflow.methods.ddpo import DDPO


class Mine(DDPO):
    name = "mine"
"""


def test_a_method_that_was_changed_is_run_again(tmp_path: Path) -> None:
    """Whoever writes one runs it, changes it, and runs it again: into the same folder."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    study = study_in(tmp_path / "out", problems=("bumps",), methods=(f"{file}:Mine",))
    cell = study.cells[0]
    study._samples_path(cell).parent.mkdir(parents=True)
    study._samples_path(cell).touch()
    study.store(cell, {"row": {}})
    assert study.missing() == []
    file.write_text(f"{file.read_text()}# changed\n")
    with pytest.raises(UserError, match=r"figures of other settings \(files\."):
        study.missing()
