"""``--overwrite`` costs nobody a file, and the run that it replaces only once another has begun."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from nablaflow.config.overrides import load_config
from nablaflow.errors import UserError
from nablaflow.runs.folder import open_run
from nablaflow.storage.lock import held
from tests.faults.conftest import SHORT, one_line
from tests.support.run_folders import contents

pytestmark = pytest.mark.usefixtures("lean_runs")

Cli = Callable[..., Result]


def test_a_folder_with_a_config_yaml_of_somebody_else(cli: Cli, recipe: Path, tmp_path: Path):
    site = tmp_path / "site"
    (site / "thesis").mkdir(parents=True)
    (site / "config.yaml").write_text("title: my site")
    (site / "thesis" / "data.txt").write_text("years of work")
    before = contents(site)
    one_line(cli("train", recipe, *SHORT, f"output_dir={site}", "--overwrite"), str(site))
    assert contents(site) == before


def test_the_working_directory_and_what_is_above_it(
    cli: Cli, recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    before = contents(run)
    monkeypatch.chdir(run)
    for place in (".", str(run), "samples/.."):
        one_line(cli("train", recipe, *SHORT, f"output_dir={place}", "--overwrite"), "--overwrite")
    monkeypatch.chdir(run / "samples")
    one_line(cli("train", recipe, *SHORT, "output_dir=..", "--overwrite"), "working directory")
    assert contents(run) == before


@pytest.mark.parametrize("place", ["/", "~"])
def test_a_root_and_the_home_folder(
    cli: Cli, recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setenv("HOME", str(run))
    before = contents(run)
    where = str(run) if place == "~" else place
    one_line(cli("train", recipe, *SHORT, f"output_dir={where}", "--overwrite"))
    assert contents(run) == before


INPUTS = {
    "prompts": ("prompts.txt", "a circle", "prompts={}"),
    "evaluation": ("prompts.txt", "a circle", "evaluation.prompts={}"),
    "reward": (
        "mine.py",
        "def f(images, prompts): return -images[:, 2].mean((1, 2))",
        "reward={}:f",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_what_the_run_reads(cli: Cli, recipe: Path, run: Path, case: str):
    name, content, setting = INPUTS[case]
    (run / name).write_text(content)
    before = contents(run)
    override = setting.format(run / name)
    one_line(cli("train", recipe, *SHORT, override, "--overwrite"), name, "output_dir")
    assert contents(run) == before


def test_the_model(cli: Cli, recipe: Path, run: Path, tiny_model: Path):
    shutil.copytree(tiny_model, run / "stock")
    before = contents(run)
    one_line(cli("train", recipe, *SHORT, f"model={run}/stock", "--overwrite"), "stock")
    assert contents(run) == before


def test_a_folder_that_is_refused_gets_no_marker(recipe: Path, here: Path):
    """Else the next ``--overwrite`` would take it for a run's."""
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("years of work")
    config = load_config(recipe, [], {})
    for overwrite in (False, True):
        with pytest.raises(UserError), open_run(config, overwrite=overwrite):
            pass
    assert contents(here) == {"run/thesis.txt": b"years of work"}


def test_a_beginning_that_fails_gives_the_run_back(
    recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk may be full when the new run's first file is written, after the old one waits."""

    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(run)
    monkeypatch.setattr("nablaflow.runs.folder.write_whole", full)
    config = load_config(recipe, [f"output_dir={run}"], {})
    with pytest.raises(UserError, match="No space left"), open_run(config, overwrite=True):
        raise AssertionError("it began")
    assert contents(run) == before


def test_foreign_files_in_a_run_that_is_replaced_stay(cli: Cli, recipe: Path, run: Path):
    foreign = {"notes.txt": b"1", "samples/mine.png": b"2", "checkpoints/thesis/a.txt": b"3"}
    for name, content in foreign.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content)
    result = cli("train", recipe, *SHORT, "seed=1", "training.updates=1", "--overwrite")
    assert result.exit_code == 0, result.stderr
    found = contents(run)
    assert {name: found[name] for name in foreign} == foreign
    assert "seed: 1" in (run / "config.yaml").read_text()
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-000001", "thesis"]
    assert not (run / ".replaced").exists()


@pytest.mark.parametrize("name", ["reference/thesis.txt", "step-000001/progress.json", "reference"])
def test_a_gallery_replaces_nothing_but_images(cli: Cli, run: Path, here: Path, name: str):
    place = here / "out" / name
    place.parent.mkdir(parents=True)
    place.write_text("years of work")
    told = cli("gallery", run, "--n", "1", "--out", "out", "--overwrite", "--trust-run")
    assert name in one_line(told, "--out")
    assert place.read_text() == "years of work"


def test_a_run_comes_back_where_the_new_one_fails_at_once(
    cli: Cli, recipe: Path, run: Path, tmp_path: Path
):
    before = contents(run)
    (tmp_path / "mine.py").write_text(
        "CALLS = []\n"
        "def f(images, prompts):\n"
        "    CALLS.append(1)\n"
        f"    if __import__('pathlib').Path({str(run)!r}, '.replaced').exists(): raise KeyError\n"
        "    return -images[:, 2].mean((1, 2))\n"
    )
    result = cli("train", recipe, *SHORT, f"reward={tmp_path}/mine.py:f", "--overwrite")
    assert isinstance(result.exception, KeyError)
    assert "back in its place" in result.stderr
    after = contents(run)
    assert {n: c for n, c in after.items() if n != ".nablaflow-run"} == {
        n: c for n, c in before.items() if n != ".nablaflow-run"
    }


def test_a_second_writer_is_refused_and_a_reader_is_not(cli: Cli, recipe: Path, run: Path):
    before = contents(run)
    with held(run):
        for flag in ("--overwrite", "--resume"):
            one_line(cli("train", recipe, *SHORT, flag), "in use by process")
        assert cli("sample", run, "--n", "1", "--out", "seen").exit_code == 0
    assert {n: c for n, c in contents(run).items() if n != ".nablaflow-run"} == {
        n: c for n, c in before.items() if n != ".nablaflow-run"
    }
