"""A run that goes on with another reward under the same name says from where on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nablaflow.models.file_mark import PIECES, SIZE
from nablaflow.runs.own_code import _mark
from tests.cli.conftest import Cli

pytestmark = pytest.mark.usefixtures("lean_runs")

REWARD = "def score(images, prompts):\n    return {scale} * images.mean((1, 2, 3))\n"
LINE = "{file}: this file is not what the run had before; from update {update} on what is there"


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
    assert [LINE.format(file=file, update=n - 1) in told[n] for n in told] == [
        False,
        False,
        True,
        False,
    ]


def test_each_file_is_told_once_and_prompts_are_files_too(
    cli: Cli, recipe: Path, here: Path
) -> None:
    for name, text in (("mine.py", REWARD.format(scale=1)), ("p.txt", "a fox\na cat\n")):
        (here / name).write_text(text)
    given = ("train", recipe, "reward=mine.py:score + 0.5*warmth", "prompts=p.txt")
    assert cli(*given, "training.updates=1").exit_code == 0
    for name in ("mine.py", "p.txt"):
        with (here / name).open("a") as file:
            file.write("# more\n")
    done = cli(*given, "training.updates=2", "--resume")
    assert done.exit_code == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "what the run had before" in line]
    assert sorted(told) == [
        f"{name}: this file is not what the run had before; from update 1 on what is there now is "
        "used"
        for name in (str(here / "p.txt"), "mine.py")
    ]


def _another_bit(text: str) -> str:
    return text.replace("mine.py", "line.py")  # one bit of the name


@pytest.mark.parametrize("change", [lambda _: "[1]", lambda _: "{", lambda _: "", _another_bit])
def test_where_it_is_not_known_it_is_not_taken_for_the_same(
    cli: Cli, recipe: Path, here: Path, change: Callable[[str], str]
) -> None:
    (here / "mine.py").write_text(REWARD.format(scale=1))
    given = ("train", recipe, f"reward={here}/mine.py:score")
    assert cli(*given, "training.updates=1").exit_code == 0
    kept = here / "run" / "code.json"
    kept.write_text(change(kept.read_text()))
    done = cli(*given, "training.updates=2", "--resume")
    assert done.exit_code == 0, done.stderr
    assert "code.json: damaged, so whether" in done.stderr
    assert f"{here / 'mine.py'} is as before cannot be told" in done.stderr


def test_an_earlier_versions_names_are_known(cli: Cli, recipe: Path, here: Path) -> None:
    (here / "mine.py").write_text(REWARD.format(scale=1))
    given = ("train", recipe, f"reward={here}/mine.py:score")
    assert cli(*given, "training.updates=1").exit_code == 0
    kept = here / "run" / "code.json"
    kept.write_text(json.dumps(json.loads(kept.read_text())["files"]))
    (here / "mine.py").write_text(REWARD.format(scale=2))
    done = cli(*given, "training.updates=2", "--resume")
    assert LINE.format(file=here / "mine.py", update=1) in done.stderr


def test_weights_are_known_by_pieces_and_all_else_whole(tmp_path: Path) -> None:
    """A reward's own weights may be gigabytes; of prompts a word may change anywhere."""
    size = 4 * PIECES * SIZE
    for name, noticed in (("w.safetensors", False), ("p.txt", True)):
        (tmp_path / name).write_bytes(bytes(size))
        before = _mark(tmp_path / name)
        with (tmp_path / name).open("r+b") as file:
            file.seek(2 * SIZE)  # between the first piece and the second
            file.write(b"x")
        assert (_mark(tmp_path / name) != before) == noticed


def test_a_disk_without_room_for_its_checksums_is_one_line(
    cli: Cli, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (here / "mine.py").write_text(REWARD.format(scale=1))
    monkeypatch.setattr("nablaflow.runs.own_code.write_whole", full)
    refused = cli("train", recipe, f"reward={here}/mine.py:score")
    assert refused.exit_code == 2
    assert "run again with --resume" in refused.stderr
