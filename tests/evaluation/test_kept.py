"""What is kept of a reference is known by what it says of itself, and not by its file's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nablaflow.evaluation.kept import find_kept, keep
from nablaflow.storage.cached import cache_folder

pytestmark = pytest.mark.usefixtures("cache")


def _file(key: str) -> Path:
    return cache_folder() / f"bank-{key}.safetensors"


def test_another_model_s_under_this_name_is_not_taken():
    for number, key in enumerate(("first", "second")):
        keep("bank", key, {"states": torch.full((2,), float(number))})
    _file("first").write_bytes(_file("second").read_bytes())  # as a copied cache may have it
    assert find_kept("bank", "first") is None
    found = find_kept("bank", "second")
    assert found is not None
    assert found["states"].tolist() == [1.0, 1.0]
