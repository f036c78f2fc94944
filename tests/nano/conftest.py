"""Scenes to look at, and the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nablaflow import nano
from nablaflow.nano.scenes import Scenes, render, sample_scenes


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    return sample_scenes(400, torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def images(scenes: Scenes) -> Tensor:
    return render(scenes)


@pytest.fixture(scope="session")
def nano_model() -> Path:
    """The folder of the embedded model."""
    folder = nano.path()
    if not (folder / "model_index.json").is_file():
        pytest.fail(f"{folder} holds no model; rebuild it with python -m nablaflow.nano.pretrain")
    return folder
