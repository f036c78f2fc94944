"""``nablaflow exact``: its JSON, its table, its pictures, and going on after Ctrl-C."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nablaflow import cli as program
from nablaflow.exact import Problem, evaluate, study

Cli = Callable[..., Result]
TINY = ("--updates", 2, "--batch", 8, "--n", 100, "--workers", 1)
ONE = ("exact", "--problem", "unequal", "--method", "terminal", *TINY)
FIGURES = (
    "energy_distance",
    "floor",
    "mode_weight_error",
    "reward_mean",
    "target_reward_mean",
    "network_evaluations",
    "seconds",
)


def rows(result: Result) -> list[dict[str, Any]]:
    """What ``--json`` prints; nothing else may be on stdout."""
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found) == ["rows"]
    return found["rows"]


def one_line(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_json_has_a_row_for_each_cell_in_the_order_asked_for(cli: Cli, here: Path) -> None:
    many = ("--problem", "unequal", "--problem", "bumps", "--method", "terminal", "--seeds", 2)
    found = rows(cli("exact", *many, *TINY, "--json"))
    assert [(row["problem"], row["method"], row["seed"]) for row in found] == [
        ("unequal", "terminal", 0),
        ("unequal", "terminal", 1),
        ("bumps", "terminal", 0),
        ("bumps", "terminal", 1),
    ]
    for row in found:
        assert all(math.isfinite(row[name]) for name in FIGURES)
    assert {path.name for path in (here / "runs" / "exact").iterdir()} == {"unequal", "bumps"}
    # All of it is there: nothing runs again, and the seconds are those of the first time.
    assert rows(cli("exact", *many, *TINY, "--json")) == found


def test_random_problems_are_named_by_their_numbers(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nablaflow.exact.process.MOMENT_SAMPLES", 100)
    two = ("--random", 2, "--method", "terminal", *TINY)
    found = rows(cli("exact", *two, "--json"))
    assert [row["problem"] for row in found] == ["random-0", "random-1"]
    result = cli("exact", *two)
    assert result.exit_code == 0, result.stderr
    assert "2 random" in result.stdout
    assert "worst" in result.stdout
    alone = cli("exact", "--problem", "random-1", "--method", "terminal", *TINY, "--json")
    assert rows(alone) == found[1:]


def test_steps_stand_in_the_rows_and_are_not_mixed(cli: Cli, here: Path) -> None:
    (few,) = rows(cli(*ONE, "--steps", 4, "--variance", "posterior", "--json"))
    assert (few["steps"], few["variance"]) == (4, "posterior")
    result = cli(*ONE, "--json")
    assert one_line(result, 2) == result.stderr.strip()
    assert "steps: 4 there, 50 here" in result.stderr


def test_the_table_and_the_pictures(cli: Cli, here: Path) -> None:
    result = cli(*ONE, "--out", "found", "--plot")
    assert result.exit_code == 0, result.stderr
    assert "unequal: exact" in result.stdout
    assert "energy" in result.stdout
    assert result.stdout.splitlines()[-2:] == ["found/unequal.png", "found/pareto.png"]
    assert {path.name for path in (here / "found").iterdir()} == {
        "unequal",
        "unequal.png",
        "pareto.png",
    }
    figure = json.loads((here / "found" / "unequal" / "terminal" / "seed-0.json").read_text())
    times = figure["row"]["energy_distance"] / figure["row"]["floor"]
    assert f"{times:.1f}" in result.stdout
    assert rows(cli(*ONE, "--out", "found", "--plot", "--json")) == [figure["row"]]


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seeds = study.evaluate, []

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        seeds.append(arguments[4])
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(study, "evaluate", interrupted)
    line = one_line(cli(*ONE, "--seeds", 3), 130)
    assert line == "nablaflow: stopped; 1 of 3 cells are done; the same command goes on"
    assert [row["seed"] for row in rows(cli(*ONE, "--seeds", 3, "--json"))] == [0, 1, 2]
    assert seeds == [0, 1, 1, 2]


def test_other_settings_are_refused_and_overwritten_when_asked(cli: Cli, here: Path) -> None:
    first = rows(cli(*ONE, "--json"))
    result = cli(*ONE, "--updates", 0, "--json")
    assert one_line(result, 2) == result.stderr.strip()
    for word in ("--out", "runs/exact/unequal/terminal", "updates: 2 there, 0 here", "--overwrite"):
        assert word in result.stderr
    assert rows(cli(*ONE, "--json")) == first
    (replaced,) = rows(cli(*ONE, "--updates", 0, "--json", "--overwrite"))
    assert (replaced["updates"], replaced["network_evaluations"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--problem", "rign"), ["--problem", "'rign'", "ring?"]),
        (("--method", "nabla-dt"), ["--method", "'nabla-dt'", "nabla-td?"]),
        (("--problem", "random"), ["--problem", "'random'", "random-0"]),
        (("--method", ""), ["--method", "is empty"]),
        (("--problem", ","), ["--problem", "is empty"]),
        (("--method", "terminal", "--method", ""), ["--method", "is empty"]),
        (("--random", 0), ["--random", "1 or more"]),
        (("--variance", "posteriro"), ["--variance", "'posteriro'", "posterior?"]),
        (("--seeds", 0), ["--seeds", "1 or more"]),
        (("--updates", -1), ["--updates", "0 or more"]),
        (("--n", 10), ["--n", "100 or more"]),
        (("--workers", 0), ["--workers", "1 or more"]),
        (("--out", "/dev/null/x"), ["--out", "/dev/null"]),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    cli: Cli, here: Path, arguments: tuple[object, ...], words: list[str]
) -> None:
    result = cli("exact", *arguments)
    assert one_line(result, 2) == result.stderr.strip()
    assert all(word in result.stderr for word in words)
    assert list(here.iterdir()) == []


def test_the_defaults_are_those_of_evaluate() -> None:
    ours, theirs = (inspect.signature(f).parameters for f in (program.exact, evaluate))
    for name in ("updates", "batch", "n"):
        assert ours[name].default == theirs[name].default
    theirs = inspect.signature(Problem).parameters
    for name in ("steps", "variance"):
        assert ours[name].default == theirs[name].default


def test_a_method_of_the_users_own(cli: Cli, here: Path):
    (here / "mine.py").write_text(
        "from typing import ClassVar\n"
        "import nablaflow as nf\n"
        "class Still(nf.Method):\n"
        "    name: ClassVar[str] = 'still'\n"
        "    needs_reward_gradient: ClassVar[bool] = False\n"
        "    def losses(self, batch, networks):\n"
        "        t = batch.transitions\n"
        "        noise = networks.model.predict(t.x, t.k, batch.condition).epsilon\n"
        "        return nf.Losses({'noise': 0.0 * noise.square().flatten(1).mean(1)})\n"
    )
    small = ("--problem", "ring", "--seeds", "1", "--updates", "1", "--batch", "4", "--n", "100")
    result = cli("exact", "--method", "mine.py:Still", *small, "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["method"], row["problem"]) == ("mine.py:Still", "ring")
    wrong = cli("exact", "--method", "mine.py:Other", *small)
    assert wrong.exit_code == 2
    assert "Other" in wrong.stderr.strip().splitlines()[-1]
