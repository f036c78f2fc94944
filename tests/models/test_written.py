"""A whole pipeline that was written here is read only as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.storage.written import CHECKSUMS

PART = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(folders: dict[str, Path], tmp_path: Path) -> Path:
    settings = AdapterSettings(kind="full")
    pipeline = load_pipeline(str(folders["sd"]))
    model = load_model(pipeline, SamplerSettings(), settings, torch.device("cpu"))
    return save_policy(model, str(folders["sd"]), tmp_path)


def test_it_loads_here_and_in_stock(saved: Path) -> None:
    assert (saved / CHECKSUMS).is_file()
    load_pipeline(str(saved))
    StableDiffusionPipeline.from_pretrained(saved)


def test_a_changed_weight_is_noticed(saved: Path) -> None:
    state = load_file(saved / PART)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, saved / PART)
    with pytest.raises(UserError, match=f"{PART} is not what was written there"):
        load_pipeline(str(saved))


@pytest.mark.parametrize("part", ["scheduler/scheduler_config.json", "tokenizer/*.json", "*.json"])
def test_a_changed_digit_or_word_is_noticed(saved: Path, part: str) -> None:
    path = next(found for found in sorted(saved.glob(part)) if found.name != CHECKSUMS)
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match=rf"{path.name} is not what was written there"):
        load_pipeline(str(saved))


@pytest.mark.parametrize("text", ["", "{}", '{"files": {}}', "[1]"])
def test_a_damaged_list_is_one_line(saved: Path, text: str) -> None:
    (saved / CHECKSUMS).write_text(text)
    with pytest.raises(UserError, match=r"checksums\.json is damaged .*remove it to load"):
        load_pipeline(str(saved))


@pytest.mark.parametrize("name", ["export.json", "checksums.json"])
def test_files_of_other_tools_say_nothing(folders: dict[str, Path], tmp_path: Path, name: str):
    shutil.copytree(folders["sd"], tmp_path / "model")
    (tmp_path / "model" / name).write_text('{"tool": "other"}')
    assert isinstance(load_pipeline(str(tmp_path / "model")), StableDiffusionPipeline)


def test_saved_by_somebody_else_it_is_not_checked(saved: Path, tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(saved))
    other = tmp_path / "other"
    pipeline.save_pretrained(other)
    state = {name: value + 1 for name, value in load_file(other / PART).items()}
    save_file(state, other / PART)
    changed: Any = load_pipeline(str(other))
    torch.testing.assert_close(changed.unet.state_dict(), state, rtol=0, atol=0)
