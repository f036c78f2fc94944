"""The embedded model: a stock pipeline that shows what prompts name and leaves the rest free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from nablaflow.nano.quality import autoencoder_psnr, free_variation, named_accuracy

SAMPLING = {"steps": 20, "eta": 1.0, "guidance": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def pipeline(nano_model: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(nano_model)


def test_it_is_a_stable_diffusion_in_miniature(pipeline: Any):
    assert {part.dtype for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae)} == {
        torch.float32
    }
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.vae.config["latent_channels"] == 4
    config = pipeline.scheduler.config
    assert (config["beta_start"], config["beta_end"]) == (0.00085, 0.012)
    assert (config["beta_schedule"], config["prediction_type"]) == ("scaled_linear", "epsilon")


def test_its_card_says_where_it_comes_from_and_what_was_measured(nano_model: Path):
    card = (nano_model / "README.md").read_text()
    assert "python -m nablaflow.nano.pretrain" in card
    assert "commit" in card
    figures = json.loads((nano_model / "quality.json").read_text())
    assert figures["autoencoder_psnr_db"] >= 28.0
    assert figures["named_accuracy_guidance_2"] >= 0.95
    assert max(figures["free_variation_guidance_2"].values()) <= 0.15


def test_the_autoencoder_is_faithful(pipeline: Any):
    assert autoencoder_psnr(pipeline.vae, 60, seed=99) >= 28.0


def test_it_shows_the_named_shape_and_colour(pipeline: Any):
    assert named_accuracy(pipeline, 32, **SAMPLING) >= 0.85


def test_the_prompt_matters_and_the_empty_one_works(pipeline: Any):
    def latents(prompt: str) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
        return pipeline(prompt, generator=generator, **call).images

    found = [latents(prompt) for prompt in ("", "a red star", "a small circle on the left")]
    assert all(part.isfinite().all() for part in found)
    assert min(float((found[i] - found[i - 1]).abs().max()) for i in range(3)) > 0.1


@pytest.mark.slow
def test_the_figures_of_the_card_are_reached(pipeline: Any):
    assert named_accuracy(pipeline, 1000, **SAMPLING) >= 0.95
    variation = free_variation(pipeline, 1000, **SAMPLING)
    assert max(variation.values()) <= 0.15, variation
    assert autoencoder_psnr(pipeline.vae, 1000, seed=99) >= 28.0
