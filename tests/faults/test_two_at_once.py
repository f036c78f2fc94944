"""Two commands in one folder at the same moment: each is whole, or refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import SHORT
from tests.faults.processes import TIMES, at_once, differences
from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

EXACT = "exact --problem ring --seeds 1 --updates 8 --batch 8 --n 100 --steps 4 --workers 1"
READERS = {
    "eval": "eval run --n 4 --out out",
    "sample": "sample run --n 4 --out out",
    "export": "export run --format kohya --out out",
    "gallery": "gallery run --n 2 --out out",
    "compare": "compare run --n 4 --out out",
    "exact": f"{EXACT} --out out",
}
WRITERS = {
    "resume": ("training.updates=4", "--resume"),
    "overwrite": ("seed=1", "training.updates=1", "--overwrite"),
}
TOO = re.compile(r"seconds|sha256")


@pytest.fixture
def world(run: Path, here: Path, tmp_path: Path) -> Path:
    """The run with its user's files, in the working directory."""
    (here / "notes.txt").write_text("years of work")
    (run / "thesis.txt").write_text("years of work")
    return here


def outcome(folder: Path) -> dict[str, Any]:
    """What a command made, without the times in it."""
    return {
        name: untimed(json.loads(content)) if name.endswith(".json") else content
        for name, content in contents(folder).items()
        if Path(name).suffix in (".json", ".png", ".safetensors")
    }


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES and not TOO.search(k)}
    return [untimed(part) for part in value] if isinstance(value, list) else value


def check(ended: list[tuple[int, str]], world: Path) -> None:
    """No traceback, one line where a command was refused, and nothing of the user's touched."""
    for status, told in ended:
        assert "Traceback" not in told, told
        assert status in (0, 2), told
        if status == 2:
            assert told.strip().splitlines()[-1].startswith("nablaflow: "), told
    for name in ("notes.txt", "run/thesis.txt"):
        assert (world / name).read_text() == "years of work"


def alone(command: str, world: Path, tmp_path: Path, name: str) -> dict[str, Any]:
    """The outcome of a reader with nobody beside it."""
    place = tmp_path / name
    shutil.copytree(world, place, ignore=shutil.ignore_patterns("out"))
    before = os.getcwd()
    os.chdir(place)
    (ended,) = at_once([command.split()], tmp_path)
    os.chdir(before)
    assert ended[0] == 0, ended[1]
    return outcome(place / "out")


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reader", ["eval", "sample", "export", "gallery", "compare"])
def test_a_reader_beside_a_writer(
    world: Path, recipe: Path, tmp_path: Path, reader: str, writer: str
):
    """What it makes is of one checkpoint, the old run's or the new one's."""
    command = READERS[reader]
    old = alone(command, world, tmp_path, "old")
    write = ["train", str(recipe), *SHORT, *WRITERS[writer]]
    ended = at_once([command.split(), write], tmp_path)
    check(ended, world)
    assert ended[1][0] == 0, ended[1][1]
    if ended[0][0] == 0:
        found = outcome(world / "out")
        assert found.keys() >= {name for name in old if not name.startswith("step-")}
        if found != old and writer == "overwrite":
            assert found == alone(command, world, tmp_path, "new")


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["compare compare", "exact exact"])
def test_two_that_share_a_folder_of_results(world: Path, tmp_path: Path, pair: str):
    first, second = (READERS[name] for name in pair.split())
    wanted = alone(first, world, tmp_path, "alone")
    ended = at_once([first.split(), second.split()], tmp_path)
    check(ended, world)
    assert 0 in {status for status, _ in ended}
    assert outcome(world / "out") == wanted


@pytest.mark.slow
def test_two_readers(world: Path, tmp_path: Path):
    wanted = alone(READERS["gallery"], world, tmp_path, "alone")
    ended = at_once([READERS["gallery"].split(), ["eval", "run", "--n", "4"]], tmp_path)
    check(ended, world)
    assert [status for status, _ in ended] == [0, 0], ended
    assert outcome(world / "out") == wanted


def test_two_runs_in_one_folder(world: Path, recipe: Path, tmp_path: Path):
    """One of them trains, as if it were alone."""
    command = ["train", str(recipe), *SHORT, "output_dir=new"]
    ended = at_once([command, command], tmp_path)
    check(ended, world)
    assert sorted(status for status, _ in ended) == [0, 2], ended
    assert differences(world / "new", world / "run") == []
