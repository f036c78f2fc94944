"""A reward that fails costs no update, and a stop at the end costs nothing that was trained."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from nablaflow.runs import finish
from nablaflow.storage.manifest import list_checkpoints
from tests.faults.conftest import SHORT

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]
FAILS = """
import sys
from pathlib import Path
def f(images, prompts):
    lines = Path({metrics!r})
    if lines.exists() and len(lines.read_text().splitlines()) == 2:
        {what}
    return -images[:, 2].mean((1, 2))
"""


@pytest.mark.parametrize(
    ("what", "kind"),
    [("raise KeyError('oops')", "KeyError"), ("sys.exit(0)", "RewardFailed")],
    ids=["raises", "exits"],
)
def test_updates_are_saved_before_its_traceback(
    cli: Cli, recipe: Path, here: Path, what: str, kind: str
):
    code = FAILS.format(metrics=str(here / "run" / "metrics.jsonl"), what=what)
    (here / "mine.py").write_text(code)
    often = (*SHORT, "training.checkpoint_every=50", "training.updates=4")
    result = cli("train", recipe, *often, "reward=mine.py:f")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == kind
    assert [path.name for path in list_checkpoints(here / "run")] == ["step-000002"]


def test_sigterm_while_a_run_is_measured(
    cli: Cli, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "evaluate", stop)
        result = cli("train", recipe, *SHORT)
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines()[-1].endswith("go on with --resume")
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = cli("train", recipe, *SHORT, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads((here / "run" / "summary.json").read_text())["updates"] == 2
