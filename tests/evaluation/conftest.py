"""A cache of a test's own for samples of the reference, and the parts of a run that makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nablaflow.runs.setup import Parts


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NABLAFLOW_CACHE", str(folder))
    return folder


@pytest.fixture
def parts(make_parts: Callable[..., Parts]) -> Parts:
    return make_parts("optimizer.learning_rate=0.1")
