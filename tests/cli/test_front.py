"""What the command line itself offers: its version, completion, and two ways to start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import nablaflow
from nablaflow.commands.shared import listed

Cli = Callable[..., Result]


def test_the_version_is_the_packages(cli: Cli):
    result = cli("--version")
    assert (result.exit_code, result.stdout) == (0, f"nablaflow {nablaflow.__version__}\n")


def test_where_the_libraries_cannot_be_imported_is_a_line(tmp_path: Path):
    def said(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        return line

    command = (sys.executable, "-m", "nablaflow", "--version")
    assert "unset PYTHONOPTIMIZE" in said(command[0], "-OO", *command[1:])
    # The folder goes only when Python, which would not begin without one, has begun.
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); "
        "from nablaflow.__main__ import main; main()"
    )
    assert "no longer there" in said(sys.executable, "-c", code)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "nablaflow", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"nablaflow {nablaflow.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete(shell: str, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    result = cli("--show-completion", shell)
    assert result.exit_code == 0
    assert "_NABLAFLOW_COMPLETE" in result.stdout


def test_a_list_is_repeated_or_has_commas():
    assert listed("--of", ["a,b", " c ", "d, e,"]) == ["a", "b", "c", "d", "e"]
    assert listed("--of", None) == []


@pytest.mark.parametrize("option", ["--method", "--methods"])
def test_a_list_goes_by_either_name(cli: Cli, option: str):
    """The wrong name among them is found, so the others were read as names of their own."""
    for command in ("exact", "compare"):
        result = cli(command, option, "ddpo,nonesuch")
        assert result.exit_code == 2
        assert "'nonesuch'" in result.stderr
        assert "ddpo,nonesuch" not in result.stderr
        result = cli(command, option, "ddpo", option, "nonesuch")
        assert "'nonesuch'" in result.stderr


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_a_folder_that_is_no_run_is_named_as_it_was_given(cli: Cli, here: Path, command: str):
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("")
    if command == "sample":
        (here / "empty" / ".nablaflow-run").write_text("")
    given = ["empty"] if command == "sample" else ["empty", "nowhere", "notes.txt"]
    for name in given:
        result = cli(command, name)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"nablaflow: {name}: ")
        assert "give output_dir of a run" in result.stderr
        assert "recipe" not in result.stderr


def test_a_run_folder_in_place_of_a_recipe_is_told_which_file_it_has(cli: Cli, here: Path):
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("seed: 0\n")
    result = cli("train", "run")
    assert result.exit_code == 2
    assert "run/config.yaml" in result.stderr
