"""Runs made by the command line, for tests of the commands that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from nablaflow.cli import app

RELATIVE = "output_dir=run"
"""Has a run's configuration name the folder as one in the working directory: it may be copied."""


READERS = {
    "sample": ("sample", "{run}", "--n", 1, "--out", "images"),
    "eval": ("eval", "{run}", "--n", 4, "--checkpoints", "last"),
    "export": ("export", "{run}", "--format", "diffusers", "--out", "out"),
    "gallery": ("gallery", "{run}", "--n", 1, "--strength", 1, "--out", "g"),
    "compare": ("compare", "{run}", "--n", 8, "--out", "c"),
}
"""Commands that read a run, and its reference with it."""


def train(settings: dict[str, Any], root: Path, *overrides: str) -> Result:
    """What ``nablaflow train --json`` says; its run is ``root / "run"``, beside its cache."""
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**settings, "output_dir": str(root / "run")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("NABLAFLOW_CACHE", str(root / "cache"))
        result = CliRunner().invoke(app, ["train", str(recipe), *overrides, "--json"])
    assert result.exit_code == 0, result.stderr
    return result


def train_far(settings: dict[str, Any], root: Path, *overrides: str) -> Path:
    """A run in ``root``, trained far from its reference: two updates, a checkpoint after each."""
    far = ("optimizer.learning_rate=0.05", "training.checkpoint_every=1")
    train(settings, root, *far, *overrides)
    return root / "run"
