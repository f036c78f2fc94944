"""Runs made by the command line, for tests of the commands that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nablaflow.cli import app


def train_far(settings: dict[str, Any], root: Path) -> Path:
    """A run in ``root``, trained far from its reference: two updates, a checkpoint after each."""
    training = {**settings["training"], "checkpoint_every": 1}
    own = {"optimizer": {"learning_rate": 0.05}, "output_dir": str(root / "run")}
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**settings, **own, "training": training}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NABLAFLOW_CACHE", str(root / "cache"))
        result = CliRunner().invoke(app, ["train", str(recipe)])
    assert result.exit_code == 0, result.stderr
    return root / "run"
