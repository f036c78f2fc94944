"""The small decoder of the embedded latents: how it is distilled, and what ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from torch import Tensor

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.models.flops import counted
from nablaflow.models.small_decoder import load_small_decoder
from nablaflow.nano.pretrain import small_decoder as stage_of_decoder
from nablaflow.nano.pretrain.__main__ import shipped_autoencoder
from nablaflow.nano.pretrain.decoder_card import write_decoder_card
from nablaflow.nano.pretrain.export import export_decoder
from nablaflow.nano.pretrain.small_decoder import (
    build_small_decoder,
    changes,
    distillation_loss,
    draw_latents,
    embedded_pipeline,
    train_small_decoder,
)
from nablaflow.nano.scenes import render, sample_scenes
from tests.support.stages import check_it_resumes

CPU = torch.device("cpu")


def _full() -> Any:
    return shipped_autoencoder(CPU)


def _scenes(n: int) -> Tensor:
    """Latents that no training has seen."""
    images = render(sample_scenes(n, torch.Generator().manual_seed(70))) * 2 - 1
    with torch.no_grad():
        return _full().encode(images).latent_dist.mean


def _warmth_gradient(decoder: Any, latents: Tensor) -> Tensor:
    leaf = latents.clone().requires_grad_()
    images = (decoder.decode(leaf, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    (images[:, 0] - images[:, 2]).mean((1, 2)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.flatten(1)


# --- what ships -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_small_decoder(str(nano.decoder_path()), 4, 8)


def test_it_ships_small_in_half_precision():
    files = [path for path in nano.decoder_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 0.5e6
    with safe_open(nano.decoder_path() / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


def test_a_flipped_bit_of_it_is_noticed(tmp_path: Path):
    copy = Path(shutil.copytree(nano.decoder_path(), tmp_path / "decoder"))
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"training\.decoder: tiny: .*{name} is not what was"):
            load_small_decoder(str(copy), 4, 8)
        (copy / name).write_bytes(whole)


def test_it_takes_a_fifth_of_the_full_decoders_work(shipped: Any):
    found = []
    for decoder in (shipped, _full()):
        with counted() as flops:
            _warmth_gradient(decoder, torch.zeros(1, 4, 8, 8))
        found.append(flops.total)
    assert found[0] <= found[1] / 5


def test_its_images_and_its_gradients_are_near_the_full_decoders(shipped: Any):
    latents, full = _scenes(16), _full()
    with torch.no_grad():
        images = [decoder.decode(latents, return_dict=False)[0] for decoder in (shipped, full)]
    assert (images[0] - images[1]).square().mean() < 4 * 10**-2.5  # 25 dB, pixels in [-1, 1]
    small, own = (_warmth_gradient(decoder, latents) for decoder in (shipped, full))
    assert torch.cosine_similarity(small, own).median() > 0.9


# --- how it is distilled --------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_of_decoder, "CROPS", 4)
    monkeypatch.setattr(stage_of_decoder, "WHOLE", 4)
    monkeypatch.setattr(stage_of_decoder, "BATCH", 1)


@pytest.mark.usefixtures("few")
def test_its_stage_resumes_to_the_same_weights(tmp_path: Path):
    check_it_resumes(
        stage_of_decoder,
        "distillation_loss",
        lambda folder: train_small_decoder(folder, 3, 0, CPU),
        tmp_path,
    )


def test_the_full_decoder_itself_has_no_loss():
    full, latents = _full(), _scenes(4).unflatten(0, (2, 2))
    with torch.no_grad():
        wanted = full.decode(latents.flatten(0, 1), return_dict=False)[0].unflatten(0, (2, 2))
        losses = distillation_loss(full, latents, wanted, torch.zeros(7))
    assert max(float(loss) for loss in losses) < 1e-6


def test_images_that_do_not_change_have_a_relative_error_of_one():
    class Still:
        def decode(self, latents: Tensor, **_: Any) -> tuple[Tensor]:
            return (torch.zeros(len(latents), 3, 64, 64),)

    wanted = torch.randn(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    latents = torch.zeros(3, 2, 4, 8, 8)
    _, of_changes = distillation_loss(Still(), latents, wanted, torch.zeros(7))
    assert float(of_changes) == pytest.approx(1.0)


def test_changes_are_means_of_squares_of_pixels():
    images = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, change = changes(images), images[:, 0] - images[:, 1]
    assert [part.shape[-1] for part in found] == [64, 32, 16, 8, 4, 2, 1]
    torch.testing.assert_close(found[0], change)
    torch.testing.assert_close(found[-1].flatten(1), change.mean((2, 3)))


def test_latents_are_what_the_denoiser_takes_scenes_for(monkeypatch: pytest.MonkeyPatch):
    """Of a denoiser that knows the noise they would be the scenes' own."""
    monkeypatch.setattr(stage_of_decoder, "CLEAN", 0.0)
    pipeline = embedded_pipeline(CPU)
    scenes = sample_scenes(3, torch.Generator().manual_seed(70))
    guess = draw_latents(pipeline, scenes, torch.Generator().manual_seed(0))
    clean = _scenes(3)
    alpha_bars = pipeline.scheduler.alphas_cumprod

    class Knows:
        def __call__(self, x: Tensor, timestep: Tensor, _: Tensor) -> Any:
            alpha_bar = alpha_bars[timestep][:, None, None, None]
            epsilon = (x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
            return type("Found", (), {"sample": epsilon})

    monkeypatch.setattr(pipeline, "unet", Knows())
    known = draw_latents(pipeline, scenes, torch.Generator().manual_seed(0))
    torch.testing.assert_close(known, clean, rtol=0, atol=1e-3)
    assert not torch.allclose(guess, clean, atol=1e-2)


def test_what_is_exported_is_a_whole_autoencoder_with_a_card(tmp_path: Path):
    torch.manual_seed(0)
    decoder: Any = build_small_decoder().eval()
    export_decoder(decoder, tmp_path)
    write_decoder_card(tmp_path, seed=3, pairs=2)
    load_small_decoder(str(tmp_path), 4, 8)
    found: Any = AutoencoderTiny.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = torch.zeros(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            found.decode(latents).sample, decoder.float().decode(latents).sample
        )
    assert "--model decoder --seed 3" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "quality.json").read_text())["psnr"] > 0
