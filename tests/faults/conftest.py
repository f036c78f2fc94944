"""Faults are injected into runs of a model of a few thousand random weights."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from matplotlib.figure import Figure
from PIL import Image
from typer.main import get_command

from nablaflow.models import LivePipeline, load
from tests.cli.conftest import cli, here, recipe, settings
from tests.support.cli_runs import RELATIVE, train

__all__ = ["cli", "here", "recipe", "settings"]
Cli = Callable[..., Result]
SHORT = (
    "flow=null",
    "method.step=exact",
    "method.reverse_weight=0",
    "sampler.steps=2",
    "prompts=[a circle]",
    "training.prompts_per_update=1",
    "training.checkpoint_every=1",
    "evaluation.n=2",
    "adapter.targets=[to_q, to_v]",
)
"""Laid over the recipe: a run of a second."""


@pytest.fixture(scope="module", autouse=True)
def made_once(tiny_model: Path) -> Iterator[None]:
    """What a short run spends most of its time on is made once, before any process is forked.

    The model's files are read once, the command line is put together once, and a plot is an empty
    picture: no fault here is in them, and other rooms' tests have theirs.
    """
    index = json.loads((tiny_model / "model_index.json").read_text())
    read = load._load
    whole = LivePipeline(read(str(tiny_model), *[torch.float32] * 2, index, use_safetensors=True))

    def copied(source: str, dtype: torch.dtype, *rest: Any, **options: Any) -> Any:
        here = source == str(tiny_model)
        return whole.copy(dtype) if here else read(source, dtype, *rest, **options)

    def drawn(figure: Figure, file: Any, **options: Any) -> None:
        Image.new("RGBA", (1, 1)).save(file, format="PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_load", copied)
        patch.setattr(Figure, "savefig", drawn)
        patch.setattr("typer.testing._get_command", functools.cache(get_command))
        yield


@pytest.fixture(scope="session")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates, with two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    train(settings, folder, RELATIVE, *SHORT)
    return folder / "run"


@pytest.fixture
def run(trained: Path, here: Path) -> Path:
    """The run in the working directory, for each test its own."""
    return Path(shutil.copytree(trained, here / "run"))


def one_line(result: Result, *words: str) -> str:
    """The line of a mistake, its whole contract checked; ``words`` are what it must hold."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("nablaflow: "), result.stderr
    for word in words:
        assert word in last, last
    return last
