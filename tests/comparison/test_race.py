"""Comparisons carried out: what is stored, what is not run again, and what is refused first."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nablaflow.comparison import BYSTANDERS, ComparisonStudy, strength
from nablaflow.comparison.outcome import Outcome
from nablaflow.errors import TrainingStopped, UserError
from nablaflow.evaluation.calibration import Calibration
from nablaflow.evaluation.measure import Subject
from nablaflow.methods import BestOfN
from nablaflow.metrics import Estimate
from nablaflow.progress import Progress
from nablaflow.runs.stopping import Interrupted
from nablaflow.storage.checkpoint import load_checkpoint, save_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.naming import keep_name
from nablaflow.storage.records import append_record
from nablaflow.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("lean_runs")

Race = Callable[..., list[Outcome]]
race = importlib.import_module(
    "nablaflow.comparison.race"
)  # the package has a function of the name


def test_a_comparison_is_stored_and_goes_on(
    small_race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(BYSTANDERS, "best-of-n", lambda beta: [BestOfN(n=2)])
    (outcome,) = small_race("refl", "best-of-n")
    names = [row["method"] for row in outcome.rows()]
    assert names == ["reference", "exact tilt", "refl", "best-of-n"]
    rows = {row["method"]: row for row in outcome.rows()}
    assert rows["exact tilt"]["closing"] == pytest.approx(1.0)
    assert rows["reference"]["closing"] == pytest.approx(0.0)
    assert rows["refl"]["updates"] == 1
    cell = json.loads((tmp_path / "out/warmth/refl/seed-0/cell.json").read_text())
    assert [point["update"] for point in cell["points"]] == [1]
    assert len(cell["curve"]["reward"]) == 1

    def again(*arguments: Any) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(race, "_carry_out", again)
    (second,) = small_race("refl", "best-of-n")
    assert second.rows() == outcome.rows()


@pytest.fixture
def stopped(small_race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after an update; when it goes on, time ends it after the next."""

    @contextmanager
    def at_once(asked: list[bool]) -> Iterator[None]:
        asked.append(True)
        yield

    with monkeypatch.context() as patch:
        patch.setattr(race, "stopping", at_once)
        with pytest.raises(Interrupted):
            small_race("refl", minutes=10.0)
    step = Trainer.step

    def late(self: Trainer) -> dict[str, float]:
        record = step(self)
        self.spent, self.seconds = 1.0, 600.0
        return record

    monkeypatch.setattr(Trainer, "step", late)
    return tmp_path / "out/warmth/refl/seed-0"


def test_a_stopped_run_goes_on_from_its_checkpoint_if_its_settings_are_the_same(
    small_race: Race, tmp_path: Path, stopped: Path
):
    folder = stopped
    assert not (folder / "cell.json").exists()
    shutil.copytree(tmp_path / "out", tmp_path / "stopped")
    for beta, updates in ((1.0, [1, 2]), (2.0, [1])):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "stopped", tmp_path / "out")
        small_race("refl", minutes=10.0, beta=beta)
        cell = json.loads((folder / "cell.json").read_text())
        assert cell["updates"] == len(updates)
        assert [json.loads(line)["update"] for line in (folder / "metrics.jsonl").open()] == updates


def test_a_run_goes_on_before_a_checkpoint_that_is_damaged(small_race: Race, stopped: Path):
    """Whose later update would count as the newest, and whose lines as the run's."""
    for update in (2, 3):
        append_record(stopped, {"update": update, "reward_mean": 0.0, "seconds": 1.0})
    first = load_checkpoint(stopped / "checkpoints" / "step-000001")
    later = save_checkpoint(stopped, replace(first, update=3), keep=2)
    (later / "state.pt").write_bytes(b"")
    small_race("refl", minutes=10.0)
    assert [path.name for path in list_checkpoints(stopped)][-1] == "step-000002"
    cell = json.loads((stopped / "cell.json").read_text())
    assert cell["curve"]["update"] == [1, 2]


def test_a_run_that_diverges_is_a_result(small_race: Race, monkeypatch: pytest.MonkeyPatch):
    def stop(self: Trainer) -> dict[str, float]:
        raise TrainingStopped("update 1: loss is not finite")

    monkeypatch.setattr(Trainer, "step", stop)
    (outcome,) = small_race("refl")
    row = outcome.rows()[-1]
    assert (row["method"], row["diverged"], row["reward_mean"]) == ("refl", 1, None)


def test_a_reward_without_gradient_is_refused_before_anything_runs(tmp_path: Path):
    study = ComparisonStudy.named(["ddpo", "refl"], ["jpeg_compressibility"], tmp_path / "o")
    with Progress() as progress, pytest.raises(UserError) as caught:
        race.race(study, progress)
    assert "jpeg_compressibility" in str(caught.value)
    assert "ddpo" in str(caught.value)  # of those that can
    assert not (tmp_path / "o").exists()


def test_cells_of_other_settings_are_refused_before_the_bank_is_scored(
    small_race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where beta is left to the bank too, it is the finished cells' until the bank is known."""
    study = ComparisonStudy.named(["refl"], [], tmp_path / "out", seeds=1, beta=3.0)
    study.store(study.cells[0], {"points": []})
    monkeypatch.setattr(race, "_gauge", lambda *_: pytest.fail("a bank was scored"))
    for beta in (3.0, None):
        with pytest.raises(UserError, match=r"holds figures of other settings \(evaluation\.bank"):
            small_race("refl", beta=beta)
    study.path(study.cells[0]).write_text("{")
    with pytest.raises(UserError, match="is not a finished cell"):
        small_race("refl", beta=None)


def test_curves_of_an_earlier_version_are_read_by_their_rollouts(tmp_path: Path):
    study = ComparisonStudy(("residual-nabla-db", "refl"), ("warmth",), tmp_path, seeds=1, beta=1.0)
    rewards = [float(update) for update in range(8)]
    for cell in study.cells:
        curve = {"seconds": rewards, "reward": rewards}
        study.store(cell, {"points": [], "curve": curve})
    shared, own = (race._finished(study, cell)["curve"]["reward"] for cell in study.cells)
    assert (shared, own) == ([0.0, 4.0], rewards)


def test_points_are_the_runs_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        keep_name(tmp_path / name, name)
        race._keep_points(tmp_path / name, [{"update": 1}])
    assert race._points(tmp_path / "a") == [{"update": 1}]
    assert race._points(tmp_path / "none") == []
    shutil.copy(tmp_path / "b" / "points.json", tmp_path / "a")
    with pytest.raises(UserError, match=r"points\.json is of another run; remove .*a, and it is"):
        race._points(tmp_path / "a")


def test_a_method_at_its_strength_stands_below_it(
    small_race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At strength 0 the policy is the reference, whatever was trained."""
    found = []

    def none_of_it(subject: Subject, *_: Any, up: bool) -> Calibration:
        subject.model.adapter.settle(0.0)
        found.append((subject, up))
        return Calibration(Estimate(2.0, 0.1), Estimate(0.0, 0.1))

    monkeypatch.setattr(strength, "calibrate", none_of_it)
    monkeypatch.setitem(BYSTANDERS, "best-of-n", lambda beta: [BestOfN(n=1)])
    (outcome,) = small_race("refl", "best-of-n", calibrate=True)
    *_, trained, own, untrained = outcome.rows()
    assert [row["method"] for row in (trained, own)] == ["refl", "refl at its strength"]
    assert (own["strength"], own["updates"]) == (0.0, 1)
    assert own["reward_mean"] == pytest.approx(untrained["reward_mean"], abs=1e-5)
    assert own["reward_mean"] != trained["reward_mean"]
    assert [up for _, up in found] == [True]
    small_race("refl", calibrate=True)
    assert len(found) == 1
    with pytest.raises(UserError, match=r"other settings \(calibrate: True there, None here\)"):
        small_race("refl")
