"""Where commands read and write: what is told first, ``~``, folders that cannot be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nablaflow.places import at_home
from nablaflow.runs import doctor
from nablaflow.runs.trust import _words
from tests.cli.conftest import Cli
from tests.support.cli_runs import READERS, train

pytestmark = pytest.mark.usefixtures("lean_runs")


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    train(settings, root)
    return root / "run"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def said(result: Any) -> str:
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_run_that_is_not_there_is_told_before_what_is_in_the_way(cli: Cli, here: Path) -> None:
    (here / "samples").mkdir()
    (here / "samples" / "a.png").touch()
    assert "there is no folder WRONG" in said(cli("sample", "WRONG"))
    assert "WRONG: there is no such folder" in said(cli("export", "WRONG", "--out", "samples"))
    assert "holds images already" in said(cli("sample", "nano"))


def test_home_is_what_a_tilde_says(cli: Cli, recipe: Path, here: Path, home: Path) -> None:
    """As a shell leaves it after ``=`` and within quotes; no folder of that name is made."""
    assert cli("train", str(recipe), "output_dir=~/run").exit_code == 0
    assert cli("sample", "~/run", "--n", 1, "--out=~/images").exit_code == 0
    assert cli("export", "~/run", "--out=~/out").exit_code == 0
    assert sorted(path.name for path in home.iterdir()) == ["images", "out", "run"]
    assert not (here / "~").exists()


@pytest.mark.parametrize("setting", ["model", "prompts", "model_lora", "adapter.start"])
def test_the_home_of_nobody_is_one_line(cli: Cli, recipe: Path, here: Path, setting: str) -> None:
    result = cli("train", str(recipe), f"{setting}=~nobody-of-this-name/x")
    assert "~nobody-of-this-name/x" in said(result)


def test_a_users_own_folder_may_begin_with_a_tilde(home: Path) -> None:
    assert at_home("~/a") == home / "a"
    assert at_home("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")


@pytest.mark.parametrize("command", ["sample", "export", "gallery", "eval", "exact", "compare"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    cli: Cli, trained: Path, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def no_work(*given: Any, **named: Any) -> None:
        raise AssertionError("the work began")

    for name in ("sample.sample_images", "export.load_policy", "gallery._drawer"):
        monkeypatch.setattr(f"nablaflow.runs.{name}", no_work)
    monkeypatch.setattr("nablaflow.runs.evaluate.prepare", no_work)
    monkeypatch.setattr("nablaflow.exact.study.evaluate", no_work)
    monkeypatch.setattr("nablaflow.comparison.finished.prepare", no_work)
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "locked" not in str(path) and allowed(path, mode)
    )
    (here / "locked").mkdir()
    words = ["exact"] if command == "exact" else READERS[command][:2]
    text = said(cli(*(str(word).format(run=trained) for word in words), "--out", "locked/a/b"))
    assert text.startswith("nablaflow: --out: cannot write locked/a")
    assert "no permission in " in text
    (here / "file").touch()
    text = said(cli(*(str(word).format(run=trained) for word in words), "--out", "file/a"))
    assert "--out: " in text


@pytest.mark.parametrize("place", ["lora", "lora/x", "checkpoints/x", "ema/a/b"])
def test_nothing_is_written_where_a_run_writes_anew(
    cli: Cli, recipe: Path, trained: Path, here: Path, place: str
) -> None:
    """A run that was begun there would be gone when the outer one is resumed."""
    inside = trained / place
    for command in ("sample", "export", "gallery", "eval", "exact", "compare"):
        words = ["exact"] if command == "exact" else READERS[command][:2]
        text = said(cli(*(str(word).format(run=trained) for word in words), "--out", inside))
        assert text.startswith(f"nablaflow: --out: {inside} is in the run {trained}")
    text = said(cli("train", str(recipe), f"output_dir={inside}"))
    assert text.startswith(f"nablaflow: output_dir: {inside} is in the run {trained}")
    beside = ("--out", trained / "images", "--overwrite")
    assert cli("sample", trained, "--n", 1, *beside).exit_code == 0


def test_a_folder_may_be_a_link(cli: Cli, recipe: Path, here: Path) -> None:
    """As to a larger disk: begun, replaced, resumed, and images written to one."""
    for name in ("run", "images", "gallery"):
        (here / f"large-{name}").mkdir()
        (here / name).symlink_to(f"large-{name}")
    for more in ([], ["--overwrite"], ["--resume", "training.updates=3"]):
        result = cli("train", str(recipe), *more)
        assert result.exit_code == 0, result.stderr
    assert cli("sample", "run", "--n", 1, "--out", "images").exit_code == 0
    assert cli("gallery", "run", "--n", 1, "--strength", 1, "--out", "gallery").exit_code == 0
    assert (here / "large-run" / "checkpoints" / "step-000003").is_dir()
    assert (here / "large-images" / "sheet").is_dir()
    assert (here / "large-gallery" / "gallery.json").is_file()


def test_brackets_in_a_name_are_printed_as_they_are(cli: Cli, recipe: Path, here: Path) -> None:
    """Rich would take them for markup: the first is left out, the second ends with a traceback."""
    for place in ("a [x]", "b[/b]:star:c"):
        result = cli("train", str(recipe), f"output_dir={place}", "training.updates=1")
        assert result.exit_code == 0, result.stderr
        assert f"{place}/report.html" in result.stdout

    shutil.copytree(here / "a [x]" / "samples", here / "images")
    picture = next((here / "images").rglob("*.png"))
    picture.rename(here / "images" / "dog [1] :star:.png")
    result = cli("reward", "score", "images", "--reward", "warmth")
    assert "dog [1] :star:.png" in result.stdout


def test_a_run_that_moved_goes_on_where_it_is(cli: Cli, recipe: Path, here: Path) -> None:
    """Not in the folder that it was begun in, where nothing is, or another run by then."""
    assert cli("train", str(recipe), "output_dir=run").exit_code == 0
    (here / "run").rename(here / "moved")
    again = ("train", "moved/config.yaml", "--resume", "training.updates=3")
    assert "give output_dir=moved" in said(cli(*again))
    assert cli(*again, "output_dir=moved").exit_code == 0
    assert (here / "moved" / "checkpoints" / "step-000003").is_dir()
    assert not (here / "run").exists()
    assert cli("train", "moved/config.yaml", "--resume", "training.updates=4").exit_code == 0


def test_an_export_needs_a_name(cli: Cli, trained: Path, here: Path) -> None:
    for out in (".", "", "new/.."):
        text = said(cli("export", str(trained), "--out", out))
        assert "--out: " in text
    assert list(here.iterdir()) == []


def test_a_word_that_cannot_be_kept_is_told(
    cli: Cli, recipe: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    result = cli("train", str(recipe))
    assert result.exit_code == 0
    assert "other commands will ask for --trust-run" in result.stderr


def test_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that a container was given; and a relative folder is another one in each folder."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert _words() == Path.home() / ".local" / "state" / "nablaflow" / "words"
    monkeypatch.setattr(Path, "home", none)
    assert _words() is None


def test_doctor_says_how_times_are_found_where_it_has_some() -> None:
    found = {
        **dict.fromkeys(("python", "device", "memory_gib", "threads", "bf16"), 1),
        "packages": {},
        "fits": {"a": True, "b": False},
        "needs_gib": {"a": 1, "b": 2},
        "adapter": {"model": "nano", "text": "LoRA"},
    }

    def rows(times: dict[str, float | None]) -> list[str]:
        table = doctor.table({**found, "update_seconds": times})
        return [str(cell) for cell in table.columns[0].cells]

    assert "an update's time" not in rows({"a": None, "b": 3.0})
    assert "an update's time" in rows({"a": 3.0, "b": None})
