"""Faults are injected into runs of a model of a few thousand random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.cli.conftest import cli, here, recipe, settings, tiny_model

__all__ = ["cli", "here", "recipe", "settings", "tiny_model"]
Cli = Callable[..., Result]
SHORT = (
    "flow=null",
    "method.reverse_weight=0",
    "sampler.steps=2",
    "prompts=[a circle]",
    "training.prompts_per_update=1",
    "training.checkpoint_every=1",
    "evaluation.n=2",
)
"""Laid over the recipe: a run of a second."""


@pytest.fixture
def run(cli: Cli, recipe: Path, here: Path) -> Path:
    """A run of two updates, with two checkpoints, in the working directory."""
    result = cli("train", recipe, *SHORT)
    assert result.exit_code == 0, result.stderr
    return here / "run"


def one_line(result: Result, *words: str) -> None:
    """A mistake's whole contract; ``words`` are what the line must hold."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("nablaflow: "), result.stderr
    for word in words:
        assert word in last, last


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its path in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
