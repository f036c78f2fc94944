"""The command line in this process, in an empty folder, on a model of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from nablaflow.cli import app
from nablaflow.nano.pretrain.text import TEXT_LENGTH, build_tokenizer

WIDTH = 16
Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder: 16x16 pixels, 8x8 latents, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = _tiny_pipeline()
    folder = tmp_path_factory.mktemp("tiny") / "model"
    pipeline.save_pretrained(folder)
    return folder


def _tiny_pipeline() -> StableDiffusionPipeline:
    tokenizer = build_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    denoiser = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def settings(tiny_model: Path) -> dict[str, Any]:
    """A recipe that runs in a second."""
    return {
        "model": str(tiny_model),
        "reward": "warmth",
        "prompts": ["a circle", "a square"],
        "output_dir": "run",
        "method": {
            "name": "residual-nabla-db",
            "beta": 5.0,
            "reverse_weight": 1.0,
            "gamma": "measured",
        },
        "sampler": {"steps": 4},
        "adapter": {"rank": 2},
        "flow": {"channels": [8, 8]},
        "training": {
            "updates": 2,
            "prompts_per_update": 2,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
            "gamma_trajectories": 8,
            "trackers": [],
            "device": "cpu",
        },
        "guard": None,
        "evaluation": {"n": 4, "batch": 4},
    }


@pytest.fixture
def recipe(settings: dict[str, Any], tmp_path: Path) -> Path:
    """The settings as a file; it lies beside the working directory, not in it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cli(here: Path) -> Cli:
    """``cli("train", recipe, "seed=1")``."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
