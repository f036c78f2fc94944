"""The command line in this process, in an empty folder, on a model of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from nablaflow.cli import app

Cli = Callable[..., Result]


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
