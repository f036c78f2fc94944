"""A long run: what it holds, in memory and on the disk, does not grow with its updates."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.runs.accelerator import fresh_accelerator
from nablaflow.runs.setup import prepare
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training.stepper import Record
from tests.faults.conftest import SHORT

EVERY = 50


@pytest.fixture
def make(settings: dict[str, Any], here: Path) -> Callable[..., Config]:
    often = ("training.checkpoint_every=1", "training.keep_checkpoints=2")
    return lambda *more: parse_config(apply_overrides(settings, [*SHORT, *often, *more]))


def held(run: Path) -> tuple[int, int, int]:
    """Bytes of memory, open files, and files in the run's folder."""
    process = psutil.Process()
    files = sum(path.is_file() for path in run.rglob("*"))
    return process.memory_info().rss, len(os.listdir("/proc/self/fd")), files


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_four_hundred_updates(make: Callable[..., Config]):
    config = make("training.updates=400")
    run, seen = config.output_dir, []

    def on_update(record: Record) -> bool:
        if record["update"] % EVERY == 0:
            seen.append(held(run))
        return False

    with fresh_accelerator():
        run.mkdir()
        trainer = prepare(config, run).trainer
        trainer.train(run, on_update, lambda: None)
    assert len(seen) == 400 // EVERY
    (early, opened, files), (late, still_open, then) = seen[1], seen[-1]
    assert late - early < 16 * 2**20
    assert (still_open, then) == (opened, files)
    assert [path.name for path in list_checkpoints(run)] == ["step-000399", "step-000400"]
