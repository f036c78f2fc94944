"""`nablaflow eval` of runs with a guard: a row for its best checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nablaflow.evaluation.guard import Guard, Look

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
EVAL = ("eval", "run", "--n", "8", "--metrics", "reward,diversity", "--json")


def _rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["protocol"]["rows"]


def _names(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["name"], row["update"]) for row in rows]


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("reward", "diversity")}


@pytest.fixture
def second_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Guard.look

    def found(guard: Guard, update: int, told: Callable[[int], None]) -> Look:
        return replace(look(guard, update, told), reward=9.0 if update == 2 else -9.0)

    monkeypatch.setattr(Guard, "look", found)


@pytest.mark.usefixtures("second_is_best")
def test_the_best_has_a_row_in_its_place(recipe: Path, here: Path, cli: Cli):
    kept = ("training.updates=3", "training.checkpoint_every=1", "training.keep_checkpoints=3")
    trained = cli("train", recipe, *kept, "guard.every=1", "guard.n=4", "--json")
    assert json.loads(trained.stdout)["guard"]["best_checkpoint"] == "checkpoints/best-000002"
    rows = _rows(cli(*EVAL))
    steps = [("reference", 0), ("step-000001", 1), ("step-000002", 2)]
    assert _names(rows) == [*steps, ("guard-best", 2), ("policy", 3)]
    assert _names(_rows(cli(*EVAL, "--checkpoints", "last"))) == [steps[0], ("policy", 3)]
    shutil.rmtree(here / "run/checkpoints/step-000001")
    shutil.rmtree(here / "run/checkpoints/step-000002")
    alone = _rows(cli(*EVAL))
    assert _names(alone) == [("reference", 0), ("guard-best", 2), ("policy", 3)]
    assert _figures(alone[1]) == _figures(rows[2]) == _figures(rows[3])
    assert _figures(alone[1]) != _figures(alone[2])
    shutil.rmtree(here / "run/checkpoints/best-000002")
    assert _names(_rows(cli(*EVAL))) == [("reference", 0), ("policy", 3)]


@pytest.mark.parametrize(("action", "between"), [("stop", [("guard-best", 0)]), ("roll-back", [])])
def test_a_policy_that_was_rolled_back_is_the_best_itself(recipe: Path, cli: Cli, action, between):
    guard = ("guard.every=1", "guard.n=4", "guard.max_kl=1e-3", f"guard.action={action}")
    trained = cli("train", recipe, "optimizer.learning_rate=0.3", *guard, "--json")
    assert json.loads(trained.stdout)["guard"]["tripped"]["update"] == 1
    rows = _rows(cli(*EVAL))
    assert _names(rows) == [("reference", 0), *between, ("policy", 1)]
    if between:
        assert _figures(rows[1]) == _figures(rows[0])
