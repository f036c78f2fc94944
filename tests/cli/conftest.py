"""The command line in this process, in an empty folder, on a model of random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from nablaflow.cli import app
from tests.support.cli_runs import RELATIVE, train

Cli = Callable[..., Result]
Ready = Callable[..., None]


@pytest.fixture(scope="session")
def settings(tiny_model: Path) -> dict[str, Any]:
    """A recipe that runs in a second."""
    return {
        "model": str(tiny_model),
        "reward": "warmth",
        "prompts": ["a circle", "a square"],
        "output_dir": "run",
        "method": {
            "name": "residual-nabla-db",
            "beta": 5.0,
            "step": "published",
            "reverse_weight": 1.0,
            "gamma": "measured",
        },
        "sampler": {"steps": 4},
        "adapter": {"rank": 2},
        "flow": {"channels": [8]},
        "training": {
            "updates": 2,
            "prompts_per_update": 2,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
            "gamma_trajectories": 8,
            "trackers": [],
            "device": "cpu",
        },
        "guard": None,
        "evaluation": {"n": 4, "batch": 4},
    }


@pytest.fixture
def recipe(settings: dict[str, Any], tmp_path: Path) -> Path:
    """The settings as a file; it lies beside the working directory, not in it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cli(here: Path) -> Cli:
    """``cli("train", recipe, "seed=1")``."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained_with(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``trained_with("seed=1")``: a folder with ``run`` and ``cache``, made once for all tests."""

    @cache
    def made(*overrides: str) -> Path:
        root = tmp_path_factory.mktemp("trained")
        train(settings, root, RELATIVE, *overrides)
        return root

    return made


@pytest.fixture
def ready(trained_with: Callable[..., Path], here: Path) -> Ready:
    """``ready("run", "seed=1")``: such a run in the working directory, for each test its own."""

    def copy(name: str, *overrides: str) -> None:
        root = trained_with(*overrides)
        shutil.copytree(root / "run", here / name)
        if (root / "cache").is_dir():
            shutil.copytree(root / "cache", os.environ["NABLAFLOW_CACHE"], dirs_exist_ok=True)

    return copy
