"""A comparison small enough for a test: few images, and a tilt that is believed all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nablaflow.comparison import ComparisonStudy, race
from nablaflow.comparison.outcome import Outcome
from nablaflow.comparison.study import ComparisonCell
from nablaflow.config.recipe import Config
from nablaflow.metrics import tilt
from nablaflow.progress import Progress

Race = Callable[..., list[Outcome]]


@pytest.fixture
def small_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Race:
    """``small_race("refl", "best-of-n")``: an update each, eight images, all of four steps."""
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tilt, "MIN_EFFECTIVE_SAMPLE_SIZE", 1)

    usual = ComparisonStudy.config

    def config(self: ComparisonStudy, cell: ComparisonCell) -> Config:
        found = usual(self, cell)
        fewer = found.training.model_copy(update={"images_per_prompt": 2})
        short = found.sampler.model_copy(update={"steps": 4})
        return found.model_copy(update={"training": fewer, "sampler": short})

    monkeypatch.setattr(ComparisonStudy, "config", config)

    def run(*methods: str, **settings: Any) -> list[Outcome]:
        small = {"seeds": 1, "minutes": 0.001, "beta": 1.0, "n": 8, "measurements": 1, "bank": 16}
        study = ComparisonStudy.named(methods, [], tmp_path / "out", **{**small, **settings})
        with Progress() as progress:
            return race(study, progress)

    return run
