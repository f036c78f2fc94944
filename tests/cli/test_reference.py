"""The command line's reference is what the commands say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nablaflow.cli import app
from nablaflow.commands.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(typer.main.get_command(app)), "run make reference"


@pytest.mark.parametrize("command", ["train", "compare", "reward fit"])
def test_every_option_that_help_shows_is_on_the_page(command):
    """Against the help text itself, in a terminal wide enough not to cut it."""
    shown = subprocess.run(
        [sys.executable, "-m", "nablaflow.cli", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"## nablaflow {command}\n")[1].split("\n## ")[0]
    options = set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help"}
    assert len(options) > 2
    assert [option for option in options if f"`{option}`" not in section] == []


def test_every_argument_and_option_says_what_it_is():
    rows = re.findall(
        r"^\| (`.+`) \| (.*?) \| .*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) > 100
    assert [name for name, meaning in rows if not meaning.strip()] == []
