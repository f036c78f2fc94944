"""The commands that the page runs, also where names mean something to a shell, YAML or a reward."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from nablaflow.config.overrides import parse_override
from nablaflow.nano.preferences import FITTED
from nablaflow.rewards import load
from nablaflow.studio import commands
from nablaflow.studio.commands import Base

HOSTILE = ["plain", "a - b", "3*x", "a: b", "x #1", "-n", "$(touch pwned)", 'say "hi"', "{a}", "é"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_reward_in_a_folder_of_any_name_is_that_reward(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(FITTED, folder / commands.REWARD)
    run = tmp_path / f"run {name}"
    arguments = commands.align(Base(), folder, 0.5, 10, run)
    settings = dict(map(parse_override, arguments[1:]))
    assert load(settings[("reward",)]).name == str(folder / commands.REWARD)
    assert settings[("output_dir",)] == str(run)
    assert settings[("method", "beta")] == 0.5
    assert shlex.split(commands.typed(arguments)) == ["nablaflow", *arguments]


def test_a_prompt_is_never_an_option():
    arguments = commands.sample("nano", ["--debug", "a star"], 4, 1, Path("/out"))
    assert arguments[:4] == ["sample", "nano", "--prompt=--debug", "--prompt=a star"]
