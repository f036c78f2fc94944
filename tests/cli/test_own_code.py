"""A run that goes on with another reward under the same name says from where on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.usefixtures("lean_runs")

REWARD = "def score(images, prompts):\n    return {scale} * images.mean((1, 2, 3))\n"
LINE = "mine.py:score: its file is not what the run had before; from update {update} on it is"


def test_a_reward_that_was_changed_is_told(cli: Cli, recipe: Path, here: Path) -> None:
    file = here / "mine.py"
    file.write_text(REWARD.format(scale=1))
    given = ("train", recipe, f"reward={file}:score")
    told = {}
    for updates, scale in ((1, 1), (2, 1), (3, 2), (4, 2)):
        file.write_text(REWARD.format(scale=scale))
        resumed = ["--resume"] if updates > 1 else []
        done = cli(*given, f"training.updates={updates}", *resumed)
        assert done.exit_code == 0, done.stderr
        told[updates] = done.stderr
    assert [LINE.format(update=n - 1) in told[n] for n in told] == [False, False, True, False]


@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_where_it_is_not_known_it_is_not_taken_for_the_same(
    cli: Cli, recipe: Path, here: Path, content: str
) -> None:
    (here / "mine.py").write_text(REWARD.format(scale=1))
    given = ("train", recipe, f"reward={here}/mine.py:score")
    assert cli(*given, "training.updates=1").exit_code == 0
    (here / "run" / "code.json").write_text(content)
    done = cli(*given, "training.updates=2", "--resume")
    assert done.exit_code == 0, done.stderr
    assert LINE.format(update=1) in done.stderr
