"""Pretraining: an interrupted run is the uninterrupted one, and latents are brought to scale."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from nablaflow.errors import UserError
from nablaflow.nano.pretrain import autoencoder as stage_one
from nablaflow.nano.pretrain import stage
from nablaflow.nano.pretrain.autoencoder import (
    autoencoder_loss,
    build_autoencoder,
    crop_at,
    standardize_latents,
    train_autoencoder,
)
from nablaflow.nano.pretrain.denoiser import TextToNoise, build_scheduler, min_snr_weight
from nablaflow.nano.pretrain.export import export
from nablaflow.nano.pretrain.stage import claim, run_stage, warmup_cosine
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.nano.scenes import centres, render, sample_scenes
from tests.support.stages import check_it_resumes


class Stopped(Exception):
    """The power fails."""


class Toy:
    """A regression with AdamW and noise from one generator."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.generator = torch.Generator().manual_seed(0)

    def step(self, index: int) -> dict[str, float]:
        x = torch.randn(8, 3, generator=self.generator)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean() / (index + 1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def run(self, folder: Path, steps: int, step: Callable[[int], Any] | None = None) -> None:
        run_stage(
            "toy",
            steps,
            step or self.step,
            state={"model": self.model, "optimizer": self.optimizer},
            generator=self.generator,
            folder=folder,
            save_every=4,
        )


@pytest.mark.parametrize("stop", [5, 8, 9])
def test_an_interrupted_stage_ends_where_the_straight_one_does(tmp_path: Path, stop: int):
    straight, first, second = Toy(), Toy(), Toy()
    (tmp_path / "straight").mkdir()
    (tmp_path / "stopped").mkdir()
    straight.run(tmp_path / "straight", 10)

    def fails(index: int) -> dict[str, float]:
        if index == stop:
            raise Stopped
        return first.step(index)

    with pytest.raises(Stopped):
        first.run(tmp_path / "stopped", 10, fails)
    second.run(tmp_path / "stopped", 10)
    assert torch.equal(second.model.weight, straight.model.weight)
    assert torch.equal(second.model.bias, straight.model.bias)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path):
    Toy().run(tmp_path, 5)

    def refuse(index: int) -> dict[str, float]:
        raise AssertionError("trained again")

    again = Toy()
    again.run(tmp_path, 5, refuse)
    assert not torch.equal(again.model.weight, Toy().model.weight)


def test_a_failed_write_leaves_the_last_state_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Toy().run(tmp_path, 4)
    before = (tmp_path / "toy.pt").read_bytes()

    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        Toy().run(tmp_path, 8)
    assert (tmp_path / "toy.pt").read_bytes() == before


def test_the_log_has_a_line_for_every_25_steps(tmp_path: Path):
    Toy().run(tmp_path, 60)
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 25, 50]


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [warmup_cosine(step, 100, 20) for step in range(100)]
    assert factors[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert factors[60] == pytest.approx(0.5)
    assert factors == factors[:20] + sorted(factors[20:], reverse=True)
    assert warmup_cosine(100, 100, 20) == pytest.approx(0.0, abs=1e-9)


# --- the autoencoder ------------------------------------------------------------------------------


def test_the_autoencoders_stage_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stage_one, "BATCH", 2)
    cpu = torch.device("cpu")
    check_it_resumes(
        stage_one,
        "autoencoder_loss",
        lambda folder: train_autoencoder(folder, 3, 0, cpu, autocast=False),
        tmp_path,
    )


@pytest.fixture(scope="module")
def untrained() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder().eval().requires_grad_(False)


def test_standardizing_gives_unit_variance_and_leaves_the_images_alone(untrained: AutoencoderKL):
    scaled = copy.deepcopy(untrained)
    standardize_latents(scaled, seed=0, scenes=240)
    images = render(sample_scenes(20, torch.Generator().manual_seed(50))) * 2 - 1
    before = untrained.encode(images).latent_dist
    after = scaled.encode(images).latent_dist
    torch.testing.assert_close(
        scaled.decode(after.mean).sample, untrained.decode(before.mean).sample, rtol=0, atol=1e-4
    )
    own = render(sample_scenes(240, torch.Generator().manual_seed(3))) * 2 - 1
    latents = scaled.encode(own).latent_dist.mean
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    # The posterior's noise is scaled as its mean is.
    scale = before.mean.std((0, 2, 3)) / after.mean.std((0, 2, 3))
    torch.testing.assert_close(before.std, after.std * scale[:, None, None], rtol=1e-3, atol=1e-6)
    assert scaled.config["scaling_factor"] == 1.0


def test_the_autoencoders_divergence_is_that_of_torch(untrained: AutoencoderKL):
    images = render(sample_scenes(3, torch.Generator().manual_seed(0))) * 2 - 1
    _, divergence = autoencoder_loss(untrained, images, torch.zeros(3, 4, 8, 8))
    posterior = untrained.encode(images).latent_dist
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    standard = torch.distributions.Normal(0.0, 1.0)
    wanted = torch.distributions.kl_divergence(normal, standard).mean()
    assert float(divergence) == pytest.approx(float(wanted), rel=1e-4)


def test_crops_show_the_object():
    scenes = sample_scenes(40, torch.Generator().manual_seed(0))
    crops = crop_at(render(scenes), centres(scenes), torch.Generator().manual_seed(1))
    assert crops.shape == (40, 3, 32, 32)
    coloured = (crops.amax(1) - crops.amin(1) > 0.3).sum((1, 2))
    assert coloured.min() > 30


# --- the denoiser and the export ------------------------------------------------------------------


def test_the_schedule_is_that_of_stable_diffusion():
    # Table of betas of Stable Diffusion 1.x: linear in the square root, 0.00085 to 0.012.
    betas = build_scheduler().betas
    assert betas.sqrt().diff().std() < 1e-6
    assert (float(betas[0]), float(betas[-1])) == pytest.approx((0.00085, 0.012), rel=1e-5)
    assert build_scheduler().config["prediction_type"] == "epsilon"


def test_the_loss_weight_is_flat_at_high_noise_and_bounded_at_low():
    alpha_bar = torch.tensor([0.01, 0.5, 5 / 6, 0.99])
    torch.testing.assert_close(min_snr_weight(alpha_bar), torch.tensor([1.0, 1.0, 1.0, 5 / 99]))


def test_the_export_is_a_stock_pipeline_in_half_precision(tmp_path: Path, untrained: AutoencoderKL):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    networks = TextToNoise(tokenizer).eval().requires_grad_(False)
    captions = ["a red circle", "", "zebra"]
    words = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    export(copy.deepcopy(untrained), tokenizer, copy.deepcopy(networks), tmp_path)

    assert not list(tmp_path.rglob("*.bin"))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 25e6
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    again = loaded.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(again, words)
    x = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        wanted = networks(x, torch.tensor([1, 500, 999]), words)
        context = loaded.text_encoder(words).last_hidden_state
        found = loaded.unet(x, torch.tensor([1, 500, 999]), context).sample
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)  # float16 weights
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a circle", num_inference_steps=2).images[0].size == (64, 64)


def test_a_folder_is_of_one_training(tmp_path: Path) -> None:
    """Its latents are of its seed's scenes, which another seed would put other captions to."""
    claim(tmp_path, "flow", {"seed": 0, "steps": 9000})
    claim(tmp_path, "flow", {"seed": 0, "steps": 9000})
    claim(tmp_path, "nano", {"seed": 1})
    with pytest.raises(UserError, match="holds a training of seed 0, and not 1; name another"):
        claim(tmp_path, "flow", {"seed": 1, "steps": 9000})
