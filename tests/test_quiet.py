"""Notes of diffusers and transformers on this package's own calls reach nobody."""

import contextlib
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

import nablaflow as nf
from nablaflow.models import load_pipeline
from nablaflow.models.network_files import load_own
from nablaflow.quiet import LIBRARIES, quiet_libraries

pytest_plugins = ["tests.support.tiny_run"]


class Heard(logging.Handler):
    """Keeps what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Warnings of both libraries, at the level that they have without a word of the user."""
    handler, before = Heard(), [each.get_verbosity() for each in LIBRARIES]
    for each in LIBRARIES:
        each.set_verbosity_warning()
        each.enable_progress_bar()
        each.add_handler(handler)
    yield handler.lines
    for each, level in zip(LIBRARIES, before, strict=True):
        each.remove_handler(handler)
        each.set_verbosity(level)


def test_a_run_says_nothing_in_their_names(heard: list[str], tiny_model: Path, tmp_path: Path):
    run = nf.align(
        model=StableDiffusionPipeline.from_pretrained(tiny_model),
        reward="brightness",
        prompts=["a circle"],
        method=nf.ResidualNablaDB(beta=1.0),
        updates=1,
        sampler={"steps": 3},
        training={"prompts_per_update": 1, "images_per_prompt": 2},
        evaluation={"n": 2},
        guard=None,
        output_dir=tmp_path / "run",
    )
    run.pipeline()
    nf.sample(run, ["a circle"])
    assert heard == []


def test_the_users_own_level_and_bars_are_as_before(heard: list[str]) -> None:
    with contextlib.suppress(KeyError), quiet_libraries():
        assert not any(each.is_progress_bar_enabled() for each in LIBRARIES)
        raise KeyError
    assert diffusers_logging.get_verbosity() == logging.WARNING
    assert transformers_logging.get_verbosity() == logging.WARNING
    assert all(each.is_progress_bar_enabled() for each in LIBRARIES)


def test_models_are_loaded_one_at_a_time(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Two that load at once leave the libraries' classes changed, and nothing loads afterwards."""
    both, met = threading.Barrier(2), list[bool]()

    def in_the_middle(*given: Any, **named: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
            met.append(True)
        return load_own(*given, **named)

    monkeypatch.setattr("nablaflow.models.load.load_own", in_the_middle)
    threads = [threading.Thread(target=load_pipeline, args=(tiny_model,)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert met == []
    load_pipeline(tiny_model)


@pytest.mark.parametrize("model", nf.nano.MODELS)
def test_loading_a_model_warns_of_nothing(model: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load_pipeline(str(nf.nano.path(model)))
    assert [str(warning.message) for warning in told] == []


def test_importing_the_models_says_nothing() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import nablaflow as nf; nf.exact.evaluate; nf.ResidualNablaDB"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == found.stdout == ""
