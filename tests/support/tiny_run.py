"""A model of a few thousand random weights, and runs of it that take a second."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.nano.pretrain.text import TEXT_LENGTH, build_tokenizer
from nablaflow.runs import align
from nablaflow.runs.run import Run
from nablaflow.runs.setup import Parts, prepare

WIDTH = 16


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
    denoiser = UNet2DConditionModel(  # attention in its middle alone
        sample_size=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(WIDTH,),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Every part of the loop is on; each update trains 8 transitions of 4 trajectories."""
    return {
        "model": str(tiny_model),
        "reward": "warmth",
        "prompts": ["a circle", "a square", "a star"],
        "output_dir": str(tmp_path / "run"),
        "method": {
            "name": "residual-nabla-db",
            "beta": 100.0,
            "step": "published",
            "reverse_weight": 1.0,
            "gamma": "measured",
        },
        "sampler": {"steps": 4},
        "adapter": {"rank": 2, "ema_decay": 0.9, "targets": ["to_q", "to_k", "to_v", "to_out.0"]},
        "flow": {"channels": [8], "ema_decay": 0.5},
        "optimizer": {"learning_rate": 1e-2},
        "training": {
            "updates": 4,
            "prompts_per_update": 2,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
            "gamma_trajectories": 8,
            "trackers": [],
            "device": "cpu",
        },
        "guard": None,
        "evaluation": {"n": 6, "batch": 6},
    }


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Accelerate keeps the first precision of a process; here it may change."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config(settings: dict[str, Any]) -> MakeConfig:
    """``make_config("training.updates=2", …)``: the settings with overrides."""
    return lambda *overrides: parse_config(apply_overrides(settings, overrides))


@pytest.fixture
def make_parts(make_config: MakeConfig) -> Callable[..., Parts]:
    """The parts of a fresh run with overrides; nothing is written."""

    def make(*overrides: str) -> Parts:
        config = make_config(*overrides)
        return prepare(config, config.output_dir)

    return make


def unmeasured(parts: Parts, folder: Path, progress: Any) -> Run:
    """In place of `nablaflow.runs.finish.finish`, for tests of what comes before it."""
    return Run(folder, parts.config, {}, folder)


@pytest.fixture
def train_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are their updates: the rehearsal before and what comes after have tests of their own."""
    monkeypatch.setattr(align, "rehearse", lambda *_: None)
    monkeypatch.setattr(align, "finish", unmeasured)


@pytest.fixture(scope="module")
def lean_runs() -> Iterator[None]:
    """Runs without what takes half of their time and has tests of its own.

    The report's curves are empty pictures (tests/report draws them), and what is saved is not
    tried in a stock pipeline (tests/models and tests/cli/test_export.py do so).
    """
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(buffer, format="PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nablaflow.report.html.png", lambda figure: buffer.getvalue())
        patch.setattr("nablaflow.models.export.check_same_image", lambda *_, **__: None)
        yield
