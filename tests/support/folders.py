"""Folders of tiny stock pipelines, each written once in a process for all tests that read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.pipelines import stable_diffusion, stable_diffusion_xl, unconditional

BUILT: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,  # predicts epsilon
    "sd2": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
    "ddpm": unconditional,
    **FLOW_FAMILIES,
}


class Folders(dict[str, Path]):
    """By the family's name; each is written when it is first asked for, and only read."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, family: str) -> Path:
        place = self._root / family
        with torch.random.fork_rng():  # a test's own draws are the same, whoever is the first
            BUILT[family]().save_pretrained(place)
        self[family] = place
        return place


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("pipelines"))
