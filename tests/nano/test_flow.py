"""The embedded flow-matching model: a stock pipeline on the first model's autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors import safe_open

import nablaflow as nf
from nablaflow.errors import UserError
from nablaflow.nano.quality import named_accuracy

SAMPLING = {"steps": 20, "guidance": 2.0, "seed": 5, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def folder() -> Path:
    return nf.nano.path("flow")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    found = DiffusionPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def test_it_is_a_stable_diffusion_3_in_miniature(pipeline: Any):
    assert type(pipeline) is StableDiffusion3Pipeline
    assert isinstance(pipeline.transformer, SD3Transformer2DModel)
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    assert {part.dtype for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae)} == {
        torch.float32
    }


def test_it_ships_small_in_half_precision_and_without_pickles(folder: Path):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert dtypes <= {"F16", "I64"}, path


def test_its_autoencoder_is_the_first_models(folder: Path):
    file = Path("vae", "diffusion_pytorch_model.safetensors")
    assert (folder / file).read_bytes() == (nf.nano.path() / file).read_bytes()


def test_its_card_says_where_it_comes_from_and_what_was_measured(folder: Path):
    card = (folder / "README.md").read_text()
    assert "python -m nablaflow.nano.pretrain --model flow" in card
    figures = json.loads((folder / "quality.json").read_text())
    first = json.loads((nf.nano.path() / "quality.json").read_text())
    assert figures.keys() == first.keys()


def test_a_model_that_is_not_embedded_is_refused():
    with pytest.raises(UserError, match=r"no embedded model 'flwo'; did you mean flow\?"):
        nf.nano.path("flwo")
