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

import nablaflow as nf
from nablaflow.nano.quality import color_fits, generate
from nablaflow.nano.reader import read

SAMPLING: dict[str, Any] = {"steps": 20, "guidance": 2.0, "seed": 99, "max_sequence_length": 16}


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


def test_its_autoencoder_is_the_first_models(folder: Path):
    file = Path("vae", "diffusion_pytorch_model.safetensors")
    assert (folder / file).read_bytes() == (nf.nano.path() / file).read_bytes()


def test_its_card_says_where_it_comes_from_and_what_was_measured(folder: Path):
    card = (folder / "README.md").read_text()
    assert "python -m nablaflow.nano.pretrain --model flow" in card
    figures = json.loads((folder / "quality.json").read_text())
    first = json.loads((nf.nano.path() / "quality.json").read_text())
    assert figures.keys() == first.keys()


def test_it_shows_the_named_colour_and_leaves_the_rest_free(pipeline: Any):
    """What the card says of both, on images that are not its own."""
    wanted = ("red", "green", "blue", "purple") * 6
    prompts = [f"a {color} shape" for color in wanted]
    scenes = read(generate(pipeline, prompts, **SAMPLING)).scenes
    right = [bool(color_fits(hue, color)) for hue, color in zip(scenes.hue, wanted, strict=True)]
    assert sum(right) >= 20
    assert scenes.x.std() > 0.15, "a uniform place has 0.29"
    assert scenes.shade.std() > 0.15, "a uniform shade has 0.24"


def test_the_prompt_matters_and_so_does_the_default_call(pipeline: Any):
    def latents(prompt: str, **call: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call |= {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
        return pipeline(prompt, generator=generator, **call).images

    few = {"max_sequence_length": 16}
    found = [latents(prompt, **few) for prompt in ("", "a red star", "a small blue circle")]
    assert all(part.isfinite().all() for part in found)
    assert min(float((found[i] - found[i - 1]).abs().max()) for i in range(3)) > 0.1
    many = latents("a red star")
    assert float((many - found[1]).abs().mean()) < 0.2, "trained with 1 to 256 of a silent T5"
